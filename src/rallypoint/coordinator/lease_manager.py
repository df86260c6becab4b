"""A coordinator's lease manager: its lease, its claims to runs, and what it commits, against a
ledger.

Carries out what `core/election/` decides. One lease per process, however many runs; an idle
lease manager writes once per `renew_s`. Nothing here judges who is alive or who may decide.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, Protocol

import msgspec

from rallypoint.coordinator.supervision import Supervised, guarded, told
from rallypoint.coordinator.tables import Tables, remove_all
from rallypoint.core import election as e
from rallypoint.core.backoff import Backoff
from rallypoint.core.closing import bounded_close
from rallypoint.core.past import NO_PAST, Past
from rallypoint.core.tables import Plan
from rallypoint.core.values import (
    Address,
    CloseRecord,
    Marks,
    NodeId,
    Outcome,
    RoundMember,
    RoundRecord,
    RunSettings,
)
from rallypoint.errors import (
    LedgerCorruptError,
    LedgerError,
    LedgerFormatError,
    LedgerLimitError,
    LedgerUnreachableError,
)
from rallypoint.ledger.contract import Conflict, Ledger, SwapOutcome, Swapped, Unknown, Versioned
from rallypoint.ledger.keys import COORDINATORS, FLOOR, lease_key, log_prefix, run_key

_log = logging.getLogger("rallypoint.coordinator")

LONGEST_TICK_S: Final = 0.1
LONGEST_LOOK_S: Final = 1.0
"""How often runs are looked at that are owned, and of which nothing is asked: there may be many."""
PAUSE_MAX_S: Final = 60.0
"""The longest pause after an unexpected error, in which this process takes no run or lease; and
between two times at which nodes are sent away, while the lease cannot be renewed."""
NO_ANSWER: Final = "no answer"
FORGET_CLAIM_S: Final = 60.0
"""A claim to a run that is elsewhere is dropped when no node has asked for it for this long."""


Request = Callable[[], Coroutine[Any, Any, None]]


class Runs(Protocol):
    """Who has the runs: told what becomes of them. Called from the lease manager's loop."""

    def won(self, run_id: str, register: e.RunRegister, former_host: NodeId | None) -> None:
        """The run is this process's; its register is as the last owner left it.

        `former_host`: the node that the last owner ended with, if it did. Told again when a node
        asks for a run that was won but not begun.
        """

    def elsewhere(self, run_id: str, addresses: tuple[Address, ...]) -> None:
        """Another process owns the run."""

    def deposed(self, run_id: str, reason: str) -> None:
        """The run is no longer this process's."""

    def committed(self, run_id: str) -> None:
        """The record that was given last is in the ledger."""

    def noted(self, run_id: str, serial: int) -> None:
        """The marks with this serial number are in the ledger."""

    def hears_others(self, run_id: str) -> bool:
        """Whether a node of another process can be heard, or the run needs none."""

    def ledger_lost(self, reason: str, away_s: float) -> None:
        """Nothing can be decided: the lease could not be renewed for `away_s`, in seconds."""

    def ledger_restored(self) -> None:
        """It answers again, and the lease is still this process's."""

    def handing_over(self) -> None:
        """Nothing can be decided any more: the lease is being let go of."""

    def send_away(self, away_s: float) -> None:
        """The lease could not be renewed for `away_s`: nodes that cannot look have to leave."""

    def not_taken(self, run_id: str, reason: str) -> None:
        """The ledger does not take what is to be committed. It is tried again and again."""

    def unreadable(self, run_id: str, reason: str) -> None:
        """The run's register cannot be read, and is left as it is."""

    def failed(self, run_id: str, error: Exception) -> None:
        """An unexpected error in what belongs to the run: this process lets go of it."""


