"""A node attaches: it is admitted, resumed, refused, or has to wait for its name."""

from __future__ import annotations

import msgspec

from rallypoint.core import agreeing, member_changes, ordering, reasons, rounds
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.admission import BEGIN_AGAIN_AFTER_S
from rallypoint.core.ranks import POLICIES
from rallypoint.core.reasons import Refusal
from rallypoint.core.roster import Bucket, Member
from rallypoint.core.state import MembershipState
from rallypoint.core.values import MemberState

# Each event uses these. To find a member in its class takes seven times as long (Python 3.11).
_IS_READY = MemberState.READY


def on_attached(run: MembershipState, event: on.NodeAttached) -> None:
    refusal = refusal_of(run, event)
    if refusal is not None:
        run._do(do.Refuse(event.connection_id, refusal))
        return
    assert run.settings is not None
    member = run.roster.get(event.node.name)
    if member is None:
        member_changes.admit(run, event)
    elif member.info.incarnation != event.node.incarnation:
        run._do(*run._name_conflicts.asked(member, event, run.settings, run._now_s))
    # R8: without the proof, nothing changes for the member.
    elif member.is_proved_by(event.secret_hash):
        resume(run, member, event)
    else:
        # Others may know the incarnation, so it alone does not prove that the node is the
        # member.
        run._do(do.Refuse(event.connection_id, reasons.not_the_member(member.name)))


def refusal_of(run: MembershipState, event: on.NodeAttached) -> Refusal | None:
    """Why the node is refused; None if it is admitted."""
    evicted = run._orders.eviction_of(event.node.name)
    # R4: a node that an operator has evicted gets no round of this run, however it is started.
    if evicted is not None:
        return reasons.evicted(evicted, knows=event.takes_orders)
    if event.settings.rank_policy not in POLICIES:
        return reasons.unknown_policy(event.settings.rank_policy, sorted(POLICIES))
    if run.settings is None or not len(run.roster):
        # The first node's settings become the run's.
        run.adopt_settings(event.settings)
        run._admission.settings_are_of(event.node, run._now_s)
    assert run.settings is not None
    assert run.asked_settings is not None
    return run._admission.refusal(
        event.node,
        event.settings,
        run.asked_settings,
        run.roster,
        is_new=run.round is None and not run._has_successor,
        is_scaled=run._orders.now.scale is not None,
        now_s=run._now_s,
    )


def attach_suspended(run: MembershipState, event: on.NodeAttached) -> None:
    """SUSPENDED: a second node of one name waits, because the first one is not judged now."""
    member = run.roster.get(event.node.name)
    if member is None or member.info.incarnation == event.node.incarnation:
        on_attached(run, event)
        return
    waiting = run._suspended_events.attached(event.node.id)
    if waiting is not None and waiting.secret_hash != event.secret_hash:
        run._do(do.Refuse(event.connection_id, reasons.name_taken(member.name, member.info.host)))
    else:
        keep(run, event)


def resume(run: MembershipState, member: Member, event: on.NodeAttached) -> None:
    member.connection_id = event.connection_id
    member.closed_because = ""
    member.takes_orders, member.agrees = event.takes_orders, event.agrees
    if member.info.index != event.node.index:
        # The member table of a round, from which a successor knows it, has no indexes.
        member.info = msgspec.structs.replace(member.info, index=event.node.index)
    member_changes.locate(run, member, event)
    # R8: it has come back within its grace.
    run._suspicion.heard(member)
    run._probe.answered(member.name)
    if run._name_conflicts.waiting:
        run._do(*run._name_conflicts.refuse(member))
    is_standby = run.is_standby(member)
    # The welcome tells it, but not why a node stays out.
    member.told_standby = is_standby and not member.stays_out
    # R7: its stop time is bounded, and begins now.
    if member.survivor:
        run._gathering.stopping.told(member, run._now_s)
    standing = do.Standing(
        # R4: a node that is not in the round must end it.
        round=member.last_round if member.bucket in (Bucket.IN_ROUND, Bucket.DONE) else 0,
        change=run.case.change if run.case and member.survivor else member.last_change,
        ready=member.state is _IS_READY,
        standby=is_standby,
    )
    run._do(do.Welcome(event.connection_id, member.id, resumed=True, standing=standing))
    rounds.consider_newcomer(run, member)
    ordering.ask_again(run, member)
    agreeing.tell_again(run, member)


def refuse_closed(run: MembershipState, event: on.NodeAttached) -> None:
    assert run.close is not None
    ago_s = run.closed_ago_s(run._now_s)
    again_after_s = max(0.0, BEGIN_AGAIN_AFTER_S - ago_s) if run._can_begin_again else None
    refusal = reasons.run_closed(run.run_id, run.close, ago_s, again_after_s)
    run._do(do.Refuse(event.connection_id, refusal))


def keep(run: MembershipState, event: on.Event) -> None:
    """SUSPENDED: keep an event that needs the ledger until the ledger is back."""
    run._suspended_events.keep(event)
