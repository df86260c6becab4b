"""Runs on a ledger that several coordinators share: their claims, commits and ends.

Drives the election: each run has a claim (`core/election`). This part executes the claim's requests
and passes the outcomes to the hosted runs (`owned_runs`). A claim is limited by this process's
lease (`lease_manager`). This part decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

import msgspec

from rallypoint.coordinator.claimed_run import ClaimedRun, with_record
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.ended_owner import Mistakes, has_ended, has_mistake
from rallypoint.coordinator.garbage_collector import GarbageCollector, collector_for
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.lease_manager import (
    PAUSE_MAX_S,
    HandingOver,
    LeaseManager,
    Lost,
    NodesMustLeave,
    Restored,
    Suspended,
)
from rallypoint.coordinator.owned_runs import OwnedRuns
from rallypoint.coordinator.resigning import Resigning
from rallypoint.coordinator.run_removal import remove_own
from rallypoint.coordinator.supervision import Supervised, error_text, guarded
from rallypoint.coordinator.tables import Tables, table_room
from rallypoint.core import effects as do
from rallypoint.core import election as e
from rallypoint.core import events as on
from rallypoint.core.backoff import Backoff
from rallypoint.core.tables import Plan
from rallypoint.core.values import Address, CloseRecord, EndedOwner, RoundRecord
from rallypoint.errors import LedgerCorruptError, LedgerError, LedgerFormatError, LedgerLimitError
from rallypoint.ledger.contract import Ledger
from rallypoint.ledger.keys import FLOOR, lease_key, run_key

_log = logging.getLogger("rallypoint.coordinator")

LONGEST_TICK_S: Final = 0.1
LONGEST_LOOK_S: Final = 1.0
"""How often, in seconds, to check owned runs that are at rest, as there may be many."""
FORGET_CLAIM_S: Final = 60.0
"""A claim to a run of another process is dropped when no node has returned to it for this long."""


class RunOwnership:
    """The runs of one coordinator on a ledger. Implements `coordinator.Ownership`."""

    is_in_memory = False

    def __init__(self, ledger: Ledger, config: CoordinatorConfig) -> None:
        self.lease_manager = LeaseManager(
            ledger,
            e.Timing.of(config.lease_ttl_s),
            only_run=config.only_run or "",
            lease_token=config.lease_token,
            node=config.own_node,
        )
        self.ledger_id = ""
        """Known after the ledger was reached."""
        self._config = config
        self._ledger = ledger
        self._own_node = config.own_node.name if config.own_node is not None else ""
        self._claims: dict[str, ClaimedRun] = {}
        self._tables = Tables(ledger)
        self._writing: set[tuple[str, int]] = set()
        """Runs and terms whose member tables are being written, before the head that names them.
        """
        self._requests = Supervised()
        self._mistakes = Mistakes(ledger, self._process_failed)
        self._ticker: asyncio.Task[None] | None = None
        self._sweeping = Supervised()
        self._runs = OwnedRuns(
            ledger, self.lease_manager, config, self.check_lease, self._renewed, self.may_decide
        )
        self.logs = self._runs.logs
        self._resigning = Resigning(
            config, self.lease_manager, self._runs, self._is_ours, self._request, self._resign
        )
        self._look_at_all_s = float("-inf")
        self._failures = Backoff(config.lease_ttl_s, PAUSE_MAX_S)
        self._rests_until_s = float("-inf")
        self._run_failures: dict[str, Backoff] = {}
        self._stays_away_s: dict[str, float] = {}
        """The time until which this process does not take a run that failed here."""

    # -- start and end -------------------------------------------------------------------------

    async def start(self, coordinator: Coordinator, addresses: tuple[Address, ...]) -> None:
        """Reach the ledger and take the lease. Raises LedgerError."""
        await self._ledger.open()
        self._runs.coordinator = coordinator
        self.ledger_id = coordinator.ledger_id = self._ledger.ledger_id
        coordinator.table_bytes_max = table_room(self._ledger.limits)
        self.lease_manager.addresses = addresses
        self.lease_manager.begin_again()
        self._ticker = self._requests.spawn(self._tick_for_ever(), self._process_failed)
        self._collect_for_ever(
            collector_for(self._ledger, self._config, coordinator.runs, self.claim, self.may_decide)
        )

    def _collect_for_ever(self, garbage_collector: GarbageCollector) -> None:
        # Old data takes room but harms no run. So an error ends only one scan.
        def failed(error: Exception) -> None:
            _log.error(
                "an unexpected error while removing old data from the ledger", exc_info=error
            )
            self._collect_for_ever(garbage_collector)

        self._sweeping.spawn(garbage_collector.run(), failed)

    async def before_close(self) -> None:
        """Look whether this process was replaced alive, while it can still be reached.

        Its own node may have found the next coordinator, and closes this one before a renewal
        fails. Once its port is closed, others see rightly that it has ended.
        """
        if any(each.is_owned and each.register.close is None for each in self._all_claims()):
            await self._mistakes.look(self.process, self.addresses)

    async def hand_over(self, timeout_s: float, reason: str) -> None:
        """End the lease in the ledger, then make the nodes look for another coordinator."""
        coordinator = self._runs.coordinator
        if coordinator is None:
            return
        await self.hand_over_lease(timeout_s)
        for run in list(coordinator.runs.values()):
            run.post(on.CommitRefused(reason, is_voluntary=True))

    async def hand_over_lease(self, timeout_s: float) -> None:
        """End the lease in the ledger, so that other processes need not wait for the ttl."""
        lease = self.lease_manager
        lease.is_going = True  # R5: from now on nothing is decided.
        try:
            async with asyncio.timeout(timeout_s):
                # R1: first the commits under way.
                while self._writing or any(each.claim.is_committing for each in self._all_claims()):
                    await self._any_request()
                self._hand_over(lease.holder)
                self.check_lease()  # R5: suspend the runs before others may take them.
                while not (lease.holder.has_moved or lease.holder.is_lost):
                    await self._any_request()
        except TimeoutError:
            _log.warning("the lease could not be handed over in time: it expires after its ttl")

    async def aclose(self) -> None:
        """Stop. Idempotent. A lease that was not handed over runs out. The ledger stays open."""
        await self._mistakes.aclose()
        await self._sweeping.aclose()
        await self._runs.aclose()
        await self._requests.aclose()

    async def _tick_for_ever(self) -> None:
        while True:
            now_s = _now_s()
            if now_s >= self._rests_until_s:
                guarded(self._process_failed, self._tick, now_s)
            await asyncio.sleep(LONGEST_TICK_S)

    def _tick(self, now_s: float) -> None:
        holder = self.lease_manager.holder
        self._do_lease(holder, holder.tick(now_s))
        looks_at_all = now_s >= self._look_at_all_s
        if looks_at_all:
            yield_after_s = self._config.yield_after_s
            after_s = LONGEST_LOOK_S if yield_after_s is None else yield_after_s / 10
            self._look_at_all_s = now_s + min(LONGEST_LOOK_S, after_s)
        for claimed in self._all_claims():
            if looks_at_all or not claimed.claim.is_at_rest:
                failed = partial(self._run_failed, claimed.run_id)
                guarded(failed, self._tick_claim, claimed, now_s)
        self._judge_lease(now_s)

    def _tick_claim(self, claimed: ClaimedRun, now_s: float) -> None:
        claim = claimed.claim
        self._do(claimed, claim.tick(now_s))
        if claim.state is e.ClaimState.IDLE and claimed.is_wanted_again:
            claimed.is_wanted_again = False
            self._do(claimed, claim.begin(now_s))
        self._resigning.tick(claimed, now_s)
        is_busy = claim.state not in (e.ClaimState.IDLE, e.ClaimState.ELSEWHERE)
        if not is_busy and now_s - claimed.wanted_s > FORGET_CLAIM_S:
            self._forget(claimed.run_id)

    # -- calls of the coordinator and its runs -------------------------------------------------

    @property
    def process(self) -> str:
        """The name of this process's lease."""
        return self.lease_manager.process

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses in its lease, where nodes reach this process."""
        return self.lease_manager.addresses

    def connection_lost(self) -> None:
        """A node's connection has ended, and not by this process.

        R8: where nodes are refused though this process is alive, they take it for ended. A renewal
        shows that it lives; and if its lease is revoked already, it learns so at once.
        """
        self.lease_manager.holder.renew_soon()

    def beat(self) -> int:
        """A counter that advances while the lease is renewed."""
        return self.lease_manager.beat

    def may_decide(self, run_id: str) -> bool:
        """Whether this process may decide for the run now."""
        claimed = self._claims.get(run_id)
        # R5: an owner with a valid lease, and no other process.
        return claimed is not None and claimed.claim.may_decide(_now_s())

    @property
    def may_decide_now(self) -> bool:
        """Whether the lease is valid now."""
        lease = self.lease_manager
        return not lease.is_suspended and lease.holder.may_decide(_now_s())

    def may_answer(self, run_id: str) -> bool:
        """Whether this process may answer calls of the run's store now."""
        if self.may_decide(run_id):  # R5: an answer is a promise.
            return True
        self.check_lease()  # so that `HostedRun.lease_confirmed` follows
        return False

    def check_lease(self) -> None:
        """Suspend all runs now if the last renewal is too old. Call this before any decision.

        The ticker does so, too, but after a stall of the process events may arrive before its tick.
        """
        lease, now_s = self.lease_manager, _now_s()
        # R5: also after a stall, before the first event.
        if not lease.is_suspended and not lease.holder.may_decide(now_s):
            guarded(self._process_failed, self._judge_lease, now_s)

    def claim(
        self, run_id: str, seen: e.Seen | None = None, ended: EndedOwner | None = None
    ) -> None:
        """A node has asked for the run: own it, or find out which process does.

        `seen`: since when this process has seen the owner's lease unchanged. `ended`: the owner, if
        it has ended as far as a node has seen.
        """
        guarded(partial(self._run_failed, run_id), self._want, run_id, _now_s(), seen, ended)
        claimed = self._claims.get(run_id)
        # A node can reach this process, so it may take the run again. This does not hold for the
        # node that hosts it.
        may_take = _now_s() >= self._stays_away_s.get(run_id, 0.0)
        # R5: a pause after an error is kept.
        if claimed is not None and not self._own_node and may_take:
            claimed.claim.end_pause()

    def _want(
        self, run_id: str, now_s: float, seen: e.Seen | None, ended: EndedOwner | None
    ) -> None:
        claimed = self._claims.get(run_id)
        if claimed is None:
            new = e.Claim(run_id, self._ledger.ledger_id, self.lease_manager.holder)
            claimed = self._claims[run_id] = ClaimedRun(run_id, new)
        claimed.wanted_s = now_s
        claim = claimed.claim
        if ended is not None and claim.state in (e.ClaimState.IDLE, e.ClaimState.ELSEWHERE):
            # Whoever asks waits for the result. It takes a second at most.
            if claimed.checking != ended:
                claimed.checking = ended
                self._request(self._check_owner(claimed, ended, seen), run_id)
            return
        if claim.state is e.ClaimState.ELSEWHERE and claimed.elsewhere is not None:
            self._runs.send_elsewhere(run_id, claimed.elsewhere)
        if claimed.is_owned and not self._runs.goes_on(claimed.register, claim.former_host):
            # R5: a write of it may be under way, so it is taken over anew, in the next term.
            claim.deposed(now_s)
        if claim.state is e.ClaimState.RESIGNING:
            claimed.is_wanted_again = True
        self._do(claimed, claim.begin(now_s, seen))

    async def _check_owner(
        self, claimed: ClaimedRun, ended: EndedOwner, seen: e.Seen | None
    ) -> None:
        """Contest the owner's lease if the owner has ended; else claim the run as usual."""
        try:
            is_so = await has_ended(self._ledger, ended)
        finally:
            claimed.checking = None
        if self._claims.get(claimed.run_id) is claimed:
            if is_so:
                self._do(claimed, claimed.claim.contest(ended, _now_s()))
            self._want(claimed.run_id, _now_s(), seen, None)

    def commit(self, run: HostedRun, record: RoundRecord | CloseRecord) -> None:
        """Write a record to the run's register. A round's log is created first (R10)."""
        # R10: the log of a round exists before the round.
        if isinstance(record, RoundRecord) and self._ledger.has_log:
            self.logs.create(run, record, self._commit)
        else:
            self._commit(run, record)

    def _commit(self, run: HostedRun, record: RoundRecord | CloseRecord) -> None:
        """After an unknown outcome, the same record is written again with the same bytes."""
        claimed = self._owned(run)
        if claimed is None:
            return
        claim, register = claimed.claim, claimed.register
        # R1: one write at a time.
        if claim.is_committing or (run.run_id, register.term) in self._writing:
            return
        following = with_record(register, run, record)
        if isinstance(record, RoundRecord):
            plan = self._tables.plan(run.run_id, record.members)
            following = msgspec.structs.replace(following, table=plan.table)
            if plan.new:  # R2: the chunks before the head that names them.
                self._writing.add((run.run_id, following.term))
                work = self._write_table(claimed, plan, following)
                self._request(work, run.run_id)
                return
        self._do(claimed, claim.commit(following, _now_s()))

    async def _write_table(self, claimed: ClaimedRun, plan: Plan, following: e.RunRegister) -> None:
        """Write the chunks, then the head that names them. Try until done or the run is lost."""
        run_id = claimed.run_id
        try:
            # R5: not for a run that was lost meanwhile.
            while self._is_owned_in(following.term, claimed):
                try:
                    await self._tables.write(run_id, plan)
                    break
                except LedgerLimitError as error:
                    self._runs.not_taken(run_id, str(error))
                except LedgerError as error:
                    self.lease_manager.problem = error.message
                    _log.debug("run %s: its member table could not be written: %s", run_id, error)
                await asyncio.sleep(self.lease_manager.timing.retry_s)
        finally:
            self._writing.discard((run_id, following.term))
        if self._is_owned_in(following.term, claimed):  # R5: nor the head.
            self._do(claimed, claimed.claim.commit(following, _now_s()))

    def _is_owned_in(self, term: int, claimed: ClaimedRun) -> bool:
        # R5: this claim, and not a later one.
        # Compare the term, too: the chunks of a plan belong to it, and an owner of a later term may
        # remove them.
        is_owned = self._claims.get(claimed.run_id) is claimed and claimed.is_owned
        return is_owned and claimed.register.term == term  # R5: in this term.

    def write_marks(self, run: HostedRun, effect: do.WriteMarks) -> None:
        """Write the marks of the round's members. No other write may be open."""
        claimed = self._owned(run)
        if claimed is None:
            return
        # R1: one write at a time.
        assert not claimed.claim.is_committing, "something else is being written"
        claimed.writing_marks = effect.serial
        changes = {"marks": effect.marks, "restarts": effect.restarts, "past": run.past()}
        changes |= {"orders": effect.orders, "blame": effect.blame}
        following = msgspec.structs.replace(claimed.register, **changes)
        self._do(claimed, claimed.claim.commit(following, _now_s()))

    def _owned(self, run: HostedRun) -> ClaimedRun | None:
        """The claim to an owned run. If there is none, the run is deposed."""
        claimed = self._claims.get(run.run_id)
        if claimed is not None and claimed.is_owned:  # R5: only the owner writes.
            return claimed
        self._runs.deposed(run.run_id, "this coordinator does not own the run")
        return None

    def gave_up(self, run: HostedRun) -> None:
        """An unexpected error has ended the run on this coordinator: let another one own it."""
        self._runs.stop_taking_over(run.run_id)
        self.give_up(run.run_id)

    def forget(self, run_id: str) -> None:
        """The run is over: remove its register and logs, if this process still owns it.

        Otherwise its owner or a garbage collector removes it, because this process may have been
        cut off.
        """
        claimed = self._claims.get(run_id)
        self._forget(run_id)
        self._resigning.forget(run_id)
        self._run_failures.pop(run_id, None)
        self._stays_away_s.pop(run_id, None)
        # R1: not under a write whose outcome is unknown.
        if claimed is None or claimed.claim.is_committing:
            return
        if claimed.claim.may_decide(_now_s()):  # R5: only the owner removes a run.
            assert claimed.claim.version is not None
            work = remove_own(self._ledger, claimed.register, claimed.claim.version)
            self._request(work, run_id)

    def _forget(self, run_id: str) -> None:
        self._claims.pop(run_id, None)
        self._tables.forget(run_id)
        self._runs.forget(run_id)
        self._resigning.lost(run_id)

    # -- the election's actions ----------------------------------------------------------------

    def _do(self, claimed: ClaimedRun, actions: list[e.Action]) -> None:
        run_id = claimed.run_id
        for action in actions:
            match action:
                case e.Elected():
                    claimed.writing_marks = None
                    self._resigning.won(run_id, _now_s())
                    self._tables.won(run_id, action.register)
                    if action.register.term > 1:
                        self._request(self._tables.sweep_if_possible(run_id), run_id)
                    # R7: a run that was won begins.
                    self._runs.won(run_id, action.register, action.former_host)
                case e.RegisterWritten():
                    unneeded = self._tables.committed(run_id, action.register)
                    if unneeded:
                        self._request(self._tables.remove(run_id, unneeded), run_id)
                    serial, claimed.writing_marks = claimed.writing_marks, None
                    # R1: the answer belongs to the write that was asked for.
                    self._runs.written(
                        run_id, on.Committed() if serial is None else on.MarksWritten(serial)
                    )
                case e.Deposed():
                    self._tables.forget(run_id)
                    # R5: the run is told that it decides nothing.
                    self._runs.deposed(run_id, action.reason)
                case e.OwnedElsewhere():
                    claimed.elsewhere = action.addresses
                    self._runs.send_elsewhere(run_id, action.addresses)
                case _:
                    asking = partial(self._ask_for_run, claimed, action)
                    self._request(self._carry_out(run_id, asking), run_id)

    def _do_lease(self, holder: e.LeaseHolder, actions: list[e.Action]) -> None:
        for action in actions:
            assert isinstance(action, e.SwapLease)
            asking = partial(self._swap_own_lease, holder, action)
            self._request(self._carry_out(None, asking))

    def _hand_over(self, holder: e.LeaseHolder) -> None:
        self._do_lease(holder, holder.hand_over(_now_s()))

    async def _carry_out(
        self, run_id: str | None, asking: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Execute one request to the engine. The next tick repeats a request that failed."""
        try:
            await asking()
        except (e.UnreadableError, LedgerCorruptError, LedgerFormatError) as error:
            self._cannot_be_read(run_id, getattr(error, "message", str(error)))
        except LedgerLimitError as error:
            if run_id is None:
                self.lease_manager.problem = str(error)
            else:
                self._runs.not_taken(run_id, str(error))
        except LedgerError as error:
            self.lease_manager.problem = error.message
            _log.debug("the ledger does not answer: %s", error)

    async def _swap_own_lease(self, holder: e.LeaseHolder, action: e.SwapLease) -> None:
        key = lease_key(action.process)
        outcome = await self.lease_manager.swap(key, action.expected, action.value)
        now_s = _now_s()
        self._do_lease(holder, holder.swapped(action, outcome, now_s))
        if holder is self.lease_manager.holder:  # R5: not the answer to an earlier lease.
            self._tick_all_claims(now_s)
            self._judge_lease(now_s)

    async def _ask_for_run(self, claimed: ClaimedRun, action: e.Action) -> None:
        run_id, claim, ledger = claimed.run_id, claimed.claim, self.lease_manager
        if self._claims.get(run_id) is not claimed:  # R5: the claim was dropped meanwhile.
            return
        match action:
            case e.ReadRun():
                more = claim.run_read(action, await ledger.read(run_key(run_id)), _now_s())
            case e.ReadLease():
                lease = await ledger.read(lease_key(action.process))
                more = claim.lease_read(action, lease, _now_s())
            case e.ReadFloor():
                more = claim.floor_read(action, await ledger.read(FLOOR), _now_s())
            case e.ReadMistake():
                more = claim.mistake_read(action, await has_mistake(self._ledger), _now_s())
            case e.SwapLease():
                key = lease_key(action.process)
                outcome = await ledger.swap(key, action.expected, action.value)
                more = claim.lease_swapped(action, outcome, _now_s())
            case e.SwapRun():
                # R5: by the version that the claim has judged.
                outcome = await ledger.swap(run_key(run_id), action.expected, action.value)
                more = claim.run_swapped(action, outcome, _now_s())
            case _:
                raise AssertionError(action)
        if self._claims.get(run_id) is claimed:  # R5: nor does a late answer count.
            self._do(claimed, more)

    def _cannot_be_read(self, run_id: str | None, problem: str) -> None:
        """Leave unreadable data as it is, and do not read it before a node asks for the run."""
        _log.error("run %s: %s", run_id, problem)
        if run_id is None:
            return
        claimed = self._claims.get(run_id)
        # R5: an owned run stays owned.
        if claimed is not None and claimed.claim.state is not e.ClaimState.OWNED:
            self._forget(run_id)
        self._runs.unreadable(run_id, problem)

    # -- the state of the lease ----------------------------------------------------------------

    def _judge_lease(self, now_s: float) -> None:
        for news in self.lease_manager.judge(now_s, self._owns_runs):
            match news:
                case Lost(reason, was_alive):
                    _log.warning("this coordinator lost its lease: %s", reason)
                    if was_alive:
                        self._mistakes.record(self.process, self.addresses)
                    # R5: each run is deposed.
                    self._tick_all_claims(now_s)  # this deposes each run
                    for run_id in list(self._claims):
                        self._forget(run_id)  # R5: no claim outlives its lease.
                    self.lease_manager.begin_again()
                case Suspended(reason, away_s):
                    # R5: nothing is decided on a lease that is too old.
                    self._runs.suspend_all(reason, away_s)
                case NodesMustLeave(away_s):
                    self._runs.send_nodes_away(away_s)
                case HandingOver():
                    self._runs.hand_over_all()
                case Restored():
                    self._runs.restore_all()  # R7: with a valid lease the runs go on.

    def _owns_runs(self) -> bool:
        return any(each.claim.state is e.ClaimState.OWNED for each in self._claims.values())

    def _tick_all_claims(self, now_s: float) -> None:
        for claimed in self._all_claims():
            guarded(
                partial(self._run_failed, claimed.run_id),
                lambda each=claimed: self._do(each, each.claim.tick(now_s)),
            )

    async def _renewed(self) -> None:
        """Wait until a renewal that is sent from now on proves that the lease is not revoked."""
        since_s = _now_s()
        # R5: a renewal that was sent from now on.
        while not self.lease_manager.holder.was_renewed_since(since_s):
            await self._any_request()

    # -- resignation of a coordinator that no other node reaches -------------------------------

    def _is_ours(self, claimed: ClaimedRun) -> bool:
        # R5: this claim, and not a later one.
        is_present = self._claims.get(claimed.run_id) is claimed
        return is_present and claimed.claim.may_decide(_now_s())

    def _resign(self, claimed: ClaimedRun, pause_s: float) -> None:
        self._do(claimed, claimed.claim.resign(_now_s(), pause_s, is_yielding=True))

    # -- unexpected errors ---------------------------------------------------------------------

    def _run_failed(self, run_id: str, error: Exception) -> None:
        """Work for one run has failed: end the run here. Other runs go on."""
        _log.error("run %s: an unexpected error", run_id, exc_info=error)
        if not self._runs.failed(run_id, error):  # else the run has called `gave_up`
            self.give_up(run_id)

    def give_up(self, run_id: str) -> None:
        """Give up a run after an error in it, and do not take it for a while.

        Another process may take it at once. This one may take it later, from the run's register.
        """
        claimed = self._claims.get(run_id)
        if claimed is None:
            return
        first = Backoff(self.lease_manager.timing.ttl_s, PAUSE_MAX_S)
        now_s = _now_s()
        pause_s = self._run_failures.setdefault(run_id, first).next_s(now_s)
        self._stays_away_s[run_id] = now_s + pause_s

        try:
            self._do(claimed, claimed.claim.resign(now_s, pause_s))
        except Exception as error:  # noqa: BLE001 - as in `guarded`
            # Its register still names this process, which claims it again if a node asks for it.
            _log.error("run %s: this coordinator could not resign from it", run_id, exc_info=error)
            self._forget(run_id)

    def _process_failed(self, error: Exception) -> None:
        """Work for the whole process has failed: hand over its lease, and begin again."""
        _log.error("an unexpected error: this coordinator gives up its lease", exc_info=error)
        now_s = _now_s()
        self._rests_until_s = now_s + self._failures.next_s(now_s)
        former = self.lease_manager.begin_again()
        for run_id in list(self._claims):
            self._forget(run_id)
            self._runs.deposed(run_id, f"an error in this coordinator: {error_text(error)}")
        guarded(_lease_not_handed_over, self._hand_over, former)

    # -- helpers -------------------------------------------------------------------------------

    def _all_claims(self) -> list[ClaimedRun]:
        return list(self._claims.values())

    def _request(self, work: Coroutine[Any, Any, None], run_id: str = "") -> None:
        """Make a request in the background, for one run or (without `run_id`) for the process."""
        failed = partial(self._run_failed, run_id) if run_id else self._process_failed
        self._requests.spawn(work, failed)

    async def _any_request(self) -> None:
        """Wait until some request is answered, or for a tick."""
        done_first = asyncio.FIRST_COMPLETED
        await asyncio.wait(self._requests.running, timeout=LONGEST_TICK_S, return_when=done_first)


def _lease_not_handed_over(error: Exception) -> None:
    _log.error("the lease cannot be handed over: it expires after its ttl", exc_info=error)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
