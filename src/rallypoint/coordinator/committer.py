"""Carries the core's commits to the ledger, one at a time per run, and brings back the outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Final

import msgspec

from rallypoint.coordinator.runs import RunHost
from rallypoint.core import events as on
from rallypoint.core.values import CloseRecord, RoundRecord
from rallypoint.ledger.contract import Ledger, Swapped, Unknown

RECORD_FORMAT: Final = 1
"""The format of what is written; it stands first in every record."""
RETRY_S: Final = 0.5


class RunRecord(msgspec.Struct, frozen=True, array_like=True):
    """What a run's register holds."""

    format: int
    term: int
    record: RoundRecord | None
    close: CloseRecord | None
    restart_count: int


class Committer:
    """Writes the records of all runs of one coordinator. Owned by one event loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._versions: dict[str, int | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def commit(self, run: RunHost, record: RoundRecord | CloseRecord) -> None:
        """Begin to write; the outcome is posted to the run as an event."""
        value = msgspec.msgpack.encode(_run_record(run, record))
        self._spawn(self._write(run, value))

    async def aclose(self) -> None:
        """Give up what is being written."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def forget(self, run_id: str) -> None:
        """The run is swept: its register can go."""
        if self._versions.pop(run_id, None) is not None:
            self._spawn(self._ledger.delete(run_id))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, run: RunHost, value: bytes) -> None:
        """One swap. After an unknown outcome the core gives the same record again, and no other."""
        outcome = await self._ledger.swap(run.run_id, self._versions.get(run.run_id), value)
        if isinstance(outcome, Unknown):
            await self._outage(run, outcome.reason)
        elif isinstance(outcome, Swapped):
            self._versions[run.run_id] = outcome.version
            run.post(on.Committed())
        elif outcome.current is not None and outcome.current.value == value:
            # An earlier try, whose outcome was unknown, had been done.
            self._versions[run.run_id] = outcome.current.version
            run.post(on.Committed())
        else:
            run.post(on.CommitRefused("another coordinator has written this run's record"))

    async def _outage(self, run: RunHost, reason: str) -> None:
        """Wait until the ledger answers again."""
        run.post(on.LedgerLost(reason))
        while True:
            await asyncio.sleep(RETRY_S)
            try:
                await self._ledger.read(run.run_id)
            except OSError as error:
                run.post(on.LedgerLost(str(error)))
            else:
                run.post(on.LedgerRestored())
                return


def _run_record(run: RunHost, record: RoundRecord | CloseRecord) -> RunRecord:
    membership = run.membership
    return RunRecord(
        RECORD_FORMAT,
        membership.term,
        record if isinstance(record, RoundRecord) else membership.round,
        record if isinstance(record, CloseRecord) else None,
        membership.restart_count,
    )
