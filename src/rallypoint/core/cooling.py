"""Nodes that break too many rounds stay out for a while, and so do those whose own check fails.

`blame` counts the rounds that each node broke. A node above the limit is *cooling*: it keeps no
place, and a round has it only if there are too few others for the minimum (`formation`). This file
keeps the members' marks, and the timer at which the next of them may come in again.
"""

from __future__ import annotations

from rallypoint.core import effects as do
from rallypoint.core import reasons
from rallypoint.core.blame import breaker_of
from rallypoint.core.effects import TimerKind
from rallypoint.core.roster import Bucket, Member
from rallypoint.core.state import MembershipState
from rallypoint.core.values import Change


def blamed(run: MembershipState, change: Change) -> None:
    """The cause of a round's end is known: the node that broke it may have to stay out."""
    settings, name = run.settings, breaker_of(change)
    if settings is None or settings.max_restarts_per_node is None or not name:
        return
    # An operator has taken it out: that is not its fault.
    if run._orders.now.eviction_of(name) is not None:
        return
    known = run._blame.names()
    offence = run._blame.broke(name, str(change.failure or change.detail), settings, run._now_s)
    for each in known:
        if run._blame.offence(each) is None:
            _forgotten(run, each)
    left_s = offence.left_s(run._now_s)
    if not left_s:
        return
    run._do(do.StayOut(name, reasons.broke_rounds(offence.rounds, offence.last), left_s))
    member = run.roster.get(name)
    if member is not None:
        update(run, member)
    set_timer(run)


def _forgotten(run: MembershipState, name: str) -> None:
    """There was no room to remember this node: nobody would let it in at the end of its time."""
    member = run.roster.get(name)
    if member is not None and member.is_cooling:
        run._do(do.Forgive(name))
        # R7: no node stays out for ever.
        update(run, member)


def update(run: MembershipState, member: Member) -> None:
    """Whether the member stays out may have changed."""
    offence = run._blame.offence(member.name)
    member.is_cooling = offence is not None and offence.left_s(run._now_s) > 0
    member.rounds_broken = offence.rounds if offence is not None else 0
    run.roster.reindex(member)


def fitness(run: MembershipState, member: Member, unfit: str) -> None:
    """The node says why its own check failed, or that it is fit again ("")."""
    if unfit:
        run._do(do.StayOut(member.name, reasons.unfit(unfit), None))
    else:
        run._do(do.Forgive(member.name))
    member.unfit = unfit
    member.told_standby = False  # It is told the new reason.
    run.roster.reindex(member)


def update_all(run: MembershipState) -> None:
    """The same for all nodes that broke rounds: another coordinator begins."""
    for name in run._blame.names():
        member = run.roster.get(name)
        if member is not None:
            update(run, member)
    set_timer(run)


def set_timer(run: MembershipState) -> None:
    """Set the timer for the first node that may come in again."""
    left_s = run._blame.next_end_s(run._now_s)
    if left_s is not None:
        # R7: no node stays out for longer.
        run._do(run._timers.set(TimerKind.COOLDOWN, left_s, round_number=run.number))


def timer_fired(run: MembershipState) -> list[Member]:
    """The time of some nodes is over: these are newcomers like any other."""
    found = []
    for name in run._blame.cooled(run._now_s):
        run._do(do.Forgive(name))
        member = run.roster.get(name)
        if member is not None:
            update(run, member)
            found.append(member)
    set_timer(run)
    return found


def let_in(run: MembershipState, chosen: list[Member]) -> None:
    """A round is formed. Tell people which of its members should have stayed out."""
    out = [member for member in chosen if member.stays_out]
    run._let_in = tuple(member.id for member in out)
    for member in out:
        run._do(do.LetBackIn(member.id, why_out(run, member)))


def places_for_others(run: MembershipState) -> int:
    """How many members of the active round leave their places to others, if others come."""
    members = (run.roster.living(node) for node in run._let_in)
    return sum(
        member is not None and member.stays_out and member.bucket is Bucket.IN_ROUND
        for member in members
    )


def why_out(run: MembershipState, member: Member) -> str:
    """Why the member stays out; "" if it does not."""
    if member.unfit:
        return reasons.unfit(member.unfit)
    offence = run._blame.offence(member.name)
    if member.is_cooling and offence is not None:
        return reasons.broke_rounds(offence.rounds, offence.last)
    return ""


def told_to(run: MembershipState, member: Member) -> str:
    """What a node on standby is told if it stays out: why, and for how long; else ""."""
    why = why_out(run, member)
    return reasons.stays_out(left_s(run, member, run._now_s), why) if why else ""


def left_s(run: MembershipState, member: Member, now_s: float) -> float:
    """For how many seconds it stays out still."""
    offence = run._blame.offence(member.name)
    if member.unfit:
        return 0.0  # Until it says that its check has passed.
    return offence.left_s(now_s) if member.is_cooling and offence is not None else 0.0