class LeaseManager:
    """One coordinator process's lease manager. Owned by one event loop."""

    def __init__(
        self,
        ledger: Ledger,
        runs: Runs,
        timing: e.Timing,
        *,
        yield_after_s: float | None = None,
        only_run: str = "",
        lease_token: str = "",
        node: NodeId | None = None,
    ) -> None:
        self._ledger = ledger
        self._runs = runs
        self._timing = timing
        self._only_run = only_run
        self._lease_token = lease_token
        self._node = node
        self.addresses: tuple[Address, ...] = ()
        """Where nodes reach this process."""
        self._holder = self._new_holder()
        self._claims: dict[str, e.Claim] = {}
        self._tables = Tables(ledger)
        self._writing: set[tuple[str, int]] = set()
        """Runs and terms whose member table is being written, before the head that names it."""
        self._wanted_s: dict[str, float] = {}
        self._wanted_again: set[str] = set()
        """Runs that were asked for while this process was letting go of them."""
        self._elsewhere: dict[str, tuple[Address, ...]] = {}
        self._noting: dict[str, int] = {}
        """Which of the writes under way are notes, by run, with their serial numbers."""
        self._yielding: dict[str, e.Resignation] = {}
        self._yield_after_s = yield_after_s
        self._ticker: asyncio.Task[None] | None = None
        self._tasks = Supervised()
        self._failures = Backoff(timing.ttl_s, PAUSE_MAX_S)
        self._run_failures: dict[str, Backoff] = {}
        self._stays_away_s: dict[str, float] = {}
        """Until when this process does not take a run that failed here."""
        self._rests_until_s = float("-inf")
        self._sendings = Backoff(timing.ttl_s, PAUSE_MAX_S)
        self._send_away_s = float("inf")
        self._look_at_all_s = float("-inf")
        self._outage: str = ""
        self._is_suspended = False
        self._has_told_why = False
        self._is_going = False

    def _new_holder(self) -> e.LeaseHolder:
        """A process name is drawn anew for every lease: a lost one is lost for good."""
        return e.LeaseHolder(
            secrets.token_hex(8),
            self.addresses,
            self._timing,
            only_run=self._only_run,
            token=self._lease_token,
            node=self._node,
        )

    @property
    def process(self) -> str:
        """This process's name in the ledger."""
        return self._holder.process

    @property
    def beat(self) -> int:
        """Advances while the lease is renewed."""
        return self._holder.beat

    def may_decide(self, run_id: str) -> bool:
        """Whether this process may decide for the run now."""
        claim = self._claims.get(run_id)
        return claim is not None and claim.may_decide(self._now_s())

    def check_lease(self) -> None:
        """Suspend all runs now if the last renewal is not fresh: before anything is decided.

        The ticker does so too, but after a stall of the process events may come before it.
        """
        now_s = self._now_s()
        if not self._is_suspended and not self._holder.may_decide(now_s):
            guarded(self._process_failed, self._judge_own_lease, now_s)

    @property
    def outage(self) -> str:
        """Why the runs are suspended: the lease could not be renewed. "" if they are not."""
        return (self._outage or NO_ANSWER) if self._is_suspended else ""

    @property
    def away_s(self) -> float:
        """How long ago the last confirmed renewal was sent, in seconds."""
        return self._holder.renewed_ago_s(self._now_s())

    async def renewed(self) -> None:
        """Wait until a renewal that is sent from now on was done: nobody has revoked the lease."""
        since_s = self._now_s()
        while not self._holder.was_renewed_since(since_s):
            await self._any_task()

    # -- its life ------------------------------------------------------------------------------

    def start(self, addresses: tuple[Address, ...]) -> None:
        """Take the lease and keep it. `addresses`: where nodes reach this process."""
        self.addresses = addresses
        self._holder = self._new_holder()
        self._ticker = self._spawn(self._tick_for_ever())

    async def hand_over(self, timeout_s: float) -> None:
        """Say in the ledger that this process is going, so that nobody waits for the ttl."""
        self._is_going = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._commits_done()
                self._hand_over(self._holder)
                self.check_lease()
                await self._moved()
        except TimeoutError:
            _log.warning("the ledger has not taken this coordinator's goodbye: the ttl will do")

    async def _commits_done(self) -> None:
        while self._writing or any(claim.is_committing for claim in self._claims.values()):
            await self._any_task()

    async def _moved(self) -> None:
        while not (self._holder.has_moved or self._holder.is_lost):
            await self._any_task()

    async def _any_task(self) -> None:
        """Wait until some request is answered, or for a tick."""
        done_first = asyncio.FIRST_COMPLETED
        await asyncio.wait(self._tasks.running, timeout=LONGEST_TICK_S, return_when=done_first)

    async def aclose(self) -> None:
        """Stop. Idempotent. The lease is left to run out unless it was handed over."""
        await self._tasks.aclose()

    async def _tick_for_ever(self) -> None:
        while True:
            now_s = self._now_s()
            if now_s >= self._rests_until_s:
                guarded(self._process_failed, self._tick, now_s)
            await asyncio.sleep(LONGEST_TICK_S)

    def _tick(self, now_s: float) -> None:
        self._do_lease(self._holder, self._holder.tick(now_s))
        looks_at_all = now_s >= self._look_at_all_s
        if looks_at_all:
            after_s = LONGEST_LOOK_S if self._yield_after_s is None else self._yield_after_s / 10
            self._look_at_all_s = now_s + min(LONGEST_LOOK_S, after_s)
        for run_id, claim in list(self._claims.items()):
            if claim.is_at_rest and not looks_at_all:
                continue
            guarded(partial(self._run_failed, run_id), self._tick_claim, run_id, claim, now_s)
        self._judge_own_lease(now_s)

    def _tick_claim(self, run_id: str, claim: e.Claim, now_s: float) -> None:
        self._look_again(run_id, claim, now_s)
        if claim.state is e.ClaimState.IDLE and run_id in self._wanted_again:
            self._wanted_again.discard(run_id)
            self._do(run_id, claim.want(now_s))
        self._yield_if_unheard(run_id, claim, now_s)
        self._drop_unwanted(run_id, claim, now_s)

    # -- unexpected errors -----------------------------------------------------------------------

    def _run_failed(self, run_id: str, error: Exception) -> None:
        """What belongs to a run has failed: the run ends here, and its neighbours go on."""
        _log.error("run %s: an unexpected error", run_id, exc_info=error)
        self.give_up(run_id)
        self._runs.failed(run_id, error)

    def give_up(self, run_id: str) -> None:
        """Let go of a run after an error in it, and stay away from it for a while.

        Another process may take it at once; this one does later, from the run's register.
        """
        claim = self._claims.get(run_id)
        if claim is None:
            return
        first = Backoff(self._timing.ttl_s, PAUSE_MAX_S)
        now_s = self._now_s()
        pause_s = self._run_failures.setdefault(run_id, first).next_s(now_s)
        self._stays_away_s[run_id] = now_s + pause_s
        guarded(partial(self._forget_failed, run_id), self._let_go, run_id, claim, pause_s)

    def _let_go(self, run_id: str, claim: e.Claim, pause_s: float) -> None:
        self._do(run_id, claim.let_go(self._now_s(), pause_s))

    def _forget_failed(self, run_id: str, error: Exception) -> None:
        """Its register names this process, which takes it anew if a node asks for the run."""
        _log.error("run %s: it cannot be let go of", run_id, exc_info=error)
        self._forget(run_id)

    def _process_failed(self, error: Exception) -> None:
        """What belongs to the process has failed: it hands its lease over, and begins anew."""
        _log.error("an unexpected error: this coordinator gives up its lease", exc_info=error)
        holder, now_s = self._holder, self._now_s()
        self._rests_until_s = now_s + self._failures.next_s(now_s)
        self._holder = self._new_holder()
        self._is_suspended = False
        for run_id in list(self._claims):
            self._forget(run_id)
            self._runs.deposed(run_id, f"an error in this coordinator: {told(error)}")
        guarded(_lease_not_handed_over, self._hand_over, holder)

    def _hand_over(self, holder: e.LeaseHolder) -> None:
        self._do_lease(holder, holder.hand_over(self._now_s()))

    def _drop_unwanted(self, run_id: str, claim: e.Claim, now_s: float) -> None:
        is_busy = claim.state not in (e.ClaimState.IDLE, e.ClaimState.ELSEWHERE)
        if not is_busy and now_s - self._wanted_s.get(run_id, now_s) > FORGET_CLAIM_S:
            self._forget(run_id)

    def _judge_own_lease(self, now_s: float) -> None:
        if self._holder.is_lost:
            self._begin_anew(now_s)
        elif self._holder.may_decide(now_s):
            self._restore()
        elif self._is_going:
            self._decide_no_more()
        elif self._owned():
            self._suspend(now_s)

    def _decide_no_more(self) -> None:
        """From now on others may take the runs at once, so nobody is judged here (R5, R8)."""
        if not self._is_suspended:
            self._is_suspended = True
            self._runs.handing_over()

    def _suspend(self, now_s: float) -> None:
        # That it does not answer is known before why: requests have longer than the lease stands.
        if not self._is_suspended:
            self._sendings.reset()
            self._send_away_s = now_s + self._sendings.next_s(now_s)
        is_news = not self._is_suspended or (bool(self._outage) and not self._has_told_why)
        if is_news:
            self._is_suspended, self._has_told_why = True, bool(self._outage)
            away_s = self._holder.renewed_ago_s(now_s)
            self._runs.ledger_lost(self._outage or NO_ANSWER, away_s)
        if now_s >= self._send_away_s:
            self._send_away_s = now_s + self._sendings.next_s(now_s)
            self._runs.send_away(self._holder.renewed_ago_s(now_s))

    def _restore(self) -> None:
        if self._is_suspended:
            self._is_suspended = False
            self._outage = ""
            self._runs.ledger_restored()

    def _begin_anew(self, now_s: float) -> None:
        """R5: deposed. Every run is somebody else's now; go on under another name."""
        reason = self._holder.lost_reason
        _log.warning("this coordinator lost its lease: %s", reason)
        for run_id, claim in list(self._claims.items()):
            guarded(partial(self._run_failed, run_id), self._look_again, run_id, claim, now_s)
            self._forget(run_id)
        self._is_suspended = False
        self._holder = self._new_holder()

    def _owned(self) -> list[str]:
        return [r for r, claim in self._claims.items() if claim.state is e.ClaimState.OWNED]

    # -- runs ----------------------------------------------------------------------------------

    def want(self, run_id: str, seen: e.Seen | None = None) -> None:
        """A node of the run is here: claim it, or find out where it is.

        `seen`: since when this process has seen the owner's lease stand still.
        """
        guarded(partial(self._run_failed, run_id), self._want, run_id, self._now_s(), seen)

    def _want(self, run_id: str, now_s: float, seen: e.Seen | None = None) -> None:
        self._wanted_s[run_id] = now_s
        claim = self._claims.get(run_id)
        if claim is None:
            claim = self._claims[run_id] = e.Claim(run_id, self._ledger.ledger_id, self._holder)
        known = self._elsewhere.get(run_id)
        if claim.state is e.ClaimState.ELSEWHERE and known is not None:
            self._runs.elsewhere(run_id, known)
        if claim.state is e.ClaimState.OWNED and claim.register is not None:
            # It was won, but could not be begun.
            self._runs.won(run_id, claim.register, claim.former_host)
        if claim.state is e.ClaimState.LETTING_GO:
            self._wanted_again.add(run_id)
        self._do(run_id, claim.want(now_s, seen))

    def reached(self, run_id: str) -> None:
        """A node has come for the run: this process need not stay away from it."""
        claim = self._claims.get(run_id)
        if claim is not None and self._now_s() >= self._stays_away_s.get(run_id, 0.0):
            claim.end_pause()

    def _yield_if_unheard(self, run_id: str, claim: e.Claim, now_s: float) -> None:
        yielding = self._yielding.get(run_id)
        if yielding is None or not claim.may_decide(now_s):
            return
        if self._runs.hears_others(run_id):
            yielding.heard()
            return
        yielding.unheard(now_s)
        if yielding.should_look(now_s):
            self._spawn(self._yield_to_another(run_id, claim, yielding), run_id)

    async def _yield_to_another(self, run_id: str, claim: e.Claim, yielding: e.Resignation) -> None:
        try:
            others = await self._others(run_id)
        except (LedgerError, e.UnreadableError) as error:
            _log.debug("run %s: who else could coordinate it cannot be read: %s", run_id, error)
            return
        now_s = self._now_s()
        is_ours = self._claims.get(run_id) is claim and claim.may_decide(now_s)
        if is_ours and yielding.should_yield(others, now_s):
            _log.warning("run %s: no other node reaches this coordinator: it yields", run_id)
            self._do(run_id, claim.let_go(now_s, yielding.pause_s()))
            self._runs.deposed(run_id, "no other node reaches this coordinator: it yields")

    async def _others(self, run_id: str) -> dict[str, int] | None:
        """The versions of the leases of others that may take the run; None: nobody can tell."""
        try:
            keys = await self._ledger.keys(COORDINATORS)
        except NotImplementedError:
            return None
        found = await asyncio.gather(*map(self._ledger.read, keys))
        leases = [(e.decode_lease(each.value), each.version) for each in found if each is not None]
        return {
            lease.process: version
            for lease, version in leases
            if lease.process != self.process and e.may_take(lease, run_id)
        }

    def let_go(self, run_id: str) -> None:
        """The run is swept: its register and its logs can go, if it is still this process's.

        Else it is left to who has it, or to a sweeper: this process may have been cut off.
        """
        claim = self._claims.get(run_id)
        self._forget(run_id)
        self._run_failures.pop(run_id, None)
        self._stays_away_s.pop(run_id, None)
        if claim is not None and claim.may_decide(self._now_s()) and not claim.is_committing:
            assert claim.version is not None
            assert claim.register is not None
            self._spawn(self._delete(run_id, claim.register, claim.version), run_id)

    def _forget(self, run_id: str) -> None:
        self._claims.pop(run_id, None)
        self._tables.forget(run_id)
        self._wanted_s.pop(run_id, None)
        self._wanted_again.discard(run_id)
        self._elsewhere.pop(run_id, None)
        self._noting.pop(run_id, None)
        self._yielding.pop(run_id, None)

    def commit(
        self,
        run_id: str,
        record: RoundRecord | CloseRecord,
        settings: RunSettings | None,
        restarts: int,
        marks: Marks,
        past: Past = NO_PAST,
    ) -> None:
        """Write the record to the run's register; `committed`, `deposed` or `ledger_lost` follows.

        The same record again, after an unknown outcome, is the same bytes again.
        """
        claim = self._claims.get(run_id)
        if claim is None or claim.register is None or claim.state is not e.ClaimState.OWNED:
            self._runs.deposed(run_id, "the run is not this coordinator's")
        elif not claim.is_committing and (run_id, claim.register.term) not in self._writing:
            following = _with_record(claim.register, record, settings, restarts, marks)
            following = msgspec.structs.replace(following, past=past)
            if isinstance(record, CloseRecord):
                self._do(run_id, claim.commit(following, self._now_s()))
            else:
                self._commit_round(run_id, claim, record.members, following)

    def note(
        self, run_id: str, serial: int, marks: Marks, restarts: int, past: Past = NO_PAST
    ) -> None:
        """Write what is known of the round's members; `noted` or `deposed` follows.

        Only while nothing else is being written to the run's register.
        """
        claim = self._claims.get(run_id)
        if claim is None or claim.register is None or claim.state is not e.ClaimState.OWNED:
            self._runs.deposed(run_id, "the run is not this coordinator's")
            return
        assert not claim.is_committing, "something else is being written"
        self._noting[run_id] = serial
        changes = {"marks": marks, "restarts": restarts, "past": past}
        following = msgspec.structs.replace(claim.register, **changes)
        self._do(run_id, claim.commit(following, self._now_s()))

    def _commit_round(
        self,
        run_id: str,
        claim: e.Claim,
        members: tuple[RoundMember, ...],
        following: e.RunRegister,
    ) -> None:
        plan = self._tables.plan(run_id, members)
        following = msgspec.structs.replace(following, table=plan.table)
        if not plan.new:
            self._do(run_id, claim.commit(following, self._now_s()))
            return
        self._writing.add((run_id, following.term))
        self._spawn(self._write_table(run_id, claim, plan, following), run_id)

    async def _write_table(
        self, run_id: str, claim: e.Claim, plan: Plan, following: e.RunRegister
    ) -> None:
        """The chunks first, then the head that names them. Until it is done or the run is lost."""
        try:
            while self._is_owned_in(following.term, run_id, claim):
                try:
                    await self._tables.write(run_id, plan)
                    break
                except LedgerLimitError as error:
                    self._runs.not_taken(run_id, str(error))
                except LedgerError as error:
                    self._outage = error.message
                    _log.debug("run %s: its member table is not written: %s", run_id, error)
                await asyncio.sleep(self._timing.retry_s)
        finally:
            self._writing.discard((run_id, following.term))
        if self._is_owned_in(following.term, run_id, claim):
            self._do(run_id, claim.commit(following, self._now_s()))

    def _is_owned_in(self, term: int, run_id: str, claim: e.Claim) -> bool:
        # The term, too: the chunks of a plan belong to it, and a later one may remove them.
        is_owned = self._claims.get(run_id) is claim and claim.state is e.ClaimState.OWNED
        return is_owned and claim.register is not None and claim.register.term == term

    # -- actions -------------------------------------------------------------------------------

    def _do(self, run_id: str, actions: list[e.Action]) -> None:
        for action in actions:
            if not self._tell(run_id, action):
                self._spawn(
                    self._carry_out(run_id, partial(self._ask_for_run, run_id, action)), run_id
                )

    def _do_lease(self, holder: e.LeaseHolder, actions: list[e.Action]) -> None:
        for action in actions:
            assert isinstance(action, e.SwapLease)
            self._spawn(self._carry_out(None, partial(self._swap_own_lease, holder, action)))

    def _tell(self, run_id: str, action: e.Action) -> bool:
        """Pass news on to whoever has the runs. False: the action is a request to the engine."""
        match action:
            case e.Elected():
                self._noting.pop(run_id, None)
                self._note_won(run_id)
                self._tables.won(run_id, action.register)
                if action.register.term > 1:
                    self._spawn(self._sweep_table(run_id), run_id)
                self._runs.won(run_id, action.register, action.former_host)
            case e.RegisterWritten():
                unneeded = self._tables.committed(run_id, action.register)
                if unneeded:
                    self._spawn(self._tables.remove(run_id, unneeded), run_id)
                serial = self._noting.pop(run_id, None)
                if serial is None:
                    self._runs.committed(run_id)
                else:
                    self._runs.noted(run_id, serial)
            case e.Deposed():
                self._tables.forget(run_id)
                self._runs.deposed(run_id, action.reason)
            case e.OwnedElsewhere():
                self._elsewhere[run_id] = action.addresses
                self._runs.elsewhere(run_id, action.addresses)
            case _:
                return False
        return True

    async def _sweep_table(self, run_id: str) -> None:
        """Remove what earlier owners have left of the run's tables."""
        try:
            await self._tables.sweep(run_id)
        except LedgerError as error:
            _log.debug("run %s: parts of old member tables stay for now: %s", run_id, error)

    def _note_won(self, run_id: str) -> None:
        if self._yield_after_s is not None:
            new = e.Resignation(self._yield_after_s, self._timing.ttl_s)
            yielding = self._yielding.setdefault(run_id, new)
            yielding.won(self._now_s())

    async def _carry_out(self, run_id: str | None, request: Request) -> None:
        """One request to the engine. One that cannot be made is made again by the next tick."""
        try:
            await request()
        except (e.UnreadableError, LedgerCorruptError, LedgerFormatError) as error:
            self._unreadable(run_id, getattr(error, "message", str(error)))
        except LedgerLimitError as error:
            if run_id is None:
                self._outage = str(error)
            else:
                self._runs.not_taken(run_id, str(error))
        except LedgerError as error:
            self._outage = error.message
            _log.debug("the ledger does not answer: %s", error)

    def _unreadable(self, run_id: str | None, problem: str) -> None:
        """What cannot be read is left as it is, and not asked for again until a node asks."""
        _log.error("run %s: %s", run_id, problem)
        if run_id is None:
            return
        claim = self._claims.get(run_id)
        if claim is not None and claim.state is not e.ClaimState.OWNED:
            self._forget(run_id)
        self._runs.unreadable(run_id, problem)

    async def _swap_own_lease(self, holder: e.LeaseHolder, action: e.SwapLease) -> None:
        outcome = await self._swap(lease_key(action.process), action.expected, action.value)
        now_s = self._now_s()
        self._do_lease(holder, holder.swapped(action, outcome, now_s))
        if holder is self._holder:
            self._lease_answered(now_s)

    def _lease_answered(self, now_s: float) -> None:
        for run_id, claim in list(self._claims.items()):
            guarded(partial(self._run_failed, run_id), self._look_again, run_id, claim, now_s)
        self._judge_own_lease(now_s)

    def _look_again(self, run_id: str, claim: e.Claim, now_s: float) -> None:
        self._do(run_id, claim.tick(now_s))

    async def _ask_for_run(self, run_id: str, action: e.Action) -> None:
        claim = self._claims.get(run_id)
        if claim is None:
            return
        match action:
            case e.ReadRun():
                found = await self._read(run_key(run_id))
                more = claim.run_read(action, found, self._now_s())
            case e.ReadLease():
                found = await self._read(lease_key(action.process))
                more = claim.lease_read(action, found, self._now_s())
            case e.ReadFloor():
                more = claim.floor_read(action, await self._read(FLOOR), self._now_s())
            case e.SwapLease():
                outcome = await self._swap(lease_key(action.process), action.expected, action.value)
                more = claim.lease_swapped(action, outcome, self._now_s())
            case e.SwapRun():
                outcome = await self._swap(run_key(run_id), action.expected, action.value)
                more = claim.run_swapped(action, outcome, self._now_s())
            case _:
                raise AssertionError(action)
        if self._claims.get(run_id) is claim:
            self._do(run_id, more)

    async def _read(self, key: str) -> Versioned | None:
        return await self._ledger.read(key)

    async def _swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        outcome = await self._ledger.swap(key, expected, value)
        self._outage = outcome.reason if isinstance(outcome, Unknown) else ""
        return outcome

    async def _delete(self, run_id: str, register: e.RunRegister, version: int) -> None:
        """Close the run before its logs go: should it be another's by now, nothing is done (R5)."""
        try:
            if register.close is None:
                outcome = await self._ledger.swap(run_key(run_id), version, _forgotten(register))
                if not isinstance(outcome, Swapped):
                    return  # It is another's; or nobody knows, and who comes or sweeps finds it.
                version = outcome.version
            await delete_run(self._ledger, register, version)
        except (LedgerError, e.UnreadableError) as error:
            _log.warning("run %s could not be swept from the ledger: %s", run_id, error)

    def _spawn(self, work: Coroutine[Any, Any, None], run_id: str = "") -> asyncio.Task[None]:
        """Run it in the background, for one run or (without `run_id`) for the whole process."""
        failed = partial(self._run_failed, run_id) if run_id else self._process_failed
        return self._tasks.spawn(work, failed)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


