"""Runs on a shared ledger: claimed, taken over, suspended and given up, between hub and office.

The hub knows runs and connections, the office knows the ledger; this file tells each what the
other needs, and reads and writes the logs of the rounds' stores. It decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.durable_store import (
    FORMAT,
    DurableStore,
    Record,
    UnreadableLogError,
    decode_record,
    encode_record,
)
from rallypoint.coordinator.office import Office
from rallypoint.coordinator.runs import RunHost
from rallypoint.coordinator.supervision import Supervised
from rallypoint.coordinator.sweeping import Keeping, Sweeper
from rallypoint.core import events as on
from rallypoint.core.election import RunRegister, Timing
from rallypoint.core.reasons import Refusal, RefusalCode, ledger_unreachable
from rallypoint.core.store import RoundStore
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import Address, CloseRecord, NodeId, RoundRecord
from rallypoint.errors import (
    LedgerCorruptError,
    LedgerError,
    LedgerForeignError,
    LedgerFormatError,
    LedgerLimitError,
)
from rallypoint.ledger.contract import Created, Exists, Gap, Ledger, Unknown
from rallypoint.ledger.keys import log_name

if TYPE_CHECKING:
    from rallypoint.coordinator.hub import Hub

_log = logging.getLogger("rallypoint.coordinator")

RETRY_S: Final = 0.2
LOG_GONE_HINT: Final = "put it back, or start the run again under another id"


class _Taking(NamedTuple):
    """A run that is being taken over."""

    term: int
    task: asyncio.Task[None]


class SharedRuns:
    """The runs of one coordinator on a shared ledger. Implements office.Runs and runs.Shared."""

    def __init__(self, ledger: Ledger, config: CoordinatorConfig) -> None:
        timing = Timing.of(config.lease_ttl_s)
        self.office = Office(
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
        self._own_node = config.own_node.name if config.own_node is not None else ""
        self._hub: Hub | None = None
        self._tasks = Supervised()
        self._taking: dict[str, _Taking] = {}

    # -- its life ------------------------------------------------------------------------------

    async def start(self, hub: Hub, addresses: tuple[Address, ...]) -> None:
        """Reach the ledger and take the lease. Raises LedgerError."""
        await self._ledger.open()
        self._hub = hub
        hub.ledger_id = self._ledger.ledger_id
        self.office.start(addresses)
        keeping = Keeping(closed_run_s=self._config.closed_run_keep_s)
        sweeper = Sweeper(self._ledger, keeping, lambda run_id: run_id in hub.runs, self.claim)
        if self._config.only_run is None:
            self._sweep_for_ever(sweeper)

    def _sweep_for_ever(self, sweeper: Sweeper) -> None:
        """What is not swept costs room and harms no run: an error ends one look, not sweeping."""

        def failed(error: Exception) -> None:
            _log.error("an unexpected error while sweeping the ledger", exc_info=error)
            self._sweep_for_ever(sweeper)

        self._tasks.spawn(sweeper.run(), failed)

    async def hand_over(self, timeout_s: float, reason: str) -> None:
        """Say in the ledger that this coordinator is going, then send the nodes to look again."""
        if self._hub is None:
            return
        await self.office.hand_over(timeout_s)
        for run in list(self._hub.runs.values()):
            run.post(on.CommitRefused(reason, is_own_wish=True))

    async def aclose(self) -> None:
        """Stop. Idempotent. The ledger stays open: it is the caller's."""
        await self._tasks.aclose()
        await self.office.aclose()

    # -- what the hub and its runs ask for -----------------------------------------------------

    def claim(self, run_id: str) -> None:
        """A node of the run is here."""
        self.office.want(run_id)
        if not self._own_node:
            self.office.reached(run_id)

    def commit(self, run: RunHost, record: RoundRecord | CloseRecord) -> None:
        """Give a record to the ledger."""
        membership = run.membership
        self.office.commit(run.run_id, record, membership.settings, membership.restart_count)

    def sweep(self, run_id: str) -> None:
        """The run is over for good."""
        self.office.let_go(run_id)

    def failed(self, run_id: str, error: Exception) -> None:
        """An unexpected error in a task of the run."""
        run = self._run(run_id)
        if run is not None:
            run.fail(error)
        else:
            _log.error("run %s: an unexpected error", run_id, exc_info=error)

    def gave_up(self, run: RunHost) -> None:
        """An unexpected error has ended the run on this coordinator: another may have it."""
        self._stop_taking(run.run_id)
        self.office.give_up(run.run_id)
        self.stepped_down(run)

    def stepped_down(self, run: RunHost) -> None:
        """The run is another coordinator's."""
        if self._hub is not None and self._hub.runs.get(run.run_id) is run:
            self._hub.drop(run.run_id)

    def new_store(self, run: RunHost, store: RoundStore) -> DurableStore | None:
        """The round's store with its log; the log of the round before can go."""
        if not self._ledger.has_log:
            return None
        number = run.membership.number
        if number > 1:
            self._spawn(run.run_id, self._drop_log(log_name(run.run_id, number - 1)))
        record = self._ledger.limits.record_bytes_max
        return DurableStore(
            store, run.membership.term, batch_bytes_max=record // 2, record_bytes_max=record
        )

    def append(self, run: RunHost, index: int, data: bytes) -> None:
        """Write a record of the log of the run's present round."""
        store = run.store
        assert isinstance(store, DurableStore)
        log = log_name(run.run_id, run.membership.number)
        self._spawn(run.run_id, self._append(run, store, log, index, data))

    async def _append(
        self, run: RunHost, store: DurableStore, log: str, index: int, data: bytes
    ) -> None:
        """Until the outcome is known, or the round is over: nothing is acknowledged meanwhile."""
        await self._append_until_known(run, store, log, index, data)
        if SuspensionCause.APPEND in run.membership.suspension:
            run.post(on.LedgerRestored(SuspensionCause.APPEND))

    async def _append_until_known(
        self, run: RunHost, store: DurableStore, log: str, index: int, data: bytes
    ) -> None:
        while run.store is store and run.is_store_open and self._run(run.run_id) is run:
            try:
                outcome = await self._ledger.append(log, index, data)
            except LedgerLimitError as error:
                # The engine takes less than it should (etcd's --max-request-bytes): what was
                # applied here cannot be taken back, so the run waits until the engine takes it.
                self._suspend(run, SuspensionCause.APPEND, str(error))
                await asyncio.sleep(RETRY_S)
                continue
            if isinstance(outcome, Gap):
                # Somebody has removed the log of a round that is on. Another coordinator would
                # find it empty, so that what was acknowledged would be lost without a word.
                gone = f"log {log!r} is gone from the ledger: {LOG_GONE_HINT}"
                self._suspend(run, SuspensionCause.APPEND, gone)
                await asyncio.sleep(RETRY_S)
                continue
            if isinstance(outcome, Created) or outcome == Exists(data):
                run.appended(store)
                return
            if isinstance(outcome, Exists):
                run.post(on.CommitRefused("another coordinator has sealed the round's log"))
                return
            await asyncio.sleep(RETRY_S)

    async def _drop_log(self, log: str) -> None:
        try:
            await self._ledger.drop_log(log)
        except LedgerError as error:
            _log.debug("log %s stays for now: %s", log, error)

    # -- what the office tells -----------------------------------------------------------------

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
        assert self._hub is not None
        # Its nodes may not be here yet: a claim that was turned down goes on to watch the owner.
        run = self._hub.open_run(run_id)
        try:
            records = await self._sealed_records(run_id, register)
            if self._run(run_id) is run and not run.is_claimed:
                run.begin(register, records, former_host)
                _log.info("run %s: coordinated here from term %d on", run_id, register.term)
        except UnreadableLogError as error:
            self.unreadable(run_id, str(error))
        finally:
            taking = self._taking.get(run_id)
            if taking is not None and taking.task is asyncio.current_task():
                del self._taking[run_id]

    async def _sealed_records(self, run_id: str, register: RunRegister) -> list[bytes]:
        """R5: after the seal, nothing that the former owner still writes can be in the log."""
        if register.round is None or register.close is not None or not self._ledger.has_log:
            return []
        log = log_name(run_id, register.number)
        seal = encode_record(Record(FORMAT, register.term, (), is_seal=True))
        problem = ""
        while True:
            try:
                records = [value for _, value in await self._ledger.records(log)]
            except (LedgerCorruptError, LedgerForeignError, LedgerFormatError) as error:
                raise UnreadableLogError(error.message) from error
            except LedgerError as error:
                problem = _told_once(run_id, "the log cannot be read", error.message, problem)
                await asyncio.sleep(RETRY_S)
                continue
            if records and records[-1] == seal:
                return records
            later = _later_term(records, register.term)
            if later is not None:
                # This process stood still, and will be told that the run is another's: then this
                # ends. If its lease turns out to be good, nobody can have sealed after it.
                await self.office.renewed()
                raise UnreadableLogError(f"term {later} has sealed it; this one is {register.term}")
            outcome = await self._ledger.append(log, len(records), seal)
            if isinstance(outcome, Unknown):
                problem = _told_once(run_id, "the log cannot be sealed", outcome.reason, problem)
                await asyncio.sleep(RETRY_S)

    def elsewhere(self, run_id: str, addresses: tuple[Address, ...]) -> None:
        """Another coordinator has the run: its nodes go there."""
        run = self._run(run_id)
        if run is None or run.is_claimed or self._hub is None:
            return
        listed = ", ".join(map(str, addresses))
        message = f"run {run_id!r} has its coordinator at {listed}"
        run.turn_away(Refusal(RefusalCode.ELSEWHERE, message, addresses=addresses))
        self._hub.drop(run_id)

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
            self.stepped_down(run)

    def committed(self, run_id: str) -> None:
        """The record is in the ledger."""
        run = self._run(run_id)
        if run is not None:
            # In this order: once it goes on, the run gives a record that is not committed again.
            run.post(on.Committed())
            run.post(on.LedgerRestored(SuspensionCause.COMMIT))

    def hears_others(self, run_id: str) -> bool:
        """Its own node proves nothing, unless that is all there is."""
        run, own = self._run(run_id), self._own_node
        if run is None or not run.is_claimed:
            return False
        return run.is_closed or run.hears_another_than(own) or (bool(own) and _is_enough(run, own))

    def ledger_lost(self, reason: str, away_s: float) -> None:
        """SUSPENDED: sessions stay, active rounds go on, nobody is judged."""
        _log.warning("suspended: %s", ledger_unreachable(away_s, reason))
        for run in self._claimed_runs():
            run.post(on.LedgerLost(reason, away_s, SuspensionCause.LEASE))

    def ledger_restored(self) -> None:
        """Go on."""
        _log.warning("the ledger answers again")
        for run in self._claimed_runs():
            run.post(on.LedgerRestored(SuspensionCause.LEASE))

    def not_taken(self, run_id: str, reason: str) -> None:
        """The ledger does not take the run's record: shown like an outage, until Committed."""
        run = self._run(run_id)
        if run is not None and run.is_claimed:
            self._suspend(run, SuspensionCause.COMMIT, reason)

    def _suspend(self, run: RunHost, cause: SuspensionCause, reason: str) -> None:
        if reason not in run.membership.suspension.reasons:
            _log.error("run %s is suspended: %s", run.run_id, reason)
        run.post(on.LedgerLost(reason, cause=cause))

    def unreadable(self, run_id: str, reason: str) -> None:
        """The run's register or log cannot be read: nothing of it is touched."""
        run = self._run(run_id)
        if run is not None and run.is_claimed:
            self._suspend(run, SuspensionCause.COMMIT, f"its register cannot be read: {reason}")
        elif run is not None and self._hub is not None:
            message = f"run {run_id!r} cannot be taken over: {reason}"
            hint = "another release may have written it; look at the ledger before you clear it"
            run.turn_away(Refusal(RefusalCode.LIMIT, message, hint))
            self._hub.drop(run_id)

    # -- helpers -------------------------------------------------------------------------------

    def _run(self, run_id: str) -> RunHost | None:
        return self._hub.runs.get(run_id) if self._hub is not None else None

    def _claimed_runs(self) -> list[RunHost]:
        runs = self._hub.runs.values() if self._hub is not None else ()
        return [run for run in runs if run.is_claimed]

    def _spawn(self, run_id: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it in the background, for one run: an unexpected error ends the run here."""
        return self._tasks.spawn(work, partial(self.failed, run_id))


def _is_enough(run: RunHost, node: str) -> bool:
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


def _later_term(records: list[bytes], term: int) -> int | None:
    """The term of a later seal, if there is one. Raises UnreadableLogError."""
    read = map(decode_record, records)
    return next((each.term for each in read if each.is_seal and each.term > term), None)
