"""The state of one run: who is in it, when a round is formed, and when it ends.

`Membership.step(event, now_s)` changes the state in place and returns what must be done about it.
An event is first noted by a handler, chosen by the table in `transitions.py`; then `_advance`
looks at the counts and does what the rules ask for: declares losses, closes a case, seals a round,
ends the run. So a rule stands in one place, whatever the event that made it apply.

This file holds the state and the handlers. The decisions that can stand alone do: `sealing` (is
the round full enough?), `suspicion` (who is lost?), `causes` (whose fault was it?), `ranks`.
"""

from __future__ import annotations

from typing import Final

from rallypoint.core import causes, ranks, reasons, sealing
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.causes import Budget, Case
from rallypoint.core.effects import Effect, Timer, TimerKind
from rallypoint.core.reasons import Refusal, RefusalCode, Waiting
from rallypoint.core.roster import File, Member, Roster
from rallypoint.core.sealing import Call, Decision, Gathering
from rallypoint.core.suspicion import Suspicion
from rallypoint.core.transitions import TRANSITIONS
from rallypoint.core.values import (
    Change,
    ChangeKind,
    CloseRecord,
    Link,
    MemberState,
    NodeId,
    NodeInfo,
    Outcome,
    Phase,
    RoundHead,
    RoundMember,
    RoundRecord,
    RunSettings,
    Seat,
    table_digest,
)

BACKOFF_DOUBLINGS_MAX: Final = 6
"""A name that keeps coming and going waits at most 2**6 times the scale-up delay."""
STEADY_S: Final = 60.0
"""A member that stayed this long in a round is no longer held to come and go."""
REMEMBERED_MAX: Final = 1_024
"""How many names that have left are remembered, for their backoff and for telling them why."""


