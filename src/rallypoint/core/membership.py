"""The state of one run: its members, when a round is formed, and when the run ends.

`Membership.step(event, now_s)` changes the state in place and returns what to do about it. A step
has two parts. First a handler takes the event; `transitions` says which one. Then `_advance` looks
at the counts and does what the rules demand: it declares losses, closes a case, forms a round, or
ends the run. So each rule is in one place, for all events.

This file has `step`, the handlers, and the order of the rules. Everything that can be separate is
elsewhere, and must stay there: decisions (`formation`, `suspicion`, `causes`, `ranks`,
`admission`), waits and deadlines (`gathering`, `scale_up`, `probing`, `takeover`,
`name_conflicts`), and memory (`roster`, `committing`, `marking`, `finished`, `flapping`,
`suspended_events`, `timers`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, Final

import msgspec

from rallypoint.core import causes, reasons
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.admission import BEGIN_AGAIN_AFTER_S, Admission, is_reusable
from rallypoint.core.causes import Case
from rallypoint.core.committing import Committing, record_of
from rallypoint.core.effects import Effect, TimerKind
from rallypoint.core.election import RunState
from rallypoint.core.finished import Finished
from rallypoint.core.flapping import DepartureHistory
from rallypoint.core.gathering import Gathering
from rallypoint.core.judging import JudgingClock
from rallypoint.core.marking import Marking, ranks_in
from rallypoint.core.name_conflicts import NameConflicts
from rallypoint.core.probing import Probe
from rallypoint.core.ranks import POLICIES
from rallypoint.core.reasons import Refusal, RefusalCode, Waiting
from rallypoint.core.roster import Bucket, Member, Roster
from rallypoint.core.scale_up import ScaleUp
from rallypoint.core.suspended_events import SuspendedEvents
from rallypoint.core.suspension import Suspension, SuspensionCause
from rallypoint.core.suspicion import Suspicion
from rallypoint.core.tables import TABLE_BYTES_MAX
from rallypoint.core.takeover import Takeover
from rallypoint.core.timers import Timers
from rallypoint.core.transitions import TRANSITIONS, Handling
from rallypoint.core.values import (
    Change,
    ChangeKind,
    CloseRecord,
    ConnectionEnd,
    Marks,
    MemberState,
    NodeId,
    Outcome,
    Phase,
    Reachability,
    RoundRecord,
    RunSettings,
)

# Each event uses these. To find a member in its class takes seven times as long (Python 3.11).
_GATHERING, _ACTIVE = Phase.GATHERING, Phase.ACTIVE
_IN_ROUND, _NEWCOMER = Bucket.IN_ROUND, Bucket.NEWCOMER
_IS_READY, _IS_ACTIVE, _SILENT = MemberState.READY, MemberState.ACTIVE, Reachability.SILENT

_WITHOUT_RULES = (Phase.SUSPENDED, Phase.CLOSED)
"""The phases in which the rules do not apply."""
_JUDGING = (
    TimerKind.CASE,
    TimerKind.PROBE,
    TimerKind.NAME,
    TimerKind.ATTACH,
    TimerKind.GRACE,
    TimerKind.LOST,
    TimerKind.MASS,
)
"""The timers that decide whether a member is lost."""
_MISSING = (Bucket.STOPPING, Bucket.ABSENT, Bucket.PLACE)
"""The buckets of survivors that are not ready and keep their places."""
_READY = (Bucket.READY_SURVIVOR, Bucket.NEWCOMER)
_ENDING = (Bucket.DONE, Bucket.DEPARTING)
"""The buckets of members that ask for no further round."""


class Membership:
    """The members and rounds of one run. Not thread-safe: one owner steps it.

    `run_id` is only a name. `term` is in every record (R5). Round numbers begin above `floor` (R1).
    `members_max`: the most members. `table_bytes_max`: the most bytes that the ledger can keep of
    their rows. A node beyond either limit is refused. `has_successor` False: no other coordinator
    can take over the run, so the ledger needs no marks.
    """

    def __init__(
        self,
        run_id: str,
        *,
        term: int = 1,
        floor: int = 0,
        members_max: int = 100_000,
        table_bytes_max: int = TABLE_BYTES_MAX,
        has_successor: bool = True,
    ) -> None:
        self.run_id = run_id
        self.term = term
        self.phase_of_work = Phase.GATHERING
        """The phase. While the run is SUSPENDED: the phase to which it returns."""
        self.phase = Phase.GATHERING
        """What the run does now. A closed run is never SUSPENDED: there is nothing to decide."""
        self.settings: RunSettings | None = None
        self.roster = Roster()
        self.round: RoundRecord | None = None
        self.close: CloseRecord | None = None
        self.restart_count = 0
        """How many rounds have been charged to the run's restart budget."""
        self.case: Case | None = None
        """Why the last round ended, while the next one is gathered."""
        self.suspension = Suspension()
        self.deposed = False

        timers, clock = Timers(), JudgingClock()
        self._timers = timers
        self._clock = clock
        self._probe = Probe(timers, clock)
        self._suspicion = Suspicion(self.roster, timers, clock, self._probe)
        self._takeover = Takeover(self.roster, timers, clock, self._suspicion)
        self._name_conflicts = NameConflicts(timers, clock, self._suspicion)
        self._gathering = Gathering(self.roster, timers)
        self._scale_up = ScaleUp(self.roster, timers)
        self._committing = Committing()
        self._marking = Marking(timers, is_kept=has_successor)
        self._finished = Finished()
        self._admission = Admission(
            run_id, members_max=members_max, table_bytes_max=table_bytes_max
        )
        self.departure_history = DepartureHistory()
        self._suspended_events = SuspendedEvents()
        self._failed_in_burst: list[on.WorkerFailed] = []
        """Failures that were reported while processes ended: they count when all have ended."""
        self._floor = floor
        self._has_successor = has_successor
        self._since_s = 0.0
        self._closed_at_s = 0.0
        self._now_s = 0.0
        self._effects: list[Effect] = []

    # -- step and restore ----------------------------------------------------------------------

    def step(self, event: on.Event, now_s: float) -> list[Effect]:
        """Take one event at `now_s` (seconds, never going back) and return what to do about it."""
        self._now_s = now_s
        self._effects = []
        if isinstance(event, on.SignOfLife):
            self._heard_from(event)
        _HANDLER_OF[self.phase, type(event)](self, event)
        self._advance()
        if self._marking.due_s is not None:
            self._write_marks()
        effects, self._effects = self._effects, []
        return effects

    def _heard_from(self, event: on.SignOfLife) -> None:
        """The event proves that the node is alive (R8)."""
        member = self.roster.living(event.node)
        if member is None:
            return
        # Two tests for speed: every event passes here, and probes and conflicts are rare.
        if self._probe.unanswered:
            self._probe.answered(member.name)
        if self._name_conflicts.waiting:
            self._do(*self._name_conflicts.refuse(member))
        if member.reachability is _SILENT:
            # R8: a member that answers is not lost.
            self._suspicion.heard(member)
            self._consider_newcomer(member)

    def restore(
        self,
        state: RunState,
        *,
        attach_grace_s: float,
        now_s: float,
        former_host: NodeId | None = None,
        store_lost: str = "",
    ) -> list[Effect]:
        """Take over the run where its last owner left it. Call this before any `step`.

        The members of its round have yet to attach to this coordinator. A member that has not done
        so is lost after `attach_grace_s`. `former_host`, the node that hosted the last owner, is
        lost after HOST_GRACE_S, if that owner's lease ran out. The members send again what is not
        in the ledger.

        `store_lost`: why the store of the round is gone; "" if it is not. A round whose store is
        gone has ended (R10), like one that the last owner saw end. Each member gets the reason when
        it attaches.
        """
        assert not len(self.roster)
        self._now_s = now_s
        self._effects = []
        # R5: decisions name this term from now on.
        self.term = state.term
        self.settings = state.settings
        self.restart_count = state.restarts
        self.round = state.round
        self.close = state.close
        # R1: rounds begin above the floor of the run.
        self._floor = state.floor
        self._takeover.number = self.number
        # R6: a closed run stays closed.
        if state.close is not None:
            self._closed_at_s = now_s
            self._enter(Phase.CLOSED)
        elif state.round is not None:
            marks = state.marks
            # R10: marks of another round say nothing about this one.
            if marks.round != state.number:
                # The round was written by a release without marks.
                marks = Marks(state.number)
            self._marking.restore(state.round, marks)
            done = ranks_in(marks.done)
            rows = enumerate(state.round.members)
            finished = [NodeId(row.name, row.incarnation) for i, row in rows if i in done]
            # R11: each of them counts once, also if it reports it here again.
            self._finished = Finished(
                earlier=marks.finished, in_round=finished, known=marks.finished_nodes
            )
            self._enter(Phase.ACTIVE)
            self._do(
                *self._takeover.expect_members(
                    state.round,
                    marks,
                    self.departure_history,
                    attach_grace_s=attach_grace_s,
                    former_host=former_host,
                    now_s=now_s,
                )
            )
            if marks.ended is not None:
                self._break(marks.ended)
            elif store_lost:
                self._lose_store(store_lost)
        effects, self._effects = self._effects, []
        return effects

    # -- queries -------------------------------------------------------------------------------

    @property
    def number(self) -> int:
        """The number of the last committed round; before the first one, that of the floor."""
        # R1: the next number is above this one.
        return self.round.head.number if self.round else self._floor

    @property
    def suspended_reason(self) -> str:
        """Why the run is SUSPENDED; "" if it is not."""
        return self.suspension.reason if self.phase is Phase.SUSPENDED else ""

    @property
    def unwritten(self) -> RoundRecord | CloseRecord | None:
        """The record that is being written, until the ledger is known to hold it."""
        return self._committing.unwritten

    @property
    def committing(self) -> RoundRecord | CloseRecord | None:
        """The record that is being written to the ledger."""
        return self._committing.record

    def has_another_waiting(self, name: str) -> bool:
        """Whether a node of another name than this is connected, and waits for its own name."""
        return any(each != name for each in self._name_conflicts.waiting)

    def marks_with(self, record: RoundRecord | CloseRecord) -> Marks:
        """The marks to write together with a record."""
        if isinstance(record, CloseRecord):
            return Marks()  # Nobody reads marks after a close.
        finished = self._finished
        return Marks(
            record.head.number,
            finished=finished.count_at_forming,
            finished_nodes=finished.known_at_forming,
        )

    def waiting(self, now_s: float) -> Waiting | None:
        """Why no round is active; None if one is, or the run is over. Its size is bounded."""
        settings = self.settings
        if self.phase in (Phase.ACTIVE, Phase.CLOSED) or settings is None:
            return None
        stop_left_s = self._gathering.stopping.left_s(now_s)
        return Waiting(
            ready=self.roster.ready_count,
            minimum=settings.min_nodes,
            maximum=settings.max_nodes,
            missing=reasons.first_names(chain(*map(self.roster.names, _MISSING))),
            missing_count=sum(map(self.roster.count, _MISSING)),
            last_call_s=self._gathering.last_call_left_s(now_s),
            suspects=reasons.first_names(m.name for m in self.roster.troubled()),
            guard_s=self._suspicion.guard_left_s(settings, now_s),
            committing=self.phase is Phase.COMMITTING,
            suspended=self.suspended_reason,
            since_s=now_s - (self.suspension.since_s if self.suspension else self._since_s),
            attached=len(self.roster),
            ledger_away_s=self.suspension.ledger_away_s(now_s) if self.suspended_reason else None,
            stopping=reasons.first_names(self.roster.names(Bucket.STOPPING)) if stop_left_s else (),
            stopping_count=self.roster.count(Bucket.STOPPING) if stop_left_s else 0,
            stop_left_s=stop_left_s,
            held_back_s=self._gathering.pause_left_s(now_s),
            ready_names=reasons.first_names(chain(*map(self.roster.names, _READY))),
        )

    def closed_ago_s(self, now_s: float) -> float:
        """How long the run has been closed, in seconds."""
        return max(0.0, now_s - self._closed_at_s)

    @property
    def _can_begin_again(self) -> bool:
        """R6: a run that has had a round stays closed."""
        close = self.close
        # R6: only a run that never had a round, and is in no ledger.
        is_unused = self.round is None and not self._has_successor
        return is_unused and close is not None and is_reusable(close)

    def may_begin_again(self, settings: RunSettings, now_s: float) -> bool:
        """Whether a node that was never in this closed run may begin it again.

        It may if the run never had a round, because the id was then used before the job began. A
        node with other settings belongs to another job, so it may begin at once. A node with the
        same settings may be a late node of the closed run, and must learn that the run is over. So
        it may begin the run again only after BEGIN_AGAIN_AFTER_S.
        """
        # R6: not a run that had a round.
        if self.phase_of_work is not Phase.CLOSED or self.round is not None:
            return False
        # R6: not a run whose close is in a ledger.
        if self._has_successor or self.settings is None:
            return False
        if self.settings.conflicts(settings):
            return True
        return self._can_begin_again and self.closed_ago_s(now_s) >= BEGIN_AGAIN_AFTER_S

    def is_of_last_round(self, node: NodeId) -> bool:
        """Whether the node is a member of the last round, and may read its table. O(1)."""
        member = self.roster.living(node)
        # R4: other nodes get no member table.
        return member is not None and 0 < member.last_round == self.number

    def is_standby(self, member: Member) -> bool:
        """Whether it is ready while a round is active without it."""
        return member.bucket is Bucket.NEWCOMER and self.phase_of_work is Phase.ACTIVE

    def freeze(self) -> tuple[object, ...]:
        """The state on which decisions depend, as a hashable value, for tests and model checkers.

        It has no times and no serial numbers. It includes which timers are set.
        """
        return (
            (self.phase_of_work, self.suspension.causes, self.deposed, self.close, self.number),
            (*self._committing.freeze(), tuple(self._suspended_events)),
            (self.restart_count, self._finished.freeze()),
            self.case and (self.case.change, self.case.closed, self._probe.is_settled),
            (*self._gathering.freeze(), self._scale_up.is_due),
            (self._suspicion.guarding, tuple(self._probe.unanswered), self._probe.is_over),
            tuple(member.name for member in self._suspicion.ended_members()),
            (self._suspicion.in_burst, tuple(self._failed_in_burst)),
            self._suspicion.attaching,
            self._marking.freeze(),
            tuple(member.freeze() for member in self.roster),
            self._name_conflicts.names(),
        )

    # -- nodes attach --------------------------------------------------------------------------

    def _on_attached(self, event: on.NodeAttached) -> None:
        refusal = self._refusal(event)
        if refusal is not None:
            self._do(do.Refuse(event.connection_id, refusal))
            return
        assert self.settings is not None
        member = self.roster.get(event.node.name)
        if member is None:
            self._admit(event)
        elif member.info.incarnation != event.node.incarnation:
            self._do(*self._name_conflicts.asked(member, event, self.settings, self._now_s))
        # R8: without the proof, nothing changes for the member.
        elif member.is_proved_by(event.secret_hash):
            self._resume(member, event)
        else:
            # Others may know the incarnation, so it alone does not prove that the node is the
            # member.
            self._do(do.Refuse(event.connection_id, reasons.not_the_member(member.name)))

    def _refusal(self, event: on.NodeAttached) -> Refusal | None:
        """Why the node is refused; None if it is admitted."""
        if event.settings.rank_policy not in POLICIES:
            return reasons.unknown_policy(event.settings.rank_policy, sorted(POLICIES))
        if self.settings is None or not len(self.roster):
            # The first node's settings become the run's.
            self.settings = event.settings
            self._admission.settings_are_of(event.node, self._now_s)
        return self._admission.refusal(
            event.node,
            event.settings,
            self.settings,
            self.roster,
            is_new=self.round is None and not self._has_successor,
            now_s=self._now_s,
        )

    def _admit(self, event: on.NodeAttached) -> None:
        if not len(self.roster) and self.phase_of_work is Phase.GATHERING:
            self._since_s = self._now_s
        member = self.roster.add(event.node, event.connection_id, self._now_s, event.secret_hash)
        standing = do.Standing(change=self.departure_history.change(member.name))
        self._do(do.Welcome(event.connection_id, member.id, resumed=False, standing=standing))

    def _attach_suspended(self, event: on.NodeAttached) -> None:
        """SUSPENDED: a second node of one name waits, because the first one is not judged now."""
        member = self.roster.get(event.node.name)
        if member is None or member.info.incarnation == event.node.incarnation:
            self._on_attached(event)
            return
        waiting = self._suspended_events.attached(event.node.id)
        if waiting is not None and waiting.secret_hash != event.secret_hash:
            self._do(
                do.Refuse(event.connection_id, reasons.name_taken(member.name, member.info.host))
            )
        else:
            self._keep(event)

    def _resume(self, member: Member, event: on.NodeAttached) -> None:
        member.connection_id = event.connection_id
        # R8: it has come back within its grace.
        self._suspicion.heard(member)
        self._probe.answered(member.name)
        if self._name_conflicts.waiting:
            self._do(*self._name_conflicts.refuse(member))
        is_standby = member.told_standby = self.is_standby(member)  # The welcome has the reason.
        # R7: its stop time is bounded, and begins now.
        if member.survivor:
            self._gathering.stopping.told(member, self._now_s)
        self._consider_newcomer(member)
        standing = do.Standing(
            # R4: a node that is not in the round must end it.
            round=member.last_round if member.bucket in (Bucket.IN_ROUND, Bucket.DONE) else 0,
            change=self.case.change if self.case and member.survivor else member.last_change,
            ready=member.state is _IS_READY,
            standby=is_standby,
        )
        self._do(do.Welcome(event.connection_id, member.id, resumed=True, standing=standing))

    def _refuse_closed(self, event: on.NodeAttached) -> None:
        assert self.close is not None
        ago_s = self.closed_ago_s(self._now_s)
        again_after_s = max(0.0, BEGIN_AGAIN_AFTER_S - ago_s) if self._can_begin_again else None
        refusal = reasons.run_closed(self.run_id, self.close, ago_s, again_after_s)
        self._do(do.Refuse(event.connection_id, refusal))

    def _supersede(self, member: Member) -> None:
        self._do(do.Supersede(member.id, reasons.superseded(member.name)))
        self._remove([member], ChangeKind.NODE_LOST, reasons.SUPERSEDED)

    # -- requests of nodes ---------------------------------------------------------------------

    def _on_ready(self, event: on.NodeReady) -> None:
        member = self.roster.living(event.node)
        if member is None or member.bucket in _ENDING:
            return
        is_in_round = member.bucket is _IN_ROUND
        # R4: a `ready` that names an older round than the node's last one is a repeat.
        if event.leaving_round < member.last_round:
            return
        # R4: nor does one of another round end this one.
        if is_in_round and event.leaving_round != member.last_round:
            return
        if is_in_round:
            self._adopt_end(member, event)
        if member.bucket is _IN_ROUND:
            # R4: this round has yet to begin, so no node leaves it.
            if self.phase_of_work is not Phase.ACTIVE:
                return
            self._break(causes.happened(ChangeKind.READY_AGAIN, self.number, [member.name]))
            self._probe.answered(member.name)
        self._mark_ready(member, event)

    def _adopt_end(self, speaker: Member, event: on.NodeReady) -> None:
        """End the round: the last coordinator told the members of its end, but did not write it.

        The reason is the same. What that coordinator charged to the budget is charged now.
        """
        change = event.change
        is_known = self.phase_of_work is not Phase.ACTIVE
        # R5: the end of another round, or one already known, has no effect.
        if change is None or is_known or not change.round == self.number == self._takeover.number:
            return
        self._break(change)
        self._probe.answered(speaker.name)
        if change.charged:
            self._charge(change)
        if change.kind in (ChangeKind.NODE_LEFT, ChangeKind.NODE_LOST):
            named = [m for m in map(self.roster.get, change.nodes) if m is not None]
            for member in named:
                # R8: a member that has attached is alive.
                if member.is_absent and member is not speaker:
                    self._take_out(member, change)
                    self._free_name(member.name)

    def _mark_ready(self, member: Member, event: on.NodeReady) -> None:
        member.bootstrap = event.bootstrap
        member.workers = event.workers
        # R11: a repeat does not move it in the queue.
        if member.state is _IS_READY:
            return
        member.state = _IS_READY
        member.told_standby = False
        assert self.settings is not None
        member.eligible_s = self._now_s + self.departure_history.delay_s(
            member.name, self.settings.scale_up_delay_s, self._now_s - member.attached_s
        )
        self.roster.queue(member)
        self.roster.reindex(member)
        self._consider_newcomer(member)

    def _consider_newcomer(self, member: Member) -> None:
        """Let a ready newcomer in when its delay is over. O(1).

        The node is notified once that it is on standby, and not again in every later round.
        """
        if member.bucket is not _NEWCOMER:
            return
        self._scale_up.newcomer(member)
        if self.is_standby(member) and not member.told_standby:
            member.told_standby = True
            self._do(do.Notify(member.id, standby=True))

    def _on_worker_failed(self, event: on.WorkerFailed) -> None:
        if self._suspicion.in_burst:
            # Cause before consequence: the processes that have ended are the cause of the round's
            # end.
            self._failed_in_burst.append(event)
            return
        member = self.roster.living(event.node)
        # R4: a report about another round ends nothing.
        if member is None or not event.round == self.number == member.last_round:
            return
        if member.bucket is Bucket.IN_ROUND:
            self._break(causes.failed(self.number, member.name, event.failure))
            self._probe.answered(member.name)
        elif self.case is not None:
            self.case.add_failure(member.name, event.failure)

    def _on_done(self, event: on.NodeDone) -> None:
        member = self.roster.living(event.node)
        if member is None or not event.round:
            return
        # R1: all rounds of this run are above its floor.
        if event.round <= self._floor and not member.last_round:
            self._do(do.Refuse(member.connection_id, reasons.run_removed(self.run_id)))
            return
        # R11: a repeat changes nothing, nor does a report about a round that the node is not in.
        if event.round != member.last_round and not self._was_in(member, event.round):
            return
        # R11: a repeat counts once.
        if member.state in (MemberState.READY, MemberState.DEPARTING, MemberState.DONE):
            return
        is_in_round = event.round == self.number
        # R11: also if the node was removed meanwhile, and has attached again.
        if not (self._marking.is_done(member.id) or self._finished.knows(member.id)):
            self._finished.add(member.id, is_in_round=is_in_round)
        if is_in_round:
            self._marking.done(member.id, self._now_s)
        else:
            self._marking.finished_before(self._finished, self._now_s)
        member.state = MemberState.DONE
        member.survivor = False
        self.roster.reindex(member)

    def _was_in(self, member: Member, number: int) -> bool:
        """Whether it may have been in this round, before it was lost and attached again.

        Its workers may have finished while it could not be heard.
        """
        # R4: since it was admitted it has been in no round.
        if member.last_round or number > self.number:
            return False
        # A successor knows only the members of the last round.
        return number < self.number or self._marking.has(member.id)

    def _on_departing(self, event: on.NodeDeparting) -> None:
        member = self.roster.living(event.node)
        if member is None or member.bucket in _ENDING:
            return
        was_in_round = member.bucket is Bucket.IN_ROUND
        self._explain_by_departure(member, event.reason)
        self._committing.member_went(member, ChangeKind.NODE_LEFT, event.reason)
        self._marking.gone(member.id, self._now_s)
        member.state = MemberState.DEPARTING
        member.survivor = False
        self.roster.reindex(member)
        if was_in_round and self.phase_of_work is Phase.ACTIVE:
            self._break(
                causes.happened(ChangeKind.NODE_LEFT, self.number, [member.name], event.reason)
            )

    def _explain_by_departure(self, member: Member, reason: str) -> None:
        """The departure of this member may explain the communication errors of the open case."""
        if member.survivor and self.case is not None:
            left = causes.happened(ChangeKind.NODE_LEFT, self.number, [member.name], reason)
            self.case.add_departure(left)

    def _on_left(self, event: on.NodeLeft) -> None:
        member = self.roster.living(event.node)
        if member is None:
            self._name_conflicts.drop(event.node)
            self._suspended_events.forget_attached(event.node)
            return
        self._remove([member], ChangeKind.NODE_LEFT, event.reason, says_goodbye=True)

    def _on_close_requested(self, event: on.CloseRequested) -> None:
        self._close(event.outcome, event.reason, by=event.by)

    # -- nodes fall silent ---------------------------------------------------------------------

    def _on_connection_lost(self, event: on.ConnectionLost) -> None:
        member = self.roster.living(event.node)
        # R8: the end of an earlier connection says nothing.
        if member is None or member.connection_id != event.connection_id:
            self._name_conflicts.drop(event.node, event.connection_id)
            return
        # R8: the grace runs from the first end.
        if member.reachability is Reachability.DISCONNECTED:
            return
        assert self.settings is not None
        if event.how is ConnectionEnd.PROCESS_ENDED:
            # R8: this is proof. `_advance` removes the member, which frees its name.
            self._do(*self._suspicion.ended(member, self._now_s))
            return
        self._do(*self._suspicion.disconnected(member, self.settings, self._now_s))
        newcomer = self._name_conflicts.waiting.get(member.name)
        if newcomer is not None:
            conflicts = self._name_conflicts
            self._do(*conflicts.challenge(member, newcomer, self.settings, self._now_s))

    def _record_disconnected(self, event: on.ConnectionLost) -> None:
        """Record it without a decision: the grace begins when the ledger is back."""
        self._suspended_events.forget_attached(event.node, event.connection_id)
        member = self.roster.living(event.node)
        # R8: the end of an earlier connection says nothing.
        if member is None or member.connection_id != event.connection_id:
            self._name_conflicts.drop(event.node, event.connection_id)
        elif member.reachability is Reachability.DISCONNECTED:
            return  # Another end of this connection was recorded before.
        elif event.how is ConnectionEnd.PROCESS_ENDED:
            self._do(*self._suspicion.ended(member, self._now_s))
        elif self.settings is not None:
            self._suspicion.disconnected(member, self.settings, self._now_s)

    def _on_silent(self, event: on.NodeSilent) -> None:
        member = self.roster.living(event.node)
        # R8: only a member that can be heard falls silent.
        if (
            member is None
            or member.reachability is not Reachability.CONNECTED
            or self.settings is None
        ):
            return
        self._do(*self._suspicion.silent(member, self.settings, self._now_s, event.silent_s))

    # -- timers --------------------------------------------------------------------------------

    def _on_timer(self, event: on.TimerFired) -> None:
        timer = event.timer
        # R8: no member is judged while SUSPENDED.
        if self.suspension and timer.kind in _JUDGING:
            return  # Later: `_judge_again` sets these timers again.
        # R8: a deadline that was moved does not count.
        if not self._timers.take(timer):
            return  # It is stale.
        match timer.kind:
            case TimerKind.SETTLE | TimerKind.LAST_CALL | TimerKind.STOP | TimerKind.PACE:
                self._gathering.timer_fired(timer.kind, self._now_s)
            case TimerKind.SCALE_UP:
                self._scale_up.timer_fired()
            case TimerKind.CASE:
                self._probe.is_settled = True
            case TimerKind.PROBE:
                self._suspicion.probe_over()
            case TimerKind.NAME:
                member = self.roster.get(timer.name)
                if member is not None:
                    self._supersede(member)
            case TimerKind.ATTACH:
                self._end_attach_grace()
            case TimerKind.MARKS:
                self._marking.timer_fired()
            case TimerKind.GRACE | TimerKind.LOST | TimerKind.MASS:
                self._suspicion.deadline_passed(timer)
            case TimerKind.BURST:
                pass  # The wait is over: `_advance` goes on.

    def _end_attach_grace(self) -> None:
        self._takeover.end_grace()
        for name in self._name_conflicts.names():
            member = self.roster.get(name)
            # R8: a member that has attached keeps its name.
            if member is not None and self._suspicion.has_never_attached(member):
                self._supersede(member)

    # -- the ledger ----------------------------------------------------------------------------

    def _on_store_lost(self, event: on.StoreLost) -> None:
        # R4: the store of an earlier round ends nothing.
        if event.round == self.number:
            self._lose_store(event.reason)

    def _lose_store(self, reason: str) -> None:
        """R10: acknowledged writes of this round cannot be read any more, so the round ends.

        The program is not to blame, so nothing is charged.
        """
        # Nodes of earlier releases know this kind of change.
        detail = reasons.store_lost(reason)
        self._break(causes.happened(ChangeKind.NODE_LOST, self.number, (), detail))

    def _on_committed(self, event: on.Committed) -> None:
        # R1: a record is published only when the ledger has it.
        if self._marking.is_writing:
            return  # The ledger takes one write at a time, so it does not have the record yet.
        record = self._committing.finish()
        if isinstance(record, CloseRecord):
            # R6: the ledger has the close, so the run is over.
            self._enter(Phase.CLOSED)
            self.close = record
            self._closed_at_s = self._now_s
            self._do(do.Announce(record))
            self._marking.give_up()
            self._do(*self._marking.answered_farewells())
            for newcomer in self._name_conflicts.pop_all():
                self._refuse_closed(newcomer)
        elif record is not None:
            self._begin(record)

    def _on_marks_written(self, event: on.MarksWritten) -> None:
        # R10: only the write under way counts as written.
        if not self._marking.written(event.serial):
            return
        self._do(*self._marking.answered_farewells())
        # R7: the record that waited for the marks is written now.
        if self._committing.unwritten is not None and not self.suspension:
            self._give()

    def _give(self) -> None:
        """Write the record: at once, or after the marks that are being written."""
        assert self._committing.record is not None
        # R1: one write at a time.
        if not self._marking.is_writing:
            self._do(do.Commit(self._committing.record))

    def _write_marks(self) -> None:
        """Write the marks of the members, which a successor needs, or set the timer for that."""
        # R5: nothing is written while another may own the run.
        if self.settings is None or self.phase not in (Phase.GATHERING, Phase.ACTIVE):
            return
        settle_s = self.settings.settle_s
        self._do(*self._marking.write(settle_s, self.restart_count, self._now_s))

    def _on_commit_refused(self, event: on.CommitRefused) -> None:
        # R5: a deposed coordinator decides nothing any more, even if the ledger answers later.
        self.deposed = True
        # R5: it stays SUSPENDED, for ever.
        if self.phase_of_work is not Phase.CLOSED:
            self._suspend(SuspensionCause.DEPOSED, event.reason)
        # R5: its marks are not written either.
        self._marking.give_up()
        for each in self._marking.take_all_farewells():
            # The ledger may not have these marks, so the node has to send them to the next
            # coordinator.
            self._do(do.Refuse(each.connection_id, Refusal(RefusalCode.MOVED, event.reason)))
        self._do(do.StepDown(event.reason, event.is_voluntary))

    def _on_ledger_lost(self, event: on.LedgerLost) -> None:
        self._suspend(event.cause, event.reason, event.away_s)

    def _suspend(self, cause: SuspensionCause, reason: str, away_s: float | None = None) -> None:
        # R8: an outage takes no time from a member.
        self._clock.stop(self._now_s)
        self.suspension.begin(cause, reason, self._now_s, away_s=away_s)
        self._set_phase()

    def _record_committed(self, event: on.Committed) -> None:
        """SUSPENDED: the ledger has the record, so it must not be written again."""
        # R1: a record that was not given is not in the ledger.
        is_given = not self._marking.is_writing
        # R1: a record in the ledger is not written again.
        self._committing.is_in_ledger = is_given and self._committing.record is not None

    def _on_ledger_restored(self, event: on.LedgerRestored) -> None:
        if not self.suspension.end(event.cause):
            return
        self._set_phase()
        # R5: each reason alone keeps the run SUSPENDED.
        if self.suspension:
            return
        # R8: first each member gets the time that it had left.
        # All kept events are handled before any decision, as if they came at the same moment.
        self._judge_again()
        for kept in self._suspended_events.take():
            self._handle(kept)
        if self._committing.is_in_ledger:
            # R7: a record that the ledger has is published now.
            self._on_committed(on.Committed())
        # R7: the record is written again, or the run would wait for ever.
        elif self._committing.record is not None:
            self._give()
        for member in self.roster.members(Bucket.NEWCOMER):
            self._consider_newcomer(member)

    def _judge_again(self) -> None:
        """R8: judge members again. Each deadline has the time that it had left."""
        settings = self.settings
        if settings is None:
            self._clock.go_on(self._now_s)
            return
        self._do(*self._suspicion.go_on(settings, self._now_s))
        if self._suspicion.has_absent:
            self._do(*self._takeover.go_on(settings, self._now_s))
            if not self._takeover.is_grace_on:
                self._end_attach_grace()
        if self.case is not None and not self.case.closed:
            self._do(*self._probe.go_on(settings, self.number, self._now_s))
            if self._probe.is_over:
                self._suspicion.probe_over()
        conflicts = self._name_conflicts
        for name in conflicts.names():
            member = self.roster.get(name)
            if member is None:
                continue
            # R8: the older node has the rest of its time to answer.
            if conflicts.is_over(member, settings, self._now_s):
                self._supersede(member)
            else:
                self._do(*conflicts.go_on(member, settings, self._now_s))

    def _keep(self, event: on.Event) -> None:
        """SUSPENDED: keep an event that needs the ledger until the ledger is back."""
        self._suspended_events.keep(event)

    def _as_in_phase_of_work(self, event: on.Event) -> None:
        """SUSPENDED: handle an event at once that needs no ledger.

        Members are told of a round that ends. The next round waits for the ledger.
        """
        # R5: a deposed coordinator reports nothing any more.
        if not self.deposed:
            _HANDLER_OF[self.phase_of_work, type(event)](self, event)

    def _handle(self, event: on.Event) -> None:
        _HANDLER_OF[self.phase, type(event)](self, event)

    def _ignore(self, event: on.Event) -> None:
        """Nothing changes."""

    # -- the rules, in order -------------------------------------------------------------------

    def _advance(self) -> None:
        """Apply all rules to the present state, in order."""
        # R5: while SUSPENDED nothing is decided. R6: nor after the close.
        if self.settings is None or self.phase in _WITHOUT_RULES:
            return
        # R7: all have attached, so the round waits for none.
        if self._takeover.is_grace_on and not self._suspicion.has_absent:
            self._end_attach_grace()
        if not self._suspicion.is_quiet:
            # R8: a process that has ended gets no grace, and the mass guard does not protect it.
            self._remove_gone(self._suspicion.ended_members(), reasons.PROCESS_ENDED)
            # R8: the guard first, then the deadlines.
            self._do(*self._suspicion.update_guard(self.settings, self._now_s))
            overdue = self._suspicion.past_deadline()
            # R8: a member past its deadline is lost now.
            if overdue:
                is_closed = overdue[0].reachability is Reachability.DISCONNECTED
                detail = reasons.NOT_RESUMED if is_closed else reasons.NOT_HEARD
                self._remove_gone(overdue, detail)
        if self._failed_in_burst and not self._suspicion.in_burst:
            failures, self._failed_in_burst = self._failed_in_burst, []
            for each in failures:
                self._handle(each)
        if self.case is not None and not self.case.closed:
            self._close_case()
        pace = self._gathering.pace
        if pace.is_slowed and pace.is_storm and self.phase is _GATHERING:
            self._close_as_storm()
        if self.phase is _ACTIVE:
            self._advance_active(self.settings)
        if self.phase is _GATHERING:
            self._advance_gathering(self.settings)

    def _remove_gone(self, members: list[Member], detail: str) -> None:
        """Remove these members. Those that are neither done nor departing are lost."""
        lost = [member for member in members if member.is_troubled]
        if lost:
            self._remove(lost, ChangeKind.NODE_LOST, detail)
        ended = [member for member in members if not member.is_troubled]
        if ended:
            self._remove(ended, ChangeKind.NODE_LEFT, reasons.ENDED_AFTER_WORK)

    def _advance_active(self, settings: RunSettings) -> None:
        in_round = self.roster.count(Bucket.IN_ROUND)
        if not in_round:
            # A loss or a departure ends a round, so all of its members are done.
            self._close(Outcome.SUCCEEDED, reasons.ALL_FINISHED)
            return
        # R3: newcomers get free places only.
        free = settings.max_nodes - in_round
        # R3: without a free place the round is left alone.
        if self._finished.count or not free or not self.roster.count(_NEWCOMER):
            return
        newcomers = self._scale_up.take(self._now_s)
        if newcomers:
            names = [member.name for member in newcomers[:free]]
            self._break(causes.happened(ChangeKind.NODES_JOINED, self.number, names))
        else:
            self._do(*self._scale_up.wait(self.number, self._now_s))

    def _advance_gathering(self, settings: RunSettings) -> None:
        if self._finished.count and self._is_ending(settings):
            return
        gathering = self._gathering
        # R3: below the minimum no round is formed.
        if 0 < self.roster.ready_count < settings.min_nodes:
            # This is Decision.TOO_FEW, found quickly, because thousands of nodes attach one by one.
            if gathering.is_settling:
                gathering.unsettle()
            return
        decision = gathering.decide(settings)
        if not decision.forms_round:
            # R7: a round that is not formed now has a timer, or waits for nodes.
            self._do(*gathering.wait(decision, settings, self.number + 1, self._now_s))
            return
        pause_s = gathering.pace.wait_s(self._now_s)
        if pause_s > 0:
            # R7: the pause ends by a timer, too.
            self._do(*gathering.pause(pause_s, self.number + 1, self._now_s))
        else:
            self._form_round(settings)

    def _is_ending(self, settings: RunSettings) -> bool:
        """End the run if its round is done, or if it cannot reach the minimum any more.

        True if the run ends, now or when the open case is closed.
        """
        # R7: all of its nodes are done, so the run waits for none.
        if self.round is not None and self._finished.in_round == self.round.head.nodes:
            self._close(Outcome.SUCCEEDED, reasons.ALL_FINISHED)
            return True
        remaining = self.roster.awaited_count
        if remaining >= settings.min_nodes:
            return False
        # Cause before consequence: the close waits for the open case, so that it names the cause.
        if self.case is None or self.case.closed or self._probe.is_over:
            self._close_case(forced=True)
            if self.phase is Phase.GATHERING:
                cause = self.case.change if self.case is not None else None
                reason = reasons.too_few_remain(remaining, settings.min_nodes, self._finished.count)
                self._close(Outcome.NOT_ENOUGH, reason, cause=cause)
        return True

    def _close_as_storm(self) -> None:
        """Close a run whose members do no work and slow down the coordinator's other runs."""
        self._close_case(forced=True)
        if self.phase is Phase.GATHERING:
            cause = self.case.change if self.case is not None else None
            pace = self._gathering.pace
            reason = reasons.storm(pace.ended, pace.since_s(self._now_s), cause)
            self._close(Outcome.FAILED, reason, cause=cause)

    # -- a round begins ------------------------------------------------------------------------

    def _form_round(self, settings: RunSettings) -> None:
        """Write the round to the ledger. An open case is closed first, which may end the run."""
        self._close_case(forced=True)
        # R6: the verdict may have ended the run.
        if self.phase is not Phase.GATHERING:
            return
        record = record_of(
            self._gathering.chosen(settings),
            # R1: above every number before it.
            number=self.number + 1,
            # R5: the term of the owner that decides it.
            term=self.term,
            rank_policy=settings.rank_policy,
            previous=self.round,
            restart_count=self.restart_count,
        )
        self._gathering.pace.round_formed(record.head.nodes)
        self._committing.begin(record)
        self._enter(Phase.COMMITTING)
        self._finished.round_formed()
        self._give()

    def _begin(self, record: RoundRecord) -> None:
        """The ledger has the round. Begin it, and then handle what happened during the write."""
        self.round = record
        self._finished.round_began()
        committing = self._committing
        interrupted, committing.interrupted = committing.interrupted, None
        gone = self._gone_of(record) if interrupted is not None else []
        self._do(*self._marking.begin(record, self._finished, interrupted, gone, self._now_s))
        self._gathering.reset()
        self._scale_up.reset()
        # R6: the close follows the write at once.
        if committing.close_wanted is not None:
            # No node receives a round that ends at once.
            self._commit_close(committing.close_wanted)
        # R4: it has a member that is not ready for it any more.
        elif interrupted is not None:
            self._begin_again(record, interrupted)
        else:
            self._enter(Phase.ACTIVE)
            self._seat_members(record)
            self._do(do.Publish(record))
            for member in self.roster.members(Bucket.NEWCOMER):
                self._consider_newcomer(member)

    def _gone_of(self, record: RoundRecord) -> list[NodeId]:
        """The members of a record that went while it was written."""
        gone = []
        for row in record.members:
            node = NodeId(row.name, row.incarnation)
            member = self.roster.living(node)
            if member is None or member.state is MemberState.DEPARTING:
                gone.append(node)
        return gone

    def _begin_again(self, record: RoundRecord, change: Change) -> None:
        """Form another round: a member left during the write, so no node received this one.

        The other members are still ready, and keep their places.
        """
        self._gathering.pace.round_ended(0.0, self._now_s)
        ended_by = self.case.change if self.case is not None else None
        _leave_last_round(self.roster, ended_by)
        for member in self.roster:
            is_ready = member.state is MemberState.READY
            # R7: a member that is still ready keeps its place.
            member.survivor = is_ready and self._committing.is_in(record, member)
        self.case = Case(change)
        self.roster.reindex_all()
        self._enter(Phase.GATHERING)

    def _seat_members(self, record: RoundRecord) -> None:
        """Make the members of the round active, and survivors that are not in it idle."""
        ended_by = self.case.change if self.case is not None else None
        _leave_last_round(self.roster, ended_by)
        for row in record.members:
            member_now = self.roster.get(row.name)
            assert member_now is not None, row.name
            # R4: not another start of the node.
            assert member_now.info.incarnation == row.incarnation, row.name
            # R4: no node gets a round without asking.
            assert member_now.state is _IS_READY, row.name
            member_now.state = _IS_ACTIVE
            # R4: a `ready` of before does not leave this round.
            member_now.last_round = record.head.number
            member_now.last_change = None
        self.case = None
        self.roster.reindex_all()

    # -- a round ends --------------------------------------------------------------------------

    def _break(self, change: Change) -> None:
        """End the active round, tell its members once, and gather for the next."""
        assert self.phase_of_work is Phase.ACTIVE
        self._gathering.pace.round_ended(self._now_s - self._since_s, self._now_s)
        self._enter(Phase.GATHERING)
        self._scale_up.reset()
        self.case = Case(change, self._finished.first)
        survivors = self.roster.members(Bucket.IN_ROUND)
        for member in survivors:
            member.survivor = True
        self._gathering.begin(survivors, self._now_s)
        self.roster.reindex_all()
        # R13: nodes stop their workers when they learn of the end.
        self._do(do.Break(change))
        self._marking.ended(change, self._later_s)
        if not self.case.closed:
            # Cause before consequence: find out who lives before a cause is named.
            assert self.settings is not None
            names = [member.name for member in survivors]
            # R8: suspects are asked before they are lost.
            self._do(*self._probe.begin(names, self.settings, self.number, self._now_s))

    def _close_case(self, *, forced: bool = False) -> None:
        """Name the cause when it is known, and charge the program's fault to the budget."""
        case, probe = self.case, self._probe
        if case is None or case.closed:
            return
        is_clear = probe.is_over if case.needs_time() else probe.is_settled
        # R8: members have time to answer before the verdict.
        if not forced and (probe.unanswered or not is_clear):
            return
        change = case.close(len(probe.unanswered))
        probe.end()
        self._marking.ended(change, self._later_s)
        self._charge(change)

    @property
    def _later_s(self) -> float:
        """When to write marks for which no node waits."""
        assert self.settings is not None
        return self._now_s + self.settings.settle_s

    def _charge(self, change: Change) -> None:
        """Tell the members the verdict. End the run if the budget does not cover the charge."""
        assert self.settings is not None
        limit = self.settings.max_restarts
        restarts = causes.restarts_after(change, self.restart_count, limit)
        self._do(do.Verdict(change))
        if restarts is not None:
            self.restart_count = restarts
        else:
            self._close(Outcome.FAILED, reasons.budget_spent(change, limit), cause=change)

    def _remove(
        self, members: list[Member], kind: ChangeKind, detail: str, *, says_goodbye: bool = False
    ) -> None:
        """Take out members. If any of them was active, the round ends, once for all of them."""
        since_s = max(member.trouble_s(self._now_s) for member in members)
        in_round = [m.name for m in members if m.bucket is Bucket.IN_ROUND]
        survivors = [m.name for m in members if m.survivor]
        is_round_on = self.phase_of_work is Phase.ACTIVE
        for member in members:
            if kind is ChangeKind.NODE_LEFT:
                self._explain_by_departure(member, detail)
            own = causes.happened(kind, self.number, [member.name], detail, since_s)
            # R13: the loss of a member ends its round.
            breaks = is_round_on and member.bucket is Bucket.IN_ROUND
            is_loss = kind is ChangeKind.NODE_LOST and not breaks
            self._take_out(member, own, says_goodbye=says_goodbye, is_loss=is_loss)
        # R13: the others must not go on without it.
        if in_round and self.phase_of_work is Phase.ACTIVE:
            self._break(causes.happened(kind, self.number, in_round, detail, since_s))
        elif survivors and self.case is not None and kind is ChangeKind.NODE_LOST:
            self.case.add_loss(causes.happened(kind, self.number, survivors, detail, since_s))
        for member in members:
            self._free_name(member.name)

    def _free_name(self, name: str) -> None:
        """Its member was taken out: admit the newcomer that waits for the name, if any."""
        newcomer = self._name_conflicts.pop(name) or self._suspended_events.take_attached(name)
        if newcomer is not None:
            self._admit(newcomer)

    def _take_out(
        self,
        member: Member,
        change: Change,
        *,
        says_goodbye: bool = False,
        is_loss: bool = False,
    ) -> None:
        """Take out one member. `is_loss`: it was lost, and its loss ends no round."""
        # R4: a round that is being written must not begin without it.
        self._committing.member_went(member, change.kind, change.detail)
        stayed_s = self._now_s - member.attached_s
        is_done = member.bucket is Bucket.DONE
        self.departure_history.remember(member.name, change, stayed_s=stayed_s, is_done=is_done)
        # R10: the mark of a node that is done stays.
        if not is_done:
            self._marking.gone(member.id, self._now_s if says_goodbye else self._later_s)
        self.roster.remove(member)
        self._suspicion.gone(member)
        reason = str(change)
        # R10: the ledger has its marks before it may go.
        # The goodbye is answered when the ledger has the node's marks.
        waits = says_goodbye and self._marking.farewell(
            member.id,
            member.connection_id,
            reason,
            is_being_written=self._committing.is_writing(member),
        )
        self._do(do.Forget(member.id, reason, waits, change if is_loss else None))

    # -- the run ends --------------------------------------------------------------------------

    def _close(
        self, outcome: Outcome, reason: str, *, by: str = "", cause: Change | None = None
    ) -> None:
        """End the run: at once, or after the record that is being written (R6)."""
        record = CloseRecord(outcome, reason, by, self.term, self.number, cause)
        # R1: one write at a time, also for the close.
        if self.phase is Phase.COMMITTING:
            # R6: the first close counts.
            self._committing.close_wanted = self._committing.close_wanted or record
        else:
            self._commit_close(record)

    def _commit_close(self, record: CloseRecord) -> None:
        # R6: the run is closed when the ledger says so, and not before.
        self._committing.begin(msgspec.structs.replace(record, round=self.number))
        self._committing.close_wanted = None
        self._enter(Phase.COMMITTING)
        self._give()

    # -- the phase, and the effects of this step -----------------------------------------------

    def _enter(self, phase: Phase) -> None:
        self.phase_of_work = phase
        self._since_s = self._now_s
        self._set_phase()

    def _set_phase(self) -> None:
        # The phase is stored, because each event reads it several times.
        work = self.phase_of_work
        # R5: any reason suspends.
        is_suspended = bool(self.suspension) and work is not Phase.CLOSED
        self.phase = Phase.SUSPENDED if is_suspended else work

    def _do(self, *effects: Effect) -> None:
        self._effects.extend(effects)


