"""Runs on a shared ledger: claimed, taken over, suspended and given up, between the coordinator and
its lease manager.

The coordinator knows runs and connections, the lease manager knows the ledger; this file tells each
what the other needs, and reads and writes the logs of the rounds' stores. It decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final, NamedTuple

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.garbage_collector import (
    ELECTED_LOOK_S,
    ELECTED_SAMPLE,
    GarbageCollector,
    Keeping,
)
from rallypoint.coordinator.hosted_run import HostedRun, store_of
from rallypoint.coordinator.lease_manager import LeaseManager
from rallypoint.coordinator.log_reader import (
    RETRY_S,
    LogReader,
    SealedLog,
    StoreLostError,
)
from rallypoint.coordinator.log_records import UnreadableLogError, header_record
from rallypoint.coordinator.round_log import LogId, first_log, older
from rallypoint.coordinator.store_log import LogAppend, StoreLog
from rallypoint.coordinator.supervision import Supervised
from rallypoint.coordinator.tables import read_members, table_room
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.election import RunRegister, RunState, Seen, Timing, UnreadableError
from rallypoint.core.reasons import Refusal, RefusalCode, ledger_unreachable
from rallypoint.core.store.store import RoundStore
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import Address, CloseRecord, NodeId, RoundMember, RoundRecord
from rallypoint.errors import (
    LedgerCorruptError,
    LedgerError,
    LedgerForeignError,
    LedgerFormatError,
    LedgerLimitError,
)
from rallypoint.ledger.contract import AppendOutcome, Created, Exists, Ledger, Unknown
from rallypoint.ledger.keys import log_prefix

_log = logging.getLogger("rallypoint.coordinator")

NO_LOG: Final = "this ledger keeps no log of it, and its coordinator is gone"


class _Preparing(NamedTuple):
    """A round whose log is being created, before the round is committed."""

    record: RoundRecord
    task: asyncio.Task[None]


class _Taking(NamedTuple):
    """A run that is being taken over."""

    term: int
    task: asyncio.Task[None]


class RunOwnership:
    """The runs of one coordinator on a shared ledger.

    Implements `coordinator.Ownership` and `lease_manager.Runs`.
    """

    is_in_memory = False

    def __init__(self, ledger: Ledger, config: CoordinatorConfig) -> None:
        timing = Timing.of(config.lease_ttl_s)
        self.lease_manager = LeaseManager(
            ledger,
            self,
            timing,
            yield_after_s=config.yield_after_s,
            only_run=config.only_run or "",
            lease_token=config.lease_token,
            node=config.own_node,
        )
        self._config = config
        self._ledger = ledger
        self.ledger_id = ""
        """Known once the ledger has been reached."""
        self._own_node = config.own_node.name if config.own_node is not None else ""
        self._coordinator: Coordinator | None = None
        self._tasks = Supervised()
        self._taking: dict[str, _Taking] = {}
        self._preparing: dict[str, _Preparing] = {}
        self._unreadable: dict[str, str] = {}
        """Why runs could not be taken over, as it was logged last."""

    # -- its life ------------------------------------------------------------------------------

    async def start(self, coordinator: Coordinator, addresses: tuple[Address, ...]) -> None:
        """Reach the ledger and take the lease. Raises LedgerError."""
        await self._ledger.open()
        self._coordinator = coordinator
        self.ledger_id = coordinator.ledger_id = self._ledger.ledger_id
        coordinator.table_bytes_max = table_room(self._ledger.limits)
        self.lease_manager.start(addresses)
        keeping = Keeping(closed_run_s=self._config.closed_run_keep_s)
        self._sweep_for_ever(self._garbage_collector(coordinator, keeping))

    def _garbage_collector(self, coordinator: Coordinator, keeping: Keeping) -> GarbageCollector:
        def is_mine(run_id: str) -> bool:
            return run_id in coordinator.runs

        own_run = self._config.only_run
        if own_run is None:
            return GarbageCollector(self._ledger, keeping, is_mine, self.claim)
        return GarbageCollector(
            self._ledger,
            keeping,
            is_mine,
            None,
            look_s=ELECTED_LOOK_S,
            sample=ELECTED_SAMPLE,
            # Of the candidates of one run, its owner alone.
            is_allowed=lambda: self.lease_manager.may_decide(own_run),
        )

    def _sweep_for_ever(self, garbage_collector: GarbageCollector) -> None:
        """What is not swept costs room and harms no run: an error ends one look, not sweeping."""

        def failed(error: Exception) -> None:
            _log.error("an unexpected error while sweeping the ledger", exc_info=error)
            self._sweep_for_ever(garbage_collector)

        self._tasks.spawn(garbage_collector.run(), failed)

    async def hand_over(self, timeout_s: float, reason: str) -> None:
        """Say in the ledger that this coordinator is going, then send the nodes to look again."""
        if self._coordinator is None:
            return
        await self.lease_manager.hand_over(timeout_s)
        for run in list(self._coordinator.runs.values()):
            run.post(on.CommitRefused(reason, is_own_wish=True))

    async def aclose(self) -> None:
        """Stop. Idempotent. The ledger stays open: it is the caller's."""
        await self._tasks.aclose()
        await self.lease_manager.aclose()

    # -- what the coordinator and its runs ask for -------------------------------------------------

    @property
    def process(self) -> str:
        """The name of this process's lease."""
        return self.lease_manager.process

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where nodes reach this process, as its lease says."""
        return self.lease_manager.addresses

    def beat(self) -> int:
        """A counter that advances while the lease is renewed."""
        return self.lease_manager.beat

    def claim(self, run_id: str, seen: Seen | None = None) -> None:
        """A node of the run is here. `seen`: see `LeaseManager.want`."""
        self.lease_manager.want(run_id, seen)
        if not self._own_node:
            self.lease_manager.reached(run_id)

    def commit(self, run: HostedRun, record: RoundRecord | CloseRecord) -> None:
        """Give a record to the ledger. A round's log is created first (R10)."""
        if isinstance(record, CloseRecord) or not self._ledger.has_log:
            self._commit(run, record)
            return
        preparing = self._preparing.get(run.run_id)
        if preparing is not None and preparing.record == record:
            return  # It is asked for again after an outage; the same task goes on.
        if preparing is not None:
            preparing.task.cancel()
        task = self._spawn(run.run_id, self._commit_with_log(run, record))
        self._preparing[run.run_id] = _Preparing(record, task)

    def _commit(self, run: HostedRun, record: RoundRecord | CloseRecord) -> None:
        membership = run.membership
        self.lease_manager.commit(
            run.run_id,
            record,
            membership.settings,
            membership.restart_count,
            membership.marks_with(record),
            run.past(),
        )

    def note(self, run: HostedRun, effect: do.Note) -> None:
        """Write what is known of the round's members."""
        self.lease_manager.note(
            run.run_id, effect.serial, effect.marks, effect.restarts, run.past()
        )

    async def _commit_with_log(self, run: HostedRun, record: RoundRecord) -> None:
        """Create the round's log with its header, then commit the round.

        So whoever finds the round in the ledger finds its log there, or knows that it was removed;
        and each append needs the header, so that none succeeds once the log was dropped (R5).
        """
        log = first_log(record.head.term, record.head.number)
        header = header_record(run.run_id, log.number, log.term)
        try:
            await self._create_log(run, record, log, header)
        finally:
            preparing = self._preparing.get(run.run_id)
            if preparing is not None and preparing.task is asyncio.current_task():
                del self._preparing[run.run_id]
        if self._is_committing(run, record):
            self._commit(run, record)

    async def _create_log(
        self, run: HostedRun, record: RoundRecord, log: LogId, header: bytes
    ) -> None:
        name = log.name(run.run_id)
        problem = ""
        while self._is_committing(run, record):
            try:
                outcome = await self._ledger.append(name, 0, header)
            except LedgerError as error:
                outcome = Unknown(error.message, error)
            if isinstance(outcome, Created) or outcome == Exists(header):
                return
            why = outcome.reason if isinstance(outcome, Unknown) else "another log has its name"
            problem = _told_once(run.run_id, "the round's log cannot be created", why, problem)
            await asyncio.sleep(RETRY_S)

    def _is_committing(self, run: HostedRun, record: RoundRecord) -> bool:
        is_wanted = run.membership.unwritten == record and not run.membership.deposed
        return is_wanted and self._run(run.run_id) is run

    def forget(self, run_id: str) -> None:
        """The run is over, and its records can go."""
        self.lease_manager.let_go(run_id)

    def failed(self, run_id: str, error: Exception) -> None:
        """An unexpected error in a task of the run."""
        run = self._run(run_id)
        if run is not None:
            run.fail(error)
        else:
            _log.error("run %s: an unexpected error", run_id, exc_info=error)

    def gave_up(self, run: HostedRun) -> None:
        """An unexpected error has ended the run on this coordinator: another may have it."""
        self._stop_taking(run.run_id)
        self.lease_manager.give_up(run.run_id)

    def new_log(
        self, run: HostedRun, store: RoundStore, sealed: SealedLog | None
    ) -> StoreLog | None:
        """The round's store with its log; the logs of the rounds before can go."""
        record = run.membership.round
        if not self._ledger.has_log or record is None:
            return None
        log = first_log(record.head.term, record.head.number)
        limits = self._ledger.limits
        oldest = sealed.replay.base if sealed else log
        self._spawn(run.run_id, self._drop_older(run.run_id, oldest))
        return StoreLog(
            store,
            run.membership.term,
            run_id=run.run_id,
            log=sealed.log if sealed else log,
            next_index=sealed.next_index if sealed else 1,
            batch_bytes_max=limits.record_bytes_max // 2,
            record_bytes_max=limits.record_bytes_max,
            record_cost_bytes=limits.record_cost_bytes,
            replay=sealed.replay if sealed else None,
        )

    def check_lease(self) -> None:
        """Suspend the runs if the lease does not stand; before anything is decided."""
        self.lease_manager.check_lease()

    def may_answer(self, run: HostedRun) -> bool:
        """Whether the lease stands and the run is this coordinator's."""
        return self.lease_manager.may_decide(run.run_id)

    def append(self, run: HostedRun, store: StoreLog, record: LogAppend) -> None:
        """Write a record of the log of the run's present round."""
        self._spawn(run.run_id, self._append(run, store, record))

    async def _append(self, run: HostedRun, store: StoreLog, record: LogAppend) -> None:
        """Until the outcome is known, or the round is over: nothing is acknowledged meanwhile."""
        log = record.log.name(run.run_id)
        is_refused = False
        while self._needs_log(run, store):
            try:
                outcome = await self._ledger.append(log, record.index, record.data)
            except LedgerLimitError as error:
                # The engine takes less than it should (etcd's --max-request-bytes): what was
                # applied here cannot be taken back, so the run waits until the engine takes it.
                self._suspend(run, SuspensionCause.APPEND, str(error))
                is_refused = True
                await asyncio.sleep(RETRY_S)
                continue
            if not isinstance(outcome, Unknown):
                await self._appended(run, store, log, record.data, outcome)
                break
            await asyncio.sleep(RETRY_S)
        if is_refused:
            # Also where the round ended meanwhile: a cause is cleared by whoever raised it.
            run.post(on.LedgerRestored(SuspensionCause.APPEND))

    async def _appended(
        self, run: HostedRun, store: StoreLog, log: str, data: bytes, outcome: AppendOutcome
    ) -> None:
        """The outcome is known. It means nothing if the round has ended meanwhile."""
        if not self._needs_log(run, store):
            return
        if isinstance(outcome, Created) or outcome == Exists(data):
            run.store.appended(store)
            complete = store.take_complete()
            if complete is not None:
                self._spawn(run.run_id, self._drop_older(run.run_id, complete))
        elif isinstance(outcome, Exists):
            run.post(on.CommitRefused("another coordinator has sealed the round's log"))
        else:
            await self._log_is_gone(run, store, log)

    async def _log_is_gone(self, run: HostedRun, store: StoreLog, log: str) -> None:
        """Somebody removed the log of a round that is on: it ends, if it is still this process's.

        A successor drops the log once it has formed the next round. So this coordinator first finds
        out whether it has been deposed: then it must not tell anybody that the round has ended.
        """
        await self.lease_manager.renewed()
        if self._needs_log(run, store) and self.lease_manager.may_decide(run.run_id):
            reason = f"log {log!r} was removed from the ledger"
            _log.error("run %s: round %d: %s", run.run_id, run.membership.number, reason)
            run.post(on.StoreLost(run.membership.number, reason))

    def _needs_log(self, run: HostedRun, store: StoreLog) -> bool:
        """Whether the store is that of the present round of a run of this process."""
        is_present = run.store.current is store and self._run(run.run_id) is run
        return is_present and not store.is_over and not run.membership.deposed

    async def _drop_older(self, run_id: str, live: LogId | None) -> None:
        """Drop the logs that nobody needs now that `live` is known to be the run's log."""
        if live is None:
            return
        try:
            for name in older(await self._ledger.logs(log_prefix(run_id)), live):
                await self._ledger.drop_log(name)
        except LedgerError as error:
            # The next round's store looks again, and whoever sweeps the run.
            _log.debug("run %s: an old log stays for now: %s", run_id, error)

    # -- what the lease manager tells --------------------------------------------------------------

    def won(self, run_id: str, register: RunRegister, former_host: NodeId | None) -> None:
        """The run is this coordinator's. Told again while nobody has begun it."""
        taking = self._taking.get(run_id)
        if taking is not None and taking.term == register.term:
            return
        self._stop_taking(run_id)
        task = self._spawn(run_id, self._take_over(run_id, register, former_host))
        self._taking[run_id] = _Taking(register.term, task)

    def _stop_taking(self, run_id: str) -> None:
        """Whoever takes a run over in a term that is past must neither begin it nor refuse it."""
        taking = self._taking.pop(run_id, None)
        if taking is not None:
            taking.task.cancel()

    async def _take_over(
        self, run_id: str, register: RunRegister, former_host: NodeId | None
    ) -> None:
        """Seal the round's log, and begin with what is in it. Cancelled when the run is lost."""
        assert self._coordinator is not None
        # Its nodes may not be here yet: a claim that was turned down goes on to watch the owner.
        run = self._coordinator.open_run(run_id)
        try:
            state = register.state(await self._members(run_id, register))
            sealed, store_lost = None, ""
            try:
                sealed = await self._sealed_log(run_id, state)
            except StoreLostError as error:
                store_lost = str(error)
                _log.warning("run %s: round %d ends: %s", run_id, register.number, error)
            if self._run(run_id) is run and not run.is_claimed:
                self._tell_outage(run)
                run.begin(state, sealed, former_host, store_lost=store_lost)
                self._unreadable.pop(run_id, None)
                _log.info("run %s: coordinated here from term %d on", run_id, register.term)
        except (UnreadableError, UnreadableLogError) as error:
            self.unreadable(run_id, str(error))
        finally:
            taking = self._taking.get(run_id)
            if taking is not None and taking.task is asyncio.current_task():
                del self._taking[run_id]

    def _tell_outage(self, run: HostedRun) -> None:
        """Reading the log took longer than the lease stands: the run begins SUSPENDED."""
        self.lease_manager.check_lease()
        if self.lease_manager.outage:
            run.post(
                on.LedgerLost(
                    self.lease_manager.outage, self.lease_manager.away_s, SuspensionCause.LEASE
                )
            )

    async def _members(self, run_id: str, register: RunRegister) -> tuple[RoundMember, ...]:
        """The member table. Nobody is expected in a run that is closed.

        Raises UnreadableError: then the run is not begun, and nothing of it is changed.
        """
        if register.close is not None:
            return register.table.rows if register.table is not None else ()
        problem = ""
        while True:
            try:
                return await read_members(self._ledger, run_id, register.table)
            except UnreadableError:
                # A later owner may have replaced the table: then this one is deposed. If its lease
                # turns out to be good, nobody has sealed after it, and the table is really damaged.
                await self.lease_manager.renewed()
                raise
            except (LedgerCorruptError, LedgerForeignError, LedgerFormatError) as error:
                raise UnreadableError(error.message) from error
            except LedgerError as error:
                what = "the member table cannot be read"
                problem = _told_once(run_id, what, error.message, problem)
                await asyncio.sleep(RETRY_S)

    async def _sealed_log(self, run_id: str, state: RunState) -> SealedLog | None:
        """R5: after the seal, nothing that the former owner still writes can be in the log.

        None if there is no round. Raises StoreLostError and UnreadableLogError.
        """
        assert self._coordinator is not None
        record, limits = state.round, self._coordinator.config.store_limits
        if record is None or state.close is not None:
            return None
        if not self._ledger.has_log:
            raise StoreLostError(NO_LOG)
        reader = LogReader(
            self._ledger,
            run_id,
            record.head,
            state.term,
            new_store=lambda: store_of(record, limits),
            make_sure=self.lease_manager.renewed,
        )
        return await reader.sealed()

    def elsewhere(self, run_id: str, addresses: tuple[Address, ...]) -> None:
        """Another coordinator has the run: its nodes go there."""
        run = self._run(run_id)
        if run is None or run.is_claimed or self._coordinator is None:
            return
        listed = ", ".join(map(str, addresses))
        message = f"run {run_id!r} has its coordinator at {listed}"
        if not set(addresses).isdisjoint(self.lease_manager.addresses):
            # The lease is a predecessor's, which listened here: "there" would be this process.
            message = (
                f"the coordinator at {listed} was started again, and takes run {run_id!r} "
                "when the lease of its predecessor has ended"
            )
        run.turn_away(Refusal(RefusalCode.ELSEWHERE, message, addresses=addresses))
        self._coordinator.drop_run(run)

    def deposed(self, run_id: str, reason: str) -> None:
        """The run is not this coordinator's any more."""
        self._stop_taking(run_id)
        run = self._run(run_id)
        if run is None:
            return
        if run.is_claimed:
            run.post(on.CommitRefused(reason))
        else:
            run.turn_away(Refusal(RefusalCode.MOVED, reason))
            if self._coordinator is not None:
                self._coordinator.drop_run(run)

    def committed(self, run_id: str) -> None:
        """The record is in the ledger."""
        run = self._run(run_id)
        if run is not None:
            # In this order: once it goes on, the run gives a record that is not committed again.
            run.post(on.Committed())
            run.post(on.LedgerRestored(SuspensionCause.COMMIT))

    def noted(self, run_id: str, serial: int) -> None:
        """The marks are in the ledger."""
        run = self._run(run_id)
        if run is not None:
            run.post(on.Noted(serial))
            run.post(on.LedgerRestored(SuspensionCause.COMMIT))

    def hears_others(self, run_id: str) -> bool:
        """Its own node proves nothing, unless that is all there is."""
        run, own = self._run(run_id), self._own_node
        if run is None or not run.is_claimed:
            return False
        return (
            run.is_closed
            or run.connections.hears_another_than(own)
            or (bool(own) and _is_enough(run, own))
        )

    def ledger_lost(self, reason: str, away_s: float) -> None:
        """SUSPENDED: sessions stay, active rounds go on, nobody is judged."""
        _log.warning("suspended: %s", ledger_unreachable(away_s, reason))
        for run in self._claimed_runs():
            run.post(on.LedgerLost(reason, away_s, SuspensionCause.LEASE))

    def handing_over(self) -> None:
        """SUSPENDED, until the ledger says that the lease is moving, and the nodes are sent off."""
        for run in self._claimed_runs():
            run.post(on.LedgerLost("this coordinator hands over", cause=SuspensionCause.LEASE))

    def ledger_restored(self) -> None:
        """Go on."""
        _log.warning("the ledger answers again")
        for run in self._claimed_runs():
            run.supervised(run.lease_stands)

    def send_away(self, away_s: float) -> None:
        """Nodes that cannot read the ledger may reach another replica; those that can, look."""
        reason = ledger_unreachable(away_s, self.lease_manager.outage)
        for run in self._claimed_runs():
            run.supervised(run.connections.send_away, Refusal(RefusalCode.MOVED, reason))

    def not_taken(self, run_id: str, reason: str) -> None:
        """The ledger does not take the run's record: shown like an outage, until Committed."""
        run = self._run(run_id)
        if run is not None and run.is_claimed:
            self._suspend(run, SuspensionCause.COMMIT, reason)

    def _suspend(self, run: HostedRun, cause: SuspensionCause, reason: str) -> None:
        if reason not in run.membership.suspension.reasons:
            _log.error("run %s is suspended: %s", run.run_id, reason)
        run.post(on.LedgerLost(reason, cause=cause))

    def unreadable(self, run_id: str, reason: str) -> None:
        """The run's register or log cannot be read: nothing of it is touched."""
        run = self._run(run_id)
        if run is not None and run.is_claimed:
            self._suspend(run, SuspensionCause.COMMIT, f"its register cannot be read: {reason}")
        elif run is not None and self._coordinator is not None:
            message = f"run {run_id!r} cannot be taken over: {reason}"
            if self._unreadable.get(run_id) != reason:
                self._unreadable[run_id] = reason
                _log.error("%s", message)
            hint = "another release may have written it; look at the ledger before you clear it"
            run.turn_away(Refusal(RefusalCode.LIMIT, message, hint))
            self._coordinator.drop_run(run)

    # -- helpers -------------------------------------------------------------------------------

    def _run(self, run_id: str) -> HostedRun | None:
        return self._coordinator.runs.get(run_id) if self._coordinator is not None else None

    def _claimed_runs(self) -> list[HostedRun]:
        runs = self._coordinator.runs.values() if self._coordinator is not None else ()
        return [run for run in runs if run.is_claimed]

    def _spawn(self, run_id: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it in the background, for one run: an unexpected error ends the run here."""
        return self._tasks.spawn(work, partial(self.failed, run_id))


def _is_enough(run: HostedRun, node: str) -> bool:
    """Whether the run needs no other node, and had none."""
    membership = run.membership
    settings, last = membership.settings, membership.round
    alone = last is None or all(member.name == node for member in last.members)
    return alone and settings is not None and settings.min_nodes <= 1


def _told_once(run_id: str, what: str, why: str, before: str) -> str:
    """Log a problem, unless it is the one that was logged `before`."""
    problem = f"{what}: {why}"
    if problem != before:
        _log.warning("run %s: %s", run_id, problem)
    return problem