def _lease_not_handed_over(error: Exception) -> None:
    _log.error("the lease cannot be handed over, so it runs out", exc_info=error)


async def raise_floor(ledger: Ledger, register: e.RunRegister) -> None:
    """Let runs that begin from now on begin above this one (R1, R13). Raises LedgerError."""
    found = await ledger.read(FLOOR)
    while True:
        floor = e.NO_FLOOR if found is None else e.decode_floor(found.value)
        raised = floor.raised(register)
        if raised == floor and found is not None:
            return
        outcome = await ledger.swap(
            FLOOR, None if found is None else found.version, e.encode(raised)
        )
        match outcome:
            case Swapped():
                return
            case Unknown():
                raise outcome.error or LedgerUnreachableError(outcome.reason)
            case Conflict(current):
                found = current


async def delete_run(ledger: Ledger, register: e.RunRegister, version: int) -> None:
    """Remove a closed run, unless its register has moved on. Raises LedgerError.

    The floor comes first, and the register goes last: who finds no register finds the floor raised.
    The logs first: once the register is gone the run may begin anew, with logs of the same names.
    Only of a closed run: an open one may be taken over meanwhile, and then its log is needed (R10).
    """
    run_id = register.run_id
    await raise_floor(ledger, register)
    if ledger.has_log:
        for log in await ledger.logs(log_prefix(run_id)):
            current = await ledger.read(run_key(run_id))
            if current is None or current.version != version:
                return
            await ledger.drop_log(log)
    await remove_all(ledger, run_id, register.term)
    await ledger.delete(run_key(run_id), version)


def _with_record(
    register: e.RunRegister,
    record: RoundRecord | CloseRecord,
    settings: RunSettings | None,
    restarts: int,
    marks: Marks,
) -> e.RunRegister:
    """The head with this record; the table of a round is put in when it is known where it is."""
    if isinstance(record, CloseRecord):
        changes: dict[str, Any] = {"close": bounded_close(record)}
    else:
        changes = {"round": record.head}
    return msgspec.structs.replace(
        register, settings=settings, restarts=restarts, marks=marks, **changes
    )


def _forgotten(register: e.RunRegister) -> bytes:
    """The owner's own close of a run that nobody is in."""
    close, sequence = _nobody_came(register), register.sequence + 1
    return e.encode(msgspec.structs.replace(register, sequence=sequence, close=close))


def closed_as_abandoned(register: e.RunRegister) -> e.RunRegister:
    """Somebody else's close of a run whose owner's lease has ended: a seal of its own (R5)."""
    return msgspec.structs.replace(
        register, term=register.term + 1, owner="", sequence=0, close=_nobody_came(register)
    )


def _nobody_came(register: e.RunRegister) -> CloseRecord:
    why = "nobody was in it for too long"
    return CloseRecord(Outcome.STOPPED, why, "", register.term, register.number)
