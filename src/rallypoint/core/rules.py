"""The rules, in order, after each event: who is lost, what the cause was, whether the run is over,
and whether a round is formed.
"""

from __future__ import annotations

from rallypoint.core import (
    agreeing,
    causes,
    cooling,
    member_changes,
    ordering,
    reasons,
    rounds,
    writing,
)
from rallypoint.core.roster import Bucket, Member
from rallypoint.core.state import MembershipState
from rallypoint.core.values import ChangeKind, Outcome, Phase, Reachability, RunSettings

# Each event uses these. To find a member in its class takes seven times as long (Python 3.11).
_GATHERING = Phase.GATHERING
_ACTIVE = Phase.ACTIVE
_NEWCOMER = Bucket.NEWCOMER
_WITHOUT_RULES = (Phase.SUSPENDED, Phase.CLOSED)
"""The phases in which the rules do not apply."""


def advance(run: MembershipState) -> None:
    """Apply all rules to the present state, in order."""
    # R5: while SUSPENDED nothing is decided. R6: nor after the close.
    if run.settings is None or run.phase in _WITHOUT_RULES:
        return
    # R7: all have attached, so the round waits for none.
    if run._takeover.is_grace_on and not run._suspicion.has_absent:
        member_changes.end_attach_grace(run)
    if not run._suspicion.is_quiet:
        # R8: a process that has ended gets no grace, and the mass guard does not protect it.
        member_changes.remove_gone(run, run._suspicion.ended_members(), reasons.PROCESS_ENDED)
        # R8: the guard first, then the deadlines.
        run._do(*run._suspicion.update_guard(run.settings, run._now_s))
        # R8: while many are missing, none of them is lost, nor when most are back.
        if run._suspicion.guarding:
            run.witnesses.drop()
        for members, evidence in run.witnesses.lost():
            member_changes.remove_gone(run, members, evidence)
        overdue = run._suspicion.past_deadline()
        # R8: a member past its deadline is lost now.
        for why, members in _by_reason(overdue).items():
            member_changes.remove_gone(run, members, why)
    # R8: the next hosts are asked about as soon as that is possible.
    if run.witnesses.has_unasked and not run._suspicion.guarding:
        run._do(*run.witnesses.ask_next(run.settings))
    if run._failed_in_burst and not run._suspicion.in_burst:
        failures, run._failed_in_burst = run._failed_in_burst, []
        for each in failures:
            run._handle(each)
    if run.case is not None and run.case.final is not None and run.phase is _GATHERING:
        rounds.end_at_once(run)
    if run.case is not None and not run.case.closed:
        rounds.close_case(run)
    pace = run._gathering.pace
    if pace.is_slowed and pace.is_storm and run.phase is _GATHERING:
        close_as_storm(run)
    if run.phase is _ACTIVE:
        advance_active(run, run.settings)
    if run.phase is _GATHERING:
        advance_gathering(run, run.settings)


def _by_reason(overdue: list[Member]) -> dict[str, list[Member]]:
    """Members past their deadline, by why they are lost: those that are alike end a round once."""
    found: dict[str, list[Member]] = {}
    for member in overdue:
        if member.closed_because:
            found.setdefault(member.closed_because, []).append(member)
    others = [member for member in overdue if not member.closed_because]
    if others:
        is_closed = others[0].reachability is Reachability.DISCONNECTED
        found[reasons.NOT_RESUMED if is_closed else reasons.NOT_HEARD] = others
    return found


def advance_active(run: MembershipState, settings: RunSettings) -> None:
    in_round = run.roster.count(Bucket.IN_ROUND)
    if not in_round:
        # A loss or a departure ends a round, so all of its members are done.
        writing.close_run(run, Outcome.SUCCEEDED, reasons.ALL_FINISHED)
        return
    if run._agreement.is_open:
        agreeing.advance(run)
    scale = run._orders.now.scale
    # R3: an operator wants fewer nodes. A round of which a node has finished ends by itself.
    if in_round > settings.max_nodes and not run._finished.count:
        assert scale is not None
        rounds.break_round(run, ordering.scaled_down(run, scale))
        return
    # R3: newcomers get free places only.
    free = settings.max_nodes - in_round
    # Members that should stay out were let in for want of others, so others get their places.
    if not free and run._let_in:
        free = cooling.places_for_others(run)
    # R3: without a free place the round is left alone.
    if run._finished.count or not free or not run.roster.count(_NEWCOMER):
        return
    # R3: with too few newcomers, the next round could not be formed. So the present one goes on.
    if in_round + run.roster.count(_NEWCOMER) < settings.min_nodes:
        return
    newcomers = run._scale_up.take(run._now_s)
    if newcomers:
        names = [member.name for member in newcomers[:free]]
        rounds.break_round(run, causes.happened(ChangeKind.NODES_JOINED, run.number, names))
    else:
        run._do(*run._scale_up.wait(run.number, run._now_s))


def advance_gathering(run: MembershipState, settings: RunSettings) -> None:
    if run._finished.count and is_ending(run, settings):
        return
    gathering = run._gathering
    # R3: below the minimum no round is formed.
    if 0 < run.roster.ready_count < settings.min_nodes:
        # This is Decision.TOO_FEW, found quickly, because thousands of nodes attach one by one.
        if gathering.is_settling:
            gathering.unsettle()
        return
    decision = gathering.decide(settings)
    if not decision.forms_round:
        # R7: a round that is not formed now has a timer, or waits for nodes.
        run._do(*gathering.wait(decision, settings, run.number + 1, run._now_s))
        return
    pause_s = gathering.pace.wait_s(run._now_s)
    if pause_s > 0:
        # R7: the pause ends by a timer, too.
        run._do(*gathering.pause(pause_s, run.number + 1, run._now_s))
    else:
        rounds.form_round(run, settings)


def is_ending(run: MembershipState, settings: RunSettings) -> bool:
    """End the run if its round is done, or if it cannot reach the minimum any more.

    True if the run ends, now or when the open case is closed.
    """
    # R7: all of its nodes are done, so the run waits for none.
    if run.round is not None and run._finished.in_round == run.round.head.nodes:
        writing.close_run(run, Outcome.SUCCEEDED, reasons.ALL_FINISHED)
        return True
    remaining = run.roster.awaited_count
    if remaining >= settings.min_nodes:
        return False
    # Cause before consequence: the close waits for the open case, so that it names the cause.
    if run.case is None or run.case.closed or run._probe.is_over:
        rounds.close_case(run, forced=True)
        if run.phase is Phase.GATHERING:
            cause = run.case.change if run.case is not None else None
            reason = reasons.too_few_remain(remaining, settings.min_nodes, run._finished.count)
            writing.close_run(run, Outcome.NOT_ENOUGH, reason, cause=cause)
    return True


def close_as_storm(run: MembershipState) -> None:
    """Close a run whose members do no work and slow down the coordinator's other runs."""
    rounds.close_case(run, forced=True)
    if run.phase is Phase.GATHERING:
        cause = run.case.change if run.case is not None else None
        pace = run._gathering.pace
        reason = reasons.storm(pace.ended, pace.since_s(run._now_s), cause)
        writing.close_run(run, Outcome.FAILED, reason, cause=cause)
