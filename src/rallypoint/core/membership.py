"""The state of one run: its members, when a round is formed, and when the run ends.

`Membership.step(event, now_s)` changes the state in place and returns what to do about it. A step
has two parts. First a handler takes the event; `transitions` says which one. Then `rules` looks
at the counts and does what the rules demand: it declares losses, closes a case, forms a round, or
ends the run. So each rule is in one place, for all events.

This file has `step`, the takeover, and the table of the handlers. Handlers are functions of the
`state`: `attaching`, `requests`, `losses`, `ledger_events`. They and `rules`, which has the order
of all rules, change it by the same few functions: `member_changes`, `rounds`, `writing`. Decisions,
waits and memory that need less than the whole state have files of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from rallypoint.core import (
    agreeing,
    attaching,
    cooling,
    hangs,
    ledger_events,
    losses,
    operator_requests,
    requests,
    rounds,
    rules,
    writing,
)
from rallypoint.core import events as on
from rallypoint.core.agreement import Agreement
from rallypoint.core.effects import Effect
from rallypoint.core.election import RunState
from rallypoint.core.finished import Finished
from rallypoint.core.marking import ranks_in
from rallypoint.core.state import MembershipState
from rallypoint.core.transitions import TRANSITIONS, Handling
from rallypoint.core.values import (
    Marks,
    NodeId,
    Phase,
    Reachability,
)

# Each event uses it. To find a member in its class takes seven times as long (Python 3.11).
_SILENT = Reachability.SILENT


class Membership(MembershipState):
    """The members and rounds of one run. Not thread-safe: one owner steps it."""

    def step(self, event: on.Event, now_s: float) -> list[Effect]:
        """Take one event at `now_s` (seconds, never going back) and return what to do about it."""
        self._now_s = now_s
        self._effects = []
        if isinstance(event, on.SignOfLife):
            self._heard_from(event)
        _HANDLER_OF[self.phase, type(event)](self, event)
        rules.advance(self)
        if self._marking.due_s is not None:
            writing.write_marks(self)
        effects, self._effects = self._effects, []
        return effects

    def progressed(self, event: on.NodeProgressed, now_s: float) -> bool:
        """Take a report to which nothing else follows, in less time than `step`. False: step it."""
        return self.phase is Phase.ACTIVE and hangs.is_quick(self, event, now_s)

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
        if not self.witnesses.is_idle:
            self.witnesses.heard(member)
        if member.reachability is _SILENT:
            # R8: a member that answers is not lost.
            self._suspicion.heard(member)
            rounds.consider_newcomer(self, member)

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
        self._orders.restore(state.orders)
        self.adopt_settings(state.settings)
        self.restart_count = state.restarts
        # R11: what was charged stays charged.
        self._blame.restore(state.blame, state.restarts, self.settings, now_s)
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
            # R14: a step that was decided stays, whoever owns the run.
            self._agreement = Agreement(marks.step)
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
            cooling.update_all(self)
            if marks.ended is not None:
                rounds.break_round(self, marks.ended)
            elif store_lost:
                rounds.lose_store(self, store_lost)
        effects, self._effects = self._effects, []
        return effects

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


HANDLERS: Final[dict[tuple[type[on.Event], Handling], Callable[[Membership, Any], None]]] = {
    (on.NodeAttached, Handling.NOW): attaching.on_attached,
    (on.NodeAttached, Handling.RECORDED): attaching.attach_suspended,
    (on.NodeAttached, Handling.REFUSED): attaching.refuse_closed,
    (on.NodeReady, Handling.NOW): requests.on_ready,
    (on.WorkerFailed, Handling.NOW): requests.on_worker_failed,
    (on.NodeDone, Handling.NOW): requests.on_done,
    (on.NodeDeparting, Handling.NOW): requests.on_departing,
    (on.NodeTakesPart, Handling.NOW): agreeing.on_takes_part,
    (on.NodeDraining, Handling.NOW): agreeing.on_draining,
    (on.StepPromised, Handling.NOW): agreeing.on_promised,
    (on.NodeLeft, Handling.NOW): requests.on_left,
    (on.CloseRequested, Handling.NOW): requests.on_close_requested,
    (on.CloseRequested, Handling.KEPT): attaching.keep,
    (on.DrainRequested, Handling.NOW): operator_requests.on_drain_requested,
    (on.DrainRequested, Handling.KEPT): attaching.keep,
    (on.EvictRequested, Handling.NOW): operator_requests.on_evict_requested,
    (on.EvictRequested, Handling.KEPT): attaching.keep,
    (on.AdmitRequested, Handling.NOW): operator_requests.on_admit_requested,
    (on.AdmitRequested, Handling.KEPT): attaching.keep,
    (on.ScaleRequested, Handling.NOW): operator_requests.on_scale_requested,
    (on.ScaleRequested, Handling.KEPT): attaching.keep,
    # `_heard_from` has done all that these two events mean.
    (on.ProbeAnswered, Handling.NOW): Membership._ignore,
    (on.NodeHeard, Handling.NOW): Membership._ignore,
    (on.NodeProgressed, Handling.NOW): hangs.on_progressed,
    (on.StacksTold, Handling.NOW): hangs.on_stacks_told,
    (on.ConnectionLost, Handling.NOW): losses.on_connection_lost,
    (on.ConnectionLost, Handling.RECORDED): losses.record_disconnected,
    (on.BeatsMissed, Handling.NOW): losses.on_beats_missed,
    (on.HostReported, Handling.NOW): losses.on_testified,
    (on.NodeSilent, Handling.NOW): losses.on_silent,
    (on.TimerFired, Handling.NOW): losses.on_timer,
    (on.Committed, Handling.NOW): ledger_events.on_committed,
    (on.Committed, Handling.RECORDED): ledger_events.record_committed,
    (on.MarksWritten, Handling.NOW): ledger_events.on_marks_written,
    (on.CommitRefused, Handling.NOW): ledger_events.on_commit_refused,
    (on.LedgerLost, Handling.NOW): ledger_events.on_ledger_lost,
    (on.LedgerRestored, Handling.NOW): ledger_events.on_ledger_restored,
    (on.StoreLost, Handling.NOW): ledger_events.on_store_lost,
    **{(event, Handling.IGNORED): Membership._ignore for event in on.EVENTS},
    **{(event, Handling.UNDERLYING): Membership._as_in_phase_of_work for event in on.EVENTS},
}
"""The function for each handling of an event that the table of transitions names."""
_HANDLER_OF: Final = {
    (phase, event): HANDLERS[event, cell.handling] for (phase, event), cell in TRANSITIONS.items()
}