HANDLERS: Final[dict[tuple[type[on.Event], Handling], Callable[[Membership, Any], None]]] = {
    (on.NodeAttached, Handling.NOW): Membership._on_attached,
    (on.NodeAttached, Handling.RECORDED): Membership._attach_suspended,
    (on.NodeAttached, Handling.REFUSED): Membership._refuse_closed,
    (on.NodeReady, Handling.NOW): Membership._on_ready,
    (on.WorkerFailed, Handling.NOW): Membership._on_worker_failed,
    (on.NodeDone, Handling.NOW): Membership._on_done,
    (on.NodeDeparting, Handling.NOW): Membership._on_departing,
    (on.NodeLeft, Handling.NOW): Membership._on_left,
    (on.CloseRequested, Handling.NOW): Membership._on_close_requested,
    (on.CloseRequested, Handling.KEPT): Membership._keep,
    # `_heard_from` has done all that these two events mean.
    (on.ProbeAnswered, Handling.NOW): Membership._ignore,
    (on.NodeHeard, Handling.NOW): Membership._ignore,
    (on.ConnectionLost, Handling.NOW): Membership._on_connection_lost,
    (on.ConnectionLost, Handling.RECORDED): Membership._record_disconnected,
    (on.NodeSilent, Handling.NOW): Membership._on_silent,
    (on.TimerFired, Handling.NOW): Membership._on_timer,
    (on.Committed, Handling.NOW): Membership._on_committed,
    (on.Committed, Handling.RECORDED): Membership._record_committed,
    (on.MarksWritten, Handling.NOW): Membership._on_marks_written,
    (on.CommitRefused, Handling.NOW): Membership._on_commit_refused,
    (on.LedgerLost, Handling.NOW): Membership._on_ledger_lost,
    (on.LedgerRestored, Handling.NOW): Membership._on_ledger_restored,
    (on.StoreLost, Handling.NOW): Membership._on_store_lost,
    **{(event, Handling.IGNORED): Membership._ignore for event in on.EVENTS},
    **{(event, Handling.UNDERLYING): Membership._as_in_phase_of_work for event in on.EVENTS},
}
"""The function for each handling of an event that the table of transitions names."""
_HANDLER_OF: Final = {
    (phase, event): HANDLERS[event, cell.handling] for (phase, event), cell in TRANSITIONS.items()
}


def _leave_last_round(members: Iterable[Member], ended_by: Change | None) -> None:
    """Make active members idle, and no member a survivor.

    `ended_by`: why the last round is over, for members that attach later.
    """
    for member in members:
        # R4: a member outside the new round is in none.
        if member.state is _IS_ACTIVE:
            member.state = MemberState.IDLE
        if member.survivor and ended_by is not None:
            member.last_change = ended_by
        # R7: no later round waits for it.
        member.survivor = False
