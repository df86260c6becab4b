"""Keeps the events of a coordinator's runs in its ledger, and finds those of former coordinators.

`CoordinatorServer` starts it; a coordinator without it keeps events in memory only. `event_streams`
says how they are written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from rallypoint.coordinator.event_log import Events
from rallypoint.coordinator.event_streams import EventReader, EventWriter, unsure_after
from rallypoint.coordinator.event_sweeper import LOOK_S, EventSweeper
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.run_events import EventKind
from rallypoint.coordinator.supervision import Supervised
from rallypoint.core.election import RunState
from rallypoint.ledger.contract import Ledger

_log = logging.getLogger("rallypoint.coordinator")

FLUSH_S: Final = 1.0
"""How long the last events of a coordinator that ends may take, in seconds."""
WRITTEN_WITHIN_S: Final = 2.0
"""When a former coordinator that is alive has written its last events, in seconds."""


class EventKeeper:
    """The events of one coordinator in its ledger. Owned by one event loop.

    `process` returns the name of its lease. `look_s`: how often it looks for old events.
    """

    def __init__(
        self,
        ledger: Ledger,
        events: Events,
        process: Callable[[], str],
        *,
        look_s: float = LOOK_S,
    ) -> None:
        self._ledger = ledger
        self._events = events
        self.writer = EventWriter(ledger, process)
        self.reader = EventReader(ledger)
        self._sweeper = EventSweeper(ledger, look_s=look_s)
        self._tasks = Supervised()
        self._is_started = False

    def start(self) -> None:
        """Begin, if the ledger has logs."""
        if not self._ledger.has_log:
            return
        self._is_started = True
        self._events.sinks.append(self.writer.take)
        self._events.earlier = self._find_earlier
        self._events.waiting_bytes = lambda: self.writer.waiting_bytes
        self._tasks.spawn(self.writer.run(), self._failed)
        self._tasks.spawn(self._sweeper.run(), self._failed)

    async def aclose(self) -> None:
        """Write the last events, and stop. Idempotent, and bounded in time."""
        await self._tasks.aclose()
        await self.reader.aclose()
        if self._is_started:
            self._is_started = False
            self._events.sinks.remove(self.writer.take)
            await self.writer.flush(FLUSH_S)

    def _find_earlier(self, run: HostedRun, state: RunState, formers: tuple[str, ...]) -> None:
        """This coordinator has taken the run over: see event_log.Events."""
        self._tasks.spawn(self._read_earlier(run, state, formers), self._failed)

    async def _read_earlier(
        self, run: HostedRun, state: RunState, formers: tuple[str, ...]
    ) -> None:
        found = await self.reader.of_run(run.run_id, formers)
        if unsure_after(found.events, state.term):
            # The former coordinator may be alive, and writes its last events now.
            await asyncio.sleep(WRITTEN_WITHIN_S)
            read_after_s = asyncio.get_running_loop().time() - WRITTEN_WITHIN_S / 2
            found = await self.reader.of_run(run.run_id, formers, read_after_s)
        earlier = [event for event in found.events if event.term < state.term]
        if run.is_forgotten or run.events.term != state.term:
            return
        run.events.restored(earlier)
        unsure = "; ".join(filter(None, (found.problem, unsure_after(earlier, state.term))))
        if unsure:
            run.observer.record(EventKind.DROPPED, detail=unsure)
        run.observer.recall(state, earlier)

    def _failed(self, error: Exception) -> None:
        """An unexpected error ends this work, and nothing else."""
        self._events.failures += 1
        _log.error("an unexpected error in the work on events in the ledger", exc_info=error)
