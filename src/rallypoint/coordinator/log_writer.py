"""Writes the logs of rounds' stores to a ledger: creates them, appends, drops old ones.

`store_log` and `log_records` decide what is in a log. `log_reader` reads one at a takeover.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import msgspec

from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.log_reader import RETRY_S, SealedLog
from rallypoint.coordinator.log_records import header_record
from rallypoint.coordinator.round_log import LogId, first_log, older
from rallypoint.coordinator.store_log import LogAppend, StoreLog
from rallypoint.coordinator.supervision import Supervised
from rallypoint.core import events as on
from rallypoint.core.store.store import RoundStore
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import RoundRecord
from rallypoint.errors import LedgerError, LedgerLimitError
from rallypoint.ledger.contract import AppendOutcome, Created, Exists, Ledger, Unknown
from rallypoint.ledger.keys import log_prefix

_log = logging.getLogger("rallypoint.coordinator")


class _Creating(msgspec.Struct, frozen=True):
    """A round whose log is being created, before the round is committed."""

    record: RoundRecord
    task: asyncio.Task[None]


class LogWriter:
    """The logs of all runs of one coordinator on one ledger.

    The work is done in `tasks`; `failed` is called with the run's id and an unexpected error in it.
    `is_ours` says, after a renewal of the lease that is sent from now on, whether this process owns
    the run.
    """

    def __init__(
        self,
        ledger: Ledger,
        tasks: Supervised,
        failed: Callable[[str, Exception], None],
        is_ours: Callable[[str], Awaitable[bool]],
    ) -> None:
        self._ledger = ledger
        self._tasks = tasks
        self._failed = failed
        self._is_ours = is_ours
        self._creating: dict[str, _Creating] = {}

    # -- before a round is committed -----------------------------------------------------------

    def create(
        self, run: HostedRun, record: RoundRecord, commit: Callable[[HostedRun, RoundRecord], None]
    ) -> None:
        """Create the round's log with its header, then commit the round.

        So a process that finds the round in the ledger finds its log there, too, or can conclude
        that the log was removed. No append succeeds after the log was dropped, because each append
        needs the header (R5).
        """
        creating = self._creating.get(run.run_id)
        # R1: one creation for each record.
        if creating is not None and creating.record == record:
            return  # After an outage the same round is given again, and the same task continues.
        if creating is not None:
            # R1: the record before is not written any more.
            creating.task.cancel()
        task = self._spawn(run.run_id, self._create_and_commit(run, record, commit))
        self._creating[run.run_id] = _Creating(record, task)

    async def _create_and_commit(
        self, run: HostedRun, record: RoundRecord, commit: Callable[[HostedRun, RoundRecord], None]
    ) -> None:
        try:
            await self._create(run, record)
        finally:
            creating = self._creating.get(run.run_id)
            if creating is not None and creating.task is asyncio.current_task():
                del self._creating[run.run_id]
        # R5: only a record that is still to be committed.
        if _is_committing(run, record):
            commit(run, record)

    async def _create(self, run: HostedRun, record: RoundRecord) -> None:
        log = first_log(record.head.term, record.head.number)
        header = header_record(run.run_id, log.number, log.term)
        told = ""
        # R5: not for a run that was lost meanwhile.
        while _is_committing(run, record):
            try:
                outcome = await self._ledger.append(log.name(run.run_id), 0, header)
            except LedgerError as error:
                outcome = Unknown(error.message, error)
            # R10: the ledger has exactly this header.
            if isinstance(outcome, Created) or outcome == Exists(header):
                return
            why = outcome.reason if isinstance(outcome, Unknown) else "another log has its name"
            if why != told:
                told = why
                _log.warning("run %s: the round's log cannot be created: %s", run.run_id, why)
            await asyncio.sleep(RETRY_S)

    # -- while the round is active -------------------------------------------------------------

    def open(self, run: HostedRun, store: RoundStore, sealed: SealedLog | None) -> StoreLog | None:
        """The store of the present round with its log; None if the ledger keeps no logs.

        `sealed`: the log that `store` was read from, if it is not new. Logs of the rounds before
        are dropped.
        """
        record = run.membership.round
        if not self._ledger.has_log or record is None:
            return None
        limits = self._ledger.limits
        log = StoreLog(
            store,
            run.membership.term,
            run_id=run.run_id,
            log=sealed.log if sealed else first_log(record.head.term, record.head.number),
            # R10: behind the seal, or behind the header.
            next_index=sealed.next_index if sealed else 1,
            batch_bytes_max=limits.record_bytes_max // 2,
            record_bytes_max=limits.record_bytes_max,
            record_cost_bytes=limits.record_cost_bytes,
            replay=sealed.replay if sealed else None,
        )
        self._spawn(run.run_id, self._drop_older(run.run_id, log.base))
        return log

    def append(self, run: HostedRun, log: StoreLog, record: LogAppend) -> None:
        """Write a record to the log of the run's present round."""
        self._spawn(run.run_id, self._append(run, log, record))

    async def _append(self, run: HostedRun, log: StoreLog, record: LogAppend) -> None:
        """Try until the outcome is known or the round is over. Nothing is acknowledged before."""
        is_refused = False
        # R5: not for a round that is over or was lost.
        while _needs(run, log):
            try:
                outcome = await self._ledger.append(record.name, record.index, record.data)
            except LedgerLimitError as error:
                # The engine accepts less than it should (etcd's --max-request-bytes). The call was
                # applied here and cannot be undone, so the run waits until the engine accepts the
                # record.
                suspend(run, SuspensionCause.APPEND, str(error))
                is_refused = True
                await asyncio.sleep(RETRY_S)
                continue
            # R10: an outcome that is unknown is tried again.
            if not isinstance(outcome, Unknown):
                await self._appended(run, log, record, outcome)
                break
            await asyncio.sleep(RETRY_S)
        if is_refused:
            # R7: the part that raises a reason clears it.
            # Even if the round ended meanwhile, because the part that raises a cause must clear it.
            run.post(on.LedgerRestored(SuspensionCause.APPEND))

    async def _appended(
        self, run: HostedRun, log: StoreLog, record: LogAppend, outcome: AppendOutcome
    ) -> None:
        """Handle the outcome of an append. It is ignored if the round has ended meanwhile."""
        # R10: nothing of a round that is over is acknowledged.
        if not _needs(run, log):
            return
        # R10: exactly this record is in the log.
        if isinstance(outcome, Created) or outcome == Exists(record.data):
            base = log.base
            run.store.appended(log)
            if log.base != base:
                self._spawn(run.run_id, self._drop_older(run.run_id, log.base))
        elif isinstance(outcome, Exists):
            # R5: there is a seal where the record should be.
            run.post(on.CommitRefused("another coordinator has sealed the round's log"))
        # R5: a deposed coordinator must not end the round.
        # The log was removed. A successor that has formed the next round does so. So first find out
        # whether this process is deposed, because it must not end the round then.
        elif await self._is_ours(run.run_id) and _needs(run, log):
            reason = f"log {record.name!r} was removed from the ledger"
            run.post(on.StoreLost(run.membership.number, reason))

    async def _drop_older(self, run_id: str, live: LogId) -> None:
        """Drop the logs that are not needed any more, now that the run's log is `live`."""
        try:
            for name in older(await self._ledger.logs(log_prefix(run_id)), live):
                await self._ledger.drop_log(name)
        except LedgerError as error:
            # Not retried: the next round's store drops old logs again, and so does the garbage
            # collector.
            _log.debug("run %s: an old log could not be removed yet: %s", run_id, error)

    def _spawn(self, run_id: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._tasks.spawn(work, partial(self._failed, run_id))


def suspend(run: HostedRun, cause: SuspensionCause, reason: str) -> None:
    """The ledger does not accept a write of the run: suspend the run with this reason."""
    run.post(on.LedgerLost(reason, cause=cause))


def _is_committing(run: HostedRun, record: RoundRecord) -> bool:
    # R1: this record, and not a later one.
    is_wanted = run.membership.unwritten == record and not run.membership.deposed
    # R5: of a run that is still here.
    return is_wanted and not run.is_forgotten


def _needs(run: HostedRun, log: StoreLog) -> bool:
    """Whether this is the log of the present round of a run that this process owns."""
    # R5: the present round, of a run that was not lost.
    return run.store.log is log and not log.is_over and not run.membership.deposed
