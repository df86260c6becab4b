"""Removes the events of coordinators that have ended, so that a ledger does not grow without end.

It is apart from `garbage_collector`, because events are for people: without them every run goes on.
As there, no clocks of hosts are compared (R9): it counts how long *it* has seen a stream unchanged.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from rallypoint import runtime
from rallypoint.core import election as e
from rallypoint.errors import LedgerError
from rallypoint.ledger.contract import Ledger
from rallypoint.ledger.keys import EVENTS, lease_key, process_of_events

_log = logging.getLogger("rallypoint.coordinator")

LOOK_S: Final = 600.0
ELECTED_LOOK_S: Final = 7_200.0
"""How often to look, in seconds. A coordinator in a node looks rarely, as there may be many."""
KEPT_S: Final = 7 * 86_400.0
"""How long the events of a coordinator that has ended are kept, in seconds."""
STREAMS_KEPT: Final = 256
"""How many such streams are kept at most; the longest unchanged are removed first."""


class EventSweeper:
    """Looks at all streams every `look_s`. Owned by one event loop."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        look_s: float = LOOK_S,
        kept_s: float = KEPT_S,
        streams_kept: int = STREAMS_KEPT,
    ) -> None:
        self._look_s = look_s
        self._ledger = ledger
        self._kept_s = kept_s
        self._streams_kept = streams_kept
        self._seen: dict[str, tuple[tuple[str, ...], float]] = {}

    async def run(self) -> None:
        """Look until cancelled. If the ledger does not answer, look again later."""
        while True:
            await asyncio.sleep(self._look_s * runtime.here().chance.uniform(0.9, 1.1))
            try:
                await self.sweep(asyncio.get_running_loop().time())
            except LedgerError as error:
                _log.info("old events were not removed: %s", error)

    async def sweep(self, now_s: float) -> None:
        """Look once. Raises LedgerError."""
        streams: dict[str, list[str]] = {}
        for name in await self._ledger.logs(EVENTS):
            streams.setdefault(process_of_events(name), []).append(name)
        ended: list[tuple[float, str]] = []
        seen: dict[str, tuple[tuple[str, ...], float]] = {}
        for process, names in streams.items():
            if await self._is_serving(process):
                continue
            segments = tuple(sorted(names))
            before, since_s = self._seen.get(process, (segments, now_s))
            seen[process] = segments, since_s if before == segments else now_s
            ended.append((seen[process][1], process))
        self._seen = seen
        ended.sort()
        too_many = len(ended) - self._streams_kept
        for number, (since_s, process) in enumerate(ended):
            if number < too_many or now_s - since_s >= self._kept_s:
                _log.info("the events of coordinator %s are removed from the ledger", process)
                for name in streams[process]:
                    await self._ledger.drop_log(name)

    async def _is_serving(self, process: str) -> bool:
        found = await self._ledger.read(lease_key(process))
        try:
            return found is not None and (e.decode_lease(found.value).state is e.LeaseState.SERVING)
        except e.UnreadableError:
            return True  # It cannot be judged, so nothing of it is removed.
