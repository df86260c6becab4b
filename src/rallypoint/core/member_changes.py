"""Members come and go: a node is admitted, and a member is taken out with all that follows.

Why a member goes is decided elsewhere: it said goodbye, was lost, or was superseded.
"""

from __future__ import annotations

from rallypoint.core import causes, cooling, ordering, reasons, rounds
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.roster import Bucket, Member
from rallypoint.core.state import MembershipState
from rallypoint.core.values import Change, ChangeKind, Phase


def admit(run: MembershipState, event: on.NodeAttached) -> None:
    if not len(run.roster) and run.phase_of_work is Phase.GATHERING:
        run._since_s = run._now_s
    member = run.roster.add(event.node, event.connection_id, run._now_s, event.secret_hash)
    member.takes_orders, member.agrees = event.takes_orders, event.agrees
    cooling.update(run, member)
    locate(run, member, event)
    standing = do.Standing(change=run.departure_history.change(member.name))
    run._do(do.Welcome(event.connection_id, member.id, resumed=False, standing=standing))
    ordering.ask_again(run, member)


def locate(run: MembershipState, member: Member, event: on.NodeAttached) -> None:
    """Record where it is, for its witnesses and as one."""
    member.address, member.is_beside = event.address, event.is_beside
    member.is_witness = event.is_witness
    run._do(*run.witnesses.attached(member))


def supersede(run: MembershipState, member: Member) -> None:
    run._do(do.Supersede(member.id, reasons.superseded(member.name)))
    remove(run, [member], ChangeKind.NODE_LOST, reasons.SUPERSEDED)


def explain_by_departure(run: MembershipState, member: Member, reason: str) -> None:
    """The departure of this member may explain the communication errors of the open case."""
    if member.survivor and run.case is not None:
        left = causes.happened(ChangeKind.NODE_LEFT, run.number, [member.name], reason)
        run.case.add_departure(left)


def remove_gone(run: MembershipState, members: list[Member], detail: str) -> None:
    """Remove these members. Those that are neither done nor departing are lost."""
    lost = [member for member in members if member.is_troubled]
    if lost:
        remove(run, lost, ChangeKind.NODE_LOST, detail)
    ended = [member for member in members if not member.is_troubled]
    if ended:
        remove(run, ended, ChangeKind.NODE_LEFT, reasons.ENDED_AFTER_WORK)


def remove(
    run: MembershipState,
    members: list[Member],
    kind: ChangeKind,
    detail: str,
    *,
    says_goodbye: bool = False,
) -> None:
    """Take out members. If any of them was active, the round ends, once for all of them."""
    since_s = max(member.trouble_s(run._now_s) for member in members)
    in_round = [m.name for m in members if m.bucket is Bucket.IN_ROUND]
    survivors = [m.name for m in members if m.survivor]
    is_round_on = run.phase_of_work is Phase.ACTIVE
    for member in members:
        if kind is ChangeKind.NODE_LEFT:
            explain_by_departure(run, member, detail)
        own = causes.happened(kind, run.number, [member.name], detail, since_s)
        # R13: the loss of a member ends its round.
        breaks = is_round_on and member.bucket is Bucket.IN_ROUND
        is_loss = kind is ChangeKind.NODE_LOST and not breaks
        take_out(run, member, own, says_goodbye=says_goodbye, is_loss=is_loss)
    # R13: the others must not go on without it.
    if in_round and run.phase_of_work is Phase.ACTIVE:
        change = causes.happened(kind, run.number, in_round, detail, since_s)
        rounds.break_round(run, change)
        cooling.blamed(run, change)
    elif survivors and run.case is not None and kind is ChangeKind.NODE_LOST:
        run.case.add_loss(causes.happened(kind, run.number, survivors, detail, since_s))
    for member in members:
        free_name(run, member.name)


def free_name(run: MembershipState, name: str) -> None:
    """Its member was taken out: admit the newcomer that waits for the name, if any."""
    newcomer = run._name_conflicts.pop(name) or run._suspended_events.take_attached(name)
    if newcomer is None:
        return
    evicted = run._orders.eviction_of(name)
    # R4: an evicted node gets no round of this run, also if it has waited for its name.
    if evicted is not None:
        refusal = reasons.evicted(evicted, knows=newcomer.takes_orders)
        run._do(do.Refuse(newcomer.connection_id, refusal))
    else:
        admit(run, newcomer)


def take_out(
    run: MembershipState,
    member: Member,
    change: Change,
    *,
    says_goodbye: bool = False,
    is_loss: bool = False,
) -> None:
    """Take out one member. `is_loss`: it was lost, and its loss ends no round."""
    # R4: a round that is being written must not begin without it.
    run._committing.member_went(member, change.kind, change.detail)
    stayed_s = run._now_s - member.attached_s
    is_done = member.bucket is Bucket.DONE
    run.departure_history.remember(member.name, change, stayed_s=stayed_s, is_done=is_done)
    # R10: the mark of a node that is done stays.
    if not is_done:
        run._marking.gone(member.id, run._now_s if says_goodbye else rounds.later_s(run))
    if says_goodbye:
        # It has left in order, as it was asked. A node that was lost may come back, and is asked
        # again.
        run._orders.now = run._orders.now.without_drain(member.id)
    run.roster.remove(member)
    run._suspicion.gone(member)
    run._do(*run.witnesses.gone(member))
    reason = str(change)
    # R10: the ledger has its marks before it may go.
    # The goodbye is answered when the ledger has the node's marks.
    waits = says_goodbye and run._marking.farewell(
        member.id,
        member.connection_id,
        reason,
        is_being_written=run._committing.is_writing(member),
    )
    run._do(do.Forget(member.id, reason, waits, change if is_loss else None, change))


def end_attach_grace(run: MembershipState) -> None:
    run._takeover.end_grace()
    for name in run._name_conflicts.names():
        member = run.roster.get(name)
        # R8: a member that has attached keeps its name.
        if member is not None and run._suspicion.has_never_attached(member):
            supersede(run, member)
