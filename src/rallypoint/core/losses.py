"""Members that cannot be heard, and the timers that decide about them.

`suspicion` keeps who is suspect, and for how long.
"""

from __future__ import annotations

from rallypoint.core import agreeing, cooling, hangs, member_changes, rounds
from rallypoint.core import events as on
from rallypoint.core.effects import TimerKind
from rallypoint.core.state import MembershipState
from rallypoint.core.values import ConnectionEnd, Reachability

_JUDGING = (
    TimerKind.CASE,
    TimerKind.PROBE,
    TimerKind.NAME,
    TimerKind.ATTACH,
    TimerKind.GRACE,
    TimerKind.LOST,
    TimerKind.MASS,
    TimerKind.HANG,
    TimerKind.WITNESS,
)
"""The timers that decide whether a member is lost, or a round hangs."""


def on_connection_lost(run: MembershipState, event: on.ConnectionLost) -> None:
    member = run.roster.living(event.node)
    # R8: the end of an earlier connection says nothing.
    if member is None or member.connection_id != event.connection_id:
        run._name_conflicts.drop(event.node, event.connection_id)
        return
    # R8: the grace runs from the first end.
    if member.reachability is Reachability.DISCONNECTED:
        return
    assert run.settings is not None
    # R8: a connection that ended has its own evidence, and its own grace.
    run.witnesses.heard(member)
    if event.how is ConnectionEnd.PROCESS_ENDED:
        # R8: this is proof. `rules` removes the member, which frees its name.
        run._do(*run._suspicion.ended(member, run._now_s))
        return
    member.closed_because = event.why
    run._do(*run._suspicion.disconnected(member, run.settings, run._now_s))
    newcomer = run._name_conflicts.waiting.get(member.name)
    if newcomer is not None:
        conflicts = run._name_conflicts
        run._do(*conflicts.challenge(member, newcomer, run.settings, run._now_s))


def record_disconnected(run: MembershipState, event: on.ConnectionLost) -> None:
    """Record it without a decision: the grace begins when the ledger is back."""
    run._suspended_events.forget_attached(event.node, event.connection_id)
    member = run.roster.living(event.node)
    # R8: the end of an earlier connection says nothing.
    if member is None or member.connection_id != event.connection_id:
        run._name_conflicts.drop(event.node, event.connection_id)
    elif member.reachability is Reachability.DISCONNECTED:
        return  # Another end of this connection was recorded before.
    elif event.how is ConnectionEnd.PROCESS_ENDED:
        run._do(*run._suspicion.ended(member, run._now_s))
    elif run.settings is not None:
        member.closed_because = event.why
        run._suspicion.disconnected(member, run.settings, run._now_s)


def on_beats_missed(run: MembershipState, event: on.BeatsMissed) -> None:
    member = run.roster.living(event.node)
    # R8: only a member that could be heard until now.
    if member is None or member.reachability is not Reachability.CONNECTED:
        return
    assert run.settings is not None
    run.witnesses.missed(member, run.settings)


def on_testified(run: MembershipState, event: on.HostReported) -> None:
    member = run.roster.living(event.node)
    # R8: only a member is a witness.
    if member is not None:
        run._do(*run.witnesses.testified(member, event.question, event.report))


def on_silent(run: MembershipState, event: on.NodeSilent) -> None:
    member = run.roster.living(event.node)
    # R8: only a member that can be heard falls silent.
    if member is None or member.reachability is not Reachability.CONNECTED or run.settings is None:
        return
    run._do(*run._suspicion.silent(member, run.settings, run._now_s, event.silent_s))
    # R8: who could not be asked before may be there now.
    if not run.suspension:
        run.witnesses.missed(member, run.settings)
    else:
        run.witnesses.unheard(member)


def on_timer(run: MembershipState, event: on.TimerFired) -> None:
    timer = event.timer
    # R8: no member is judged while SUSPENDED.
    if run.suspension and timer.kind in _JUDGING:
        return  # Later: `judge_again` sets these timers again.
    # R8: a deadline that was moved does not count.
    if not run._timers.take(timer):
        return  # It is stale.
    match timer.kind:
        case TimerKind.SETTLE | TimerKind.LAST_CALL | TimerKind.STOP | TimerKind.PACE:
            run._gathering.timer_fired(timer.kind, run._now_s)
        case TimerKind.COOLDOWN:
            for each in cooling.timer_fired(run):
                each.told_standby = False  # The reason that it was told is over.
                rounds.consider_newcomer(run, each)
        case TimerKind.SCALE_UP:
            run._scale_up.timer_fired()
        case TimerKind.CASE:
            run._probe.is_settled = True
        case TimerKind.PROBE:
            run._suspicion.probe_over()
        case TimerKind.NAME:
            member = run.roster.get(timer.name)
            if member is not None:
                member_changes.supersede(run, member)
        case TimerKind.ATTACH:
            member_changes.end_attach_grace(run)
        case TimerKind.MARKS:
            run._marking.timer_fired()
        case TimerKind.WATCH:
            run._do(*run.witnesses.watching.timer_fired())
        case TimerKind.WITNESS:
            if run.settings is not None:
                run._do(*run.witnesses.timer_fired(timer.name, run.settings))
        case TimerKind.GRACE | TimerKind.LOST | TimerKind.MASS:
            run._suspicion.deadline_passed(timer)
        case TimerKind.DRAIN:
            agreeing.timer_fired(run)
        case TimerKind.HANG:
            hangs.look(run)
        case TimerKind.BURST:
            pass  # The wait is over: `rules` goes on.


def judge_again(run: MembershipState) -> None:
    """R8: judge members again. Each deadline has the time that it had left."""
    settings = run.settings
    if settings is None:
        run._clock.go_on(run._now_s)
        return
    run._do(*run._suspicion.go_on(settings, run._now_s))
    hangs.go_on(run)
    run.witnesses.judge_again()
    if run._suspicion.has_absent:
        run._do(*run._takeover.go_on(settings, run._now_s))
        if not run._takeover.is_grace_on:
            member_changes.end_attach_grace(run)
    if run.case is not None and not run.case.closed:
        run._do(*run._probe.go_on(settings, run.number, run._now_s))
        if run._probe.is_over:
            run._suspicion.probe_over()
    conflicts = run._name_conflicts
    for name in conflicts.names():
        member = run.roster.get(name)
        if member is None:
            continue
        # R8: the older node has the rest of its time to answer.
        if conflicts.is_over(member, settings, run._now_s):
            member_changes.supersede(run, member)
        else:
            run._do(*conflicts.go_on(member, settings, run._now_s))
