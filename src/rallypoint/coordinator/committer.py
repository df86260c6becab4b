"""Carries the core's commits to the ledger, one at a time per run, and brings back the outcome."""

from __future__ import annotations

import asyncio
import logging
import secrets
from functools import partial
from typing import Final

import msgspec

from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.supervision import Supervised
from rallypoint.core import events as on
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import CloseRecord, RoundRecord
from rallypoint.errors import LedgerError, UsageError
from rallypoint.ledger.contract import Ledger, SwapOutcome, Swapped, Unknown
from rallypoint.ledger.keys import run_key

_log = logging.getLogger("rallypoint.coordinator")

RECORD_FORMAT: Final = 1
"""The format of what is written; it stands first in every record."""
RETRY_S: Final = 0.5


class RunRecord(msgspec.Struct, frozen=True, array_like=True):
    """What a run's register holds. `writer` and `sequence` make every value one of its own."""

    format: int
    term: int
    record: RoundRecord | None
    close: CloseRecord | None
    restart_count: int
    writer: str = ""
    sequence: int = 0


class _Pending(msgspec.Struct, frozen=True):
    """What is being written for a run, until the ledger has said what became of it."""

    record: RoundRecord | CloseRecord
    value: bytes


class Committer:
    """Writes the records of all runs of one coordinator. Owned by one event loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._versions: dict[str, int | None] = {}
        self._pending: dict[str, _Pending] = {}
        self._writer = secrets.token_hex(8)
        self._sequence = 0
        self._tasks = Supervised()

    def commit(self, run: HostedRun, record: RoundRecord | CloseRecord) -> None:
        """Begin to write; the outcome is posted to the run as an event.

        After an unknown outcome the core gives the same record again, and no other, and the same
        bytes are written: whatever else has changed in the run, they may be there already.
        """
        pending = self._pending.get(run.run_id)
        if pending is None or pending.record != record:
            pending = _Pending(record, msgspec.msgpack.encode(self._run_record(run, record)))
            self._pending[run.run_id] = pending
        self._tasks.spawn(self._write(run, pending.value), run.fail)

    async def aclose(self) -> None:
        """Give up what is being written."""
        await self._tasks.aclose()

    def forget(self, run_id: str) -> None:
        """The run is swept: its register can go."""
        self._pending.pop(run_id, None)
        if self._versions.pop(run_id, None) is not None:
            self._tasks.spawn(self._delete(run_id), partial(_not_deleted, run_id))

    async def _delete(self, run_id: str) -> None:
        try:
            await self._ledger.delete(run_key(run_id))
        except (OSError, LedgerError) as error:
            _not_deleted(run_id, error)

    async def _write(self, run: HostedRun, value: bytes) -> None:
        """One swap. What the ledger will not even try is shown like an outage, and tried again."""
        expected = self._versions.get(run.run_id)
        outcome: SwapOutcome
        try:
            outcome = await self._ledger.swap(run_key(run.run_id), expected, value)
        except (OSError, LedgerError, UsageError) as error:
            outcome = Unknown(str(error))
        if isinstance(outcome, Unknown):
            await self._outage(run, outcome.reason)
        elif isinstance(outcome, Swapped):
            self._committed(run, outcome.version)
        elif outcome.current is not None and outcome.current.value == value:
            # An earlier try, whose outcome was unknown, had been done.
            self._committed(run, outcome.current.version)
        else:
            self._pending.pop(run.run_id, None)
            run.post(on.CommitRefused("another coordinator has written this run's record"))

    def _committed(self, run: HostedRun, version: int) -> None:
        self._versions[run.run_id] = version
        if self._pending.pop(run.run_id, None) is None:
            self.forget(run.run_id)  # The run had to go while this was written.
            return
        run.post(on.Committed())

    def _run_record(self, run: HostedRun, record: RoundRecord | CloseRecord) -> RunRecord:
        membership = run.membership
        self._sequence += 1
        return RunRecord(
            RECORD_FORMAT,
            membership.term,
            record if isinstance(record, RoundRecord) else membership.round,
            record if isinstance(record, CloseRecord) else None,
            membership.restart_count,
            self._writer,
            self._sequence,
        )

    async def _outage(self, run: HostedRun, reason: str) -> None:
        """Wait until the ledger answers again."""
        run.post(on.LedgerLost(reason, cause=SuspensionCause.COMMIT))
        while True:
            await asyncio.sleep(RETRY_S)
            try:
                await self._ledger.read(run_key(run.run_id))
            except (OSError, LedgerError) as error:
                run.post(on.LedgerLost(str(error), cause=SuspensionCause.COMMIT))
            else:
                run.post(on.LedgerRestored(SuspensionCause.COMMIT))
                return


def _not_deleted(run_id: str, error: Exception) -> None:
    _log.warning("run %s: its register stays in the ledger: %s", run_id, error)