class Membership:
    """The members and rounds of one run. Not thread-safe: one owner steps it.

    `run_id` and `ledger_id` only name things; `term` goes into what is committed (R5).
    `members_max` bounds the roster: a node beyond it is refused.
    """

    def __init__(
        self, run_id: str, *, ledger_id: str = "", term: int = 1, members_max: int = 100_000
    ) -> None:
        self.run_id = run_id
        self.ledger_id = ledger_id
        self.term = term
        self.members_max = members_max
        self.phase = Phase.GATHERING
        self.settings: RunSettings | None = None
        self.roster = Roster()
        self.round: RoundRecord | None = None
        self.close: CloseRecord | None = None
        self.budget = Budget()
        self.case: Case | None = None
        self.suspended_reason = ""
        self.committing: RoundRecord | CloseRecord | None = None

        self._suspicion = Suspicion(self.roster)
        self._rivals: dict[str, on.NodeAttached] = {}
        self._rival_serials: dict[str, int] = {}
        self._finished = 0
        self._departed: dict[str, Change] = {}
        self._flaps: dict[str, int] = {}
        self._deferred: dict[tuple[str, str], on.Event] = {}

        self._interrupted: Change | None = None
        self._close_wanted: CloseRecord | None = None
        self._resume_phase = Phase.GATHERING

        self._call = Call.NOT_YET
        self._call_serial = 0
        self._call_ends_s = 0.0
        self._settled = False
        self._settle_serial = 0
        self._probe_serial = 0
        self._case_serial = 0
        self._case_settled = False
        self._scale_up_serial = 0
        self._scale_up_at_s: float | None = None
        self._let_newcomers_in = False

        self._since_s = 0.0
        self._closed_at_s = 0.0
        self._now_s = 0.0
        self._effects: list[Effect] = []

    # -- the way in ----------------------------------------------------------------------------

    def step(self, event: on.Event, now_s: float) -> list[Effect]:
        """Take one event at `now_s` (seconds, never going back) and return what to do about it."""
        self._now_s = now_s
        self._effects = []
        self._take(event)
        effects, self._effects = self._effects, []
        return effects

    def _take(self, event: on.Event) -> None:
        cell = TRANSITIONS[self.phase, type(event)]
        getattr(self, cell.handler)(event)
        self._advance()

    # -- what can be asked ---------------------------------------------------------------------

    @property
    def number(self) -> int:
        """The number of the last committed round; 0 before the first."""
        return self.round.head.number if self.round else 0

    @property
    def phase_of_work(self) -> Phase:
        """The phase, or while SUSPENDED the one that the run comes back to."""
        return self._resume_phase if self.phase is Phase.SUSPENDED else self.phase

    @property
    def restart_count(self) -> int:
        """How many rounds have been charged to the run's restart budget."""
        return self.budget.spent

    def waiting(self, now_s: float) -> Waiting | None:
        """Why no round is active, as data of bounded size; None if one is, or the run is over."""
        settings = self.settings
        if self.phase in (Phase.ACTIVE, Phase.CLOSED) or settings is None:
            return None
        ready = self.roster.count(File.READY_SURVIVOR) + self.roster.count(File.NEWCOMER)
        return Waiting(
            ready=ready,
            minimum=settings.min_nodes,
            maximum=settings.max_nodes,
            missing=reasons.first_names(self.roster.names(File.PLACE)),
            missing_count=self.roster.count(File.PLACE),
            last_call_s=self._last_call_left_s(now_s),
            suspects=reasons.first_names(m.name for m in self.roster.troubled()),
            guard_s=self._suspicion.guard_left_s(settings, now_s),
            committing=self.phase is Phase.COMMITTING,
            suspended=self.suspended_reason if self.phase is Phase.SUSPENDED else "",
            since_s=now_s - self._since_s,
            attached=len(self.roster),
        )

    def closed_ago_s(self, now_s: float) -> float:
        """How long the run has been closed, in seconds."""
        return max(0.0, now_s - self._closed_at_s)

    def seats(self) -> list[Seat]:
        """The seat of every member of the last round, in node-rank order. O(N)."""
        if self.round is None:
            return []
        workers = {member.name: member.workers for member in self.round.members}
        firsts = ranks.worker_ranks(tuple(workers), workers)
        return [
            Seat(rank, first, count)
            for rank, (first, count) in enumerate(zip(firsts, workers.values(), strict=True))
        ]

    def is_standby(self, member: Member) -> bool:
        """Whether it is ready, and the round is on without it."""
        return member.file is File.NEWCOMER and self.phase is Phase.ACTIVE

    def freeze(self) -> tuple[object, ...]:
        """A hashable picture of all that the rules can see, for tests and the model checker."""
        return (
            self.phase,
            self.number,
            self.budget.spent,
            self._call,
            self._settled,
            self._suspicion.guarding,
            self._suspicion.unanswered,
            self.close,
            tuple(member.freeze() for member in self.roster),
            tuple(self._rivals),
        )

    # -- nodes come ----------------------------------------------------------------------------

    def _on_attached(self, event: on.NodeAttached) -> None:
        refusal = self._refusal(event)
        if refusal is not None:
            self._do(do.Refuse(event.link, refusal))
            return
        member = self.roster.get(event.node.name)
        if member is None:
            self._admit(event)
        elif member.info.incarnation == event.node.incarnation:
            self._resume(member, event)
        else:
            self._on_rival(member, event)

    def _refusal(self, event: on.NodeAttached) -> Refusal | None:
        """Why the node cannot come in, if it cannot. The first node's settings become the run's."""
        if event.settings.rank_policy not in ranks.POLICIES:
            known = ", ".join(sorted(ranks.POLICIES))
            message = f"unknown rank policy {event.settings.rank_policy!r}"
            return Refusal(RefusalCode.MALFORMED, message, hint=f"known policies: {known}")
        if self.settings is None or not len(self.roster):
            self.settings = event.settings
        conflicts = self.settings.conflicts(event.settings)
        if conflicts:
            return reasons.conflict(self.run_id, conflicts)
        if len(self.roster) >= self.members_max and event.node.name not in self.roster:
            message = f"run {self.run_id!r} has {self.members_max} members, and takes no more"
            return Refusal(RefusalCode.LIMIT, message)
        return None

    def _admit(self, event: on.NodeAttached) -> None:
        member = self.roster.add(event.node, event.link)
        change = self._departed.get(member.name)
        standing = do.Standing(change=change)
        self._do(do.Welcome(event.link, member.id, resumed=False, standing=standing))

    def _attach_suspended(self, event: on.NodeAttached) -> None:
        member = self.roster.get(event.node.name)
        if member is not None and member.info.incarnation != event.node.incarnation:
            self._defer(event)
        else:
            self._on_attached(event)

    def _resume(self, member: Member, event: on.NodeAttached) -> None:
        member.link_id = event.link
        self._suspicion.heard(member)
        self._suspicion.answered(member.name)
        self._do(do.Welcome(event.link, member.id, resumed=True, standing=self._standing(member)))

    def _standing(self, member: Member) -> do.Standing:
        ready = member.state is MemberState.READY
        in_round = member.file is File.IN_ROUND or member.state is MemberState.DONE
        round_number = self.number if in_round else 0
        change = self.case.change if self.case and member.survivor else None
        return do.Standing(round_number, change, ready, self.is_standby(member))

    def _refuse_closed(self, event: on.NodeAttached) -> None:
        assert self.close is not None
        refusal = reasons.run_closed(self.run_id, self.close, self.closed_ago_s(self._now_s))
        self._do(do.Refuse(event.link, refusal))

    # -- two nodes of one name -----------------------------------------------------------------

    def _on_rival(self, member: Member, event: on.NodeAttached) -> None:
        """Another incarnation wants the name: the older is probed, unless it is gone already."""
        waiting = self._rivals.get(member.name)
        if waiting is not None and waiting.node.incarnation != event.node.incarnation:
            self._do(do.Refuse(event.link, reasons.name_taken(member.name, member.info.host)))
            return
        self._rivals[member.name] = event
        if member.link is Link.DISCONNECTED:
            self._supersede(member)
            return
        assert self.settings is not None
        timer = self._suspicion.timer(TimerKind.NAME, member.name)
        self._rival_serials[member.name] = timer.serial
        self._do(do.ProbeNode(member.id), do.SetTimer(timer, self.settings.probe_s))

    def _supersede(self, member: Member) -> None:
        rival = self._rivals.pop(member.name)
        message = f"a newer start of node {member.name!r} has taken its place in the run"
        self._do(do.Supersede(member.id, Refusal(RefusalCode.SUPERSEDED, message)))
        self._lose([member], "superseded by a newer start of the same name")
        self._admit(rival)

    def _refuse_rival(self, member: Member) -> None:
        rival = self._rivals.pop(member.name, None)
        if rival is not None:
            refusal = reasons.name_taken(member.name, member.info.host)
            self._do(do.Refuse(rival.link, refusal))

    # -- nodes ask for things ------------------------------------------------------------------

    def _on_ready(self, event: on.NodeReady) -> None:
        member = self.roster.living(event.node)
        if member is None:
            return
        self._suspicion.answered(member.name)
        if member.file in (File.DONE, File.DEPARTING):
            return
        if member.file is File.IN_ROUND:
            # R4: only a node that names the round it is in leaves it; anything else is a repeat.
            if event.leaving_round != self.number:
                return
            self._break(causes.happened(ChangeKind.READY_AGAIN, self.number, [member.name]))
        self._mark_ready(member, event)

    def _mark_ready(self, member: Member, event: on.NodeReady) -> None:
        member.bootstrap = event.bootstrap
        member.workers = event.workers
        if member.state is MemberState.READY:
            return
        member.state = MemberState.READY
        member.eligible_s = self._now_s + self._entry_delay_s(member.name)
        self.roster.refile(member)
        if self.is_standby(member):
            self._do(do.Notify(member.id, standby=True))

    def _on_worker_failed(self, event: on.WorkerFailed) -> None:
        member = self.roster.living(event.node)
        if member is None or event.round != self.number:
            return
        self._suspicion.answered(member.name)
        if member.file is File.IN_ROUND:
            self._break(causes.failed(self.number, member.name, event.failure))
            self._suspicion.answered(member.name)
        elif self.case and self.case.round == event.round:
            self.case.add_failure(member.name, event.failure)

    def _on_done(self, event: on.NodeDone) -> None:
        member = self.roster.living(event.node)
        if member is None or event.round != self.number or member.state is MemberState.READY:
            return
        self._suspicion.answered(member.name)
        if member.state is not MemberState.DEPARTING:
            self._finish(member)

    def _finish(self, member: Member) -> None:
        self._finished += 1
        member.state = MemberState.DONE
        member.survivor = False
        self.roster.refile(member)

    def _on_departing(self, event: on.NodeDeparting) -> None:
        member = self.roster.living(event.node)
        if member is None or member.file in (File.DEPARTING, File.DONE):
            return
        was_in_round = member.file is File.IN_ROUND
        self._note_interruption(member, ChangeKind.NODE_LEFT, event.reason)
        member.state = MemberState.DEPARTING
        member.survivor = False
        self.roster.refile(member)
        if was_in_round:
            self._break(
                causes.happened(ChangeKind.NODE_LEFT, self.number, [member.name], event.reason)
            )

    def _on_left(self, event: on.NodeLeft) -> None:
        member = self.roster.living(event.node)
        if member is None:
            self._drop_rival(event.node, None)
            return
        self._remove([member], ChangeKind.NODE_LEFT, event.reason)

    def _on_close_requested(self, event: on.CloseRequested) -> None:
        self._close(event.outcome, event.reason, by=event.by)

    # -- nodes fall silent ---------------------------------------------------------------------

    def _on_connection_lost(self, event: on.ConnectionLost) -> None:
        member = self.roster.living(event.node)
        if member is None or member.link_id != event.link:
            self._drop_rival(event.node, event.link)
            return
        assert self.settings is not None
        self._do(*self._suspicion.disconnected(member, self.settings, self._now_s))
        if member.name in self._rivals:
            self._supersede(member)

    def _drop_rival(self, node: NodeId, link: int | None) -> None:
        rival = self._rivals.get(node.name)
        if rival and rival.node.id == node and link in (None, rival.link):
            del self._rivals[node.name]

    def _on_silent(self, event: on.NodeSilent) -> None:
        member = self.roster.living(event.node)
        if member is None or member.link is not Link.CONNECTED or self.settings is None:
            return
        self._do(
            *self._suspicion.silent(member, self.settings, self._now_s, event.silent_s),
        )

    def _on_heard(self, event: on.NodeHeard) -> None:
        member = self.roster.living(event.node)
        if member is not None and member.link is Link.SILENT:
            self._suspicion.heard(member)
            self._suspicion.answered(member.name)

    def _on_probe_answered(self, event: on.ProbeAnswered) -> None:
        member = self.roster.living(event.node)
        if member is not None:
            self._suspicion.answered(member.name)
            self._refuse_rival(member)

    def _note_disconnected(self, event: on.ConnectionLost) -> None:
        """SUSPENDED: nobody is judged, so no deadline begins before the ledger is back."""
        member = self.roster.living(event.node)
        if member is not None and member.link_id == event.link:
            member.link = Link.DISCONNECTED
            self.roster.refile(member)

    # -- timers --------------------------------------------------------------------------------

    def _on_timer(self, event: on.TimerFired) -> None:
        timer = event.timer
        match timer.kind:
            case TimerKind.LAST_CALL if timer.serial == self._call_serial:
                self._call = Call.OVER
            case TimerKind.SETTLE if timer.serial == self._settle_serial:
                self._settled = True
            case TimerKind.CASE if timer.serial == self._case_serial:
                self._case_settled = True
            case TimerKind.PROBE if timer.serial == self._probe_serial:
                self._suspicion.probe_over()
            case TimerKind.SCALE_UP if timer.serial == self._scale_up_serial:
                self._scale_up_at_s = None
                self._let_newcomers_in = True
            case TimerKind.NAME if timer.serial == self._rival_serials.get(timer.name):
                self._name_unanswered(timer)
            case TimerKind.GRACE | TimerKind.LOST | TimerKind.MASS:
                self._suspicion.deadline_passed(timer)
                self._drop_departing(timer)
            case _:
                """A stale timer: what it was set for is over."""

    def _name_unanswered(self, timer: Timer) -> None:
        member = self.roster.get(timer.name)
        if member is not None and timer.name in self._rivals:
            self._supersede(member)

    def _drop_departing(self, timer: Timer) -> None:
        """A departing node that went away without a goodbye has left, and nobody minds."""
        member = self.roster.get(timer.name)
        if member and member.file is File.DEPARTING and member.link_timer == timer.serial:
            self._remove([member], ChangeKind.NODE_LEFT, "it was stopping")

    # -- the ledger ----------------------------------------------------------------------------

    def _on_committed(self, event: on.Committed) -> None:
        record, self.committing = self.committing, None
        if isinstance(record, CloseRecord):
            self._enter(Phase.CLOSED)
            self.close = record
            self._closed_at_s = self._now_s
            self._do(do.Announce(record))
        elif record is not None:
            self._begin(record)

    def _on_commit_refused(self, event: on.CommitRefused) -> None:
        # R5: a deposed coordinator decides nothing more.
        self._suspend(event.reason)
        self._do(do.StepDown(event.reason))

    def _on_ledger_lost(self, event: on.LedgerLost) -> None:
        self._suspend(event.reason)

    def _suspend(self, reason: str) -> None:
        if self.phase is not Phase.SUSPENDED:
            self._resume_phase = self.phase
            self._enter(Phase.SUSPENDED)
            rivals, self._rivals = self._rivals, {}
            for rival in rivals.values():
                self._defer(rival)
        self.suspended_reason = reason

    def _on_ledger_restored(self, event: on.LedgerRestored) -> None:
        self._enter(self._resume_phase)
        self.suspended_reason = ""
        if self.settings is not None:
            self._do(*self._suspicion.rearm(self.settings, self._now_s))
        if self.committing is not None:
            self._do(do.Commit(self.committing))
        deferred, self._deferred = self._deferred, {}
        for event_kept in deferred.values():
            self._take(event_kept)

    def _defer(self, event: on.Event) -> None:
        """SUSPENDED: keep a request until the ledger is back; the last of its kind per node."""
        node = getattr(event, "node", None)
        key = (type(event).__name__, node.name if isinstance(node, NodeId | NodeInfo) else "")
        self._deferred.pop(key, None)
        self._deferred[key] = event

    def _ignore(self, event: on.Event) -> None:
        """Nothing changes."""

    # -- what the rules ask for ----------------------------------------------------------------

    def _advance(self) -> None:
        """Do all that the rules ask for, given what is known now."""
        if self.settings is None or self.phase in (Phase.SUSPENDED, Phase.CLOSED):
            return
        self._do(*self._suspicion.update_guard(self.settings, self._now_s))
        self._declare_losses()
        self._close_case()
        if self.phase is Phase.ACTIVE:
            self._advance_active(self.settings)
        if self.phase is Phase.GATHERING:
            self._advance_gathering(self.settings)

    def _declare_losses(self) -> None:
        if not self._suspicion.has_overdue:
            return
        lost = self._suspicion.lost()
        if lost:
            self._lose(lost, _how_lost(lost[0]))

    def _advance_active(self, settings: RunSettings) -> None:
        if not self.roster.count(File.IN_ROUND):
            self._end_of_active()
            return
        in_round = self.roster.count(File.IN_ROUND)
        is_free = in_round < settings.max_nodes and not self._finished
        if self.roster.count(File.NEWCOMER) and is_free:
            self._let_in()

    def _end_of_active(self) -> None:
        """Nobody of the round is at work any more: all are done (losses break a round)."""
        self._close(Outcome.SUCCEEDED, "all nodes have finished")

    def _let_in(self) -> None:
        """Announce newcomers, coalesced: those that keep coming and going wait longer."""
        if self._let_newcomers_in:
            self._let_newcomers_in = False
            names = [m.name for m in self._eligible_newcomers()]
            if names:
                self._break(causes.happened(ChangeKind.NODES_JOINED, self.number, names))
                return
        at_s = min(m.eligible_s for m in self.roster.members(File.NEWCOMER))
        if self._scale_up_at_s is None or at_s < self._scale_up_at_s:
            timer = self._suspicion.timer(TimerKind.SCALE_UP, round_number=self.number)
            self._scale_up_serial, self._scale_up_at_s = timer.serial, at_s
            self._do(do.SetTimer(timer, max(0.0, at_s - self._now_s)))

    def _eligible_newcomers(self) -> list[Member]:
        newcomers = self.roster.members(File.NEWCOMER)
        return [m for m in newcomers if m.eligible_s <= self._now_s]

    def _entry_delay_s(self, name: str) -> float:
        assert self.settings is not None
        doublings = min(self._flaps.get(name, 0), BACKOFF_DOUBLINGS_MAX)
        return float(self.settings.scale_up_delay_s * 2**doublings)

    def _advance_gathering(self, settings: RunSettings) -> None:
        if self._cannot_be_met(settings):
            return
        decision = sealing.decide(self._gathering(settings))
        if decision is not Decision.SETTLE:
            self._settled, self._settle_serial = False, 0
        if decision.seals:
            self._seal(settings)
        elif decision is Decision.SETTLE:
            self._arm_settle(settings)
        if decision in (Decision.SETTLE, Decision.LAST_CALL) and self._call is Call.NOT_YET:
            self._arm_last_call(settings)

    def _gathering(self, settings: RunSettings) -> Gathering:
        return Gathering(
            minimum=settings.min_nodes,
            maximum=settings.max_nodes,
            expected=settings.expected_nodes,
            ready_survivors=self.roster.count(File.READY_SURVIVOR),
            places_held=self.roster.count(File.PLACE),
            newcomers=self.roster.count(File.NEWCOMER),
            settled=self._settled,
            call=self._call,
        )

    def _cannot_be_met(self, settings: RunSettings) -> bool:
        """End a run whose remaining nodes are too few because others are done."""
        done, remaining = self._finished, self.roster.awaited_count
        if not done or remaining >= settings.min_nodes:
            return False
        if not remaining and self.case is None:
            self._close(Outcome.SUCCEEDED, "all nodes have finished")
        else:
            reason = f"{remaining} nodes remain of at least {settings.min_nodes}: {done} are done"
            self._close(Outcome.NOT_ENOUGH, reason, cause=self.case.change if self.case else None)
        return True

    def _arm_settle(self, settings: RunSettings) -> None:
        if not self._settle_serial:
            timer = self._suspicion.timer(TimerKind.SETTLE, round_number=self.number + 1)
            self._settle_serial = timer.serial
            self._do(do.SetTimer(timer, settings.settle_s))

    def _arm_last_call(self, settings: RunSettings) -> None:
        timer = self._suspicion.timer(TimerKind.LAST_CALL, round_number=self.number + 1)
        self._call, self._call_serial = Call.RUNNING, timer.serial
        self._call_ends_s = self._now_s + settings.last_call_s
        self._do(do.SetTimer(timer, settings.last_call_s))

    # -- a round begins ------------------------------------------------------------------------

    def _seal(self, settings: RunSettings) -> None:
        """Give the round to the ledger. An open case is closed first: it may end the run."""
        self._close_case(forced=True)
        if self.phase is not Phase.GATHERING:
            return
        record = self._record(settings)
        self.committing = record
        self._enter(Phase.COMMITTING)
        self._do(do.Commit(record))

    def _record(self, settings: RunSettings) -> RoundRecord:
        chosen = self._chosen(settings)
        by_name = {member.name: member for member in chosen}
        previous = [m.name for m in self.round.members] if self.round else []
        candidates = [ranks.Candidate(m.name, m.info.host, m.workers) for m in chosen]
        order = ranks.order(settings.rank_policy, previous, candidates)
        members = tuple(_row(by_name[name]) for name in order)
        number, bootstrap = self.number + 1, by_name[order[0]].bootstrap
        head = RoundHead(
            number=number,
            term=self.term,
            nodes=len(members),
            size=sum(member.workers for member in members),
            bootstrap=bootstrap,
            digest=table_digest(number, members, bootstrap),
            restart_count=self.budget.spent,
        )
        return RoundRecord(head, members)

    def _chosen(self, settings: RunSettings) -> list[Member]:
        """Survivors first, then newcomers in order of arrival, as many as there are places."""
        count = self._gathering(settings).chosen
        survivors = self.roster.members(File.READY_SURVIVOR)
        newcomers = sorted(self.roster.members(File.NEWCOMER), key=lambda m: m.arrival)
        return (survivors + newcomers)[:count]

    def _begin(self, record: RoundRecord) -> None:
        """The ledger has the round. What happened meanwhile comes after it, not instead of it."""
        self.round = record
        interrupted, self._interrupted = self._interrupted, None
        self._reset_gathering()
        if interrupted is not None:
            self._begin_again(record, interrupted)
            return
        self._enter(Phase.ACTIVE)
        self.case = None
        self._seat_members(record)
        if self._close_wanted is not None:
            self._commit_close(self._close_wanted)
            return
        self._do(do.Publish(record))
        for member in self.roster.members(File.NEWCOMER):
            self._do(do.Notify(member.id, standby=True))

    def _begin_again(self, record: RoundRecord, change: Change) -> None:
        """A member went while the round was being written: nobody was given it, so form another.

        Its members are still ready, and keep their places.
        """
        self.case = Case(change, self._now_s)
        in_record = {member.name: None for member in record.members}
        for member in self.roster:
            self._stand_down(member)
            member.survivor = member.name in in_record and member.state is MemberState.READY
        self._refile_all()
        self._enter(Phase.GATHERING)
        if self._close_wanted is not None:
            self._commit_close(self._close_wanted)

    def _seat_members(self, record: RoundRecord) -> None:
        """Members of the round become active; whoever let the call pass is passive from now on."""
        for member in self.roster:
            self._stand_down(member)
        for row in record.members:
            member_now = self.roster.get(row.name)
            if member_now is not None:
                member_now.state = MemberState.ACTIVE
        self._refile_all()

    def _stand_down(self, member: Member) -> None:
        if member.state is MemberState.ACTIVE:
            member.state = MemberState.IDLE
        member.survivor = False

    def _refile_all(self) -> None:
        for member in self.roster:
            self.roster.refile(member)

    def _reset_gathering(self) -> None:
        self._call, self._call_serial = Call.NOT_YET, 0
        self._settled, self._settle_serial = False, 0
        self._scale_up_serial, self._scale_up_at_s = 0, None
        self._let_newcomers_in = False

    # -- a round ends --------------------------------------------------------------------------

    def _break(self, change: Change) -> None:
        """End the active round, tell its members once, and gather for the next."""
        assert self.phase is Phase.ACTIVE
        stayed_s = self._now_s - self._since_s
        self._enter(Phase.GATHERING)
        self._reset_gathering()
        self.case = Case(change, self._now_s)
        survivors = self.roster.members(File.IN_ROUND)
        for member in survivors:
            member.survivor = True
            self.roster.refile(member)
            if stayed_s >= STEADY_S:
                self._flaps.pop(member.name, None)
        self._do(do.Break(change))
        if not self.case.closed:
            self._open_probe([member.name for member in survivors])

    def _open_probe(self, names: list[str]) -> None:
        """Cause before consequence: ask who is still there before anybody is blamed."""
        assert self.settings is not None
        self._suspicion.probe(names)
        probe = self._suspicion.timer(TimerKind.PROBE, round_number=self.number)
        case = self._suspicion.timer(TimerKind.CASE, round_number=self.number)
        self._probe_serial, self._case_serial = probe.serial, case.serial
        self._case_settled = False
        self._do(
            do.ProbeRound(self.number),
            do.SetTimer(case, self.settings.settle_s),
            do.SetTimer(probe, self.settings.probe_s),
        )

    def _close_case(self, *, forced: bool = False) -> None:
        """Name the cause once it is known, and charge it to the budget if it is the program's."""
        case = self.case
        if case is None or case.closed or not (forced or self._case_is_clear(case)):
            return
        change = case.close(len(self._suspicion.unanswered))
        self._suspicion.end_probe()
        assert self.settings is not None
        limit = self.settings.max_restarts
        is_borne = self.budget.charge(change, limit)
        self._do(do.Verdict(change))
        if not is_borne:
            reason = f"{reasons.describe(change)}; {_budget_text(limit)}"
            self._close(Outcome.FAILED, reason, cause=change)

    def _case_is_clear(self, case: Case) -> bool:
        if self._suspicion.unanswered:
            return False
        return self._suspicion.probe_is_over if case.needs_time() else self._case_settled

    def _lose(self, members: list[Member], detail: str) -> None:
        """Members are gone without a goodbye: one burst breaks the round once, and names them."""
        self._remove(members, ChangeKind.NODE_LOST, detail)

    def _remove(self, members: list[Member], kind: ChangeKind, detail: str) -> None:
        """Take members out; if they were in the round and not done with it, it is broken."""
        since_s = max(map(self._trouble_s, members))
        in_round = [m.name for m in members if m.file is File.IN_ROUND]
        survivors = [m.name for m in members if m.survivor]
        for member in members:
            own = causes.happened(kind, self.number, [member.name], detail, since_s)
            self._take_out(member, own)
        if in_round and self.phase is Phase.ACTIVE:
            self._break(causes.happened(kind, self.number, in_round, detail, since_s))
        elif survivors and self.case is not None and kind is ChangeKind.NODE_LOST:
            self.case.add_loss(causes.happened(kind, self.number, survivors, detail, since_s))
        if not len(self.roster) and self.phase is Phase.GATHERING:
            self._reset_gathering()

    def _trouble_s(self, member: Member) -> float:
        return 0.0 if member.link is Link.CONNECTED else self._now_s - member.trouble_since_s

    def _take_out(self, member: Member, change: Change) -> None:
        self._note_interruption(member, change.kind, change.detail)
        self._remember(member, change)
        self.roster.remove(member)
        self._suspicion.gone(member)
        self._do(do.Forget(member.id, reasons.describe(change)))

    def _remember(self, member: Member, change: Change) -> None:
        if member.file is not File.DONE:
            self._flaps[member.name] = self._flaps.get(member.name, 0) + 1
        self._departed.pop(member.name, None)
        self._departed[member.name] = change
        for memory in (self._departed, self._flaps):
            while len(memory) > REMEMBERED_MAX:
                del memory[next(iter(memory))]

    def _note_interruption(self, member: Member, kind: ChangeKind, detail: str) -> None:
        """COMMITTING: remember the first member of the round being written that went away."""
        record = self.committing
        if self._interrupted is not None or not isinstance(record, RoundRecord):
            return
        if any(row.name == member.name for row in record.members):
            number = record.head.number
            self._interrupted = causes.happened(kind, number, [member.name], detail)

    # -- the run ends --------------------------------------------------------------------------

    def _close(
        self, outcome: Outcome, reason: str, *, by: str = "", cause: Change | None = None
    ) -> None:
        """End the run: at once, or after the record that is being written (R6)."""
        record = CloseRecord(outcome, reason, by, self.term, self.number, cause)
        if self.phase is Phase.COMMITTING:
            self._close_wanted = self._close_wanted or record
        else:
            self._commit_close(record)

    def _commit_close(self, record: CloseRecord) -> None:
        self.committing = record
        self._close_wanted = None
        self._enter(Phase.COMMITTING)
        self._do(do.Commit(record))

    # -- helpers -------------------------------------------------------------------------------

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._since_s = self._now_s

    def _do(self, *effects: Effect) -> None:
        self._effects.extend(effects)

    def _last_call_left_s(self, now_s: float) -> float | None:
        return max(0.0, self._call_ends_s - now_s) if self._call is Call.RUNNING else None


def _row(member: Member) -> RoundMember:
    info = member.info
    return RoundMember(
        info.name, info.incarnation, info.host, info.addresses, member.workers, info.labels
    )


def _how_lost(member: Member) -> str:
    if member.link is Link.DISCONNECTED:
        return "its connection closed and was not resumed"
    return "it fell silent and did not answer"


def _budget_text(limit: int | None) -> str:
    return f"the run's restart budget ({limit}) is spent" if limit else "no restarts are allowed"
