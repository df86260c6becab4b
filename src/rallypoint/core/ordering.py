"""What follows from the orders of operators: who is told, when, and what the ledger gets.

`orders` keeps them; they are written to the run's head. A drain is told to the node when the ledger
has it, so that a successor asks again. An eviction counts at once, as a loss does.
"""

from __future__ import annotations

from collections.abc import Iterable

from rallypoint.core import causes
from rallypoint.core import effects as do
from rallypoint.core.orders import Order, Scale
from rallypoint.core.roster import Member
from rallypoint.core.state import MembershipState
from rallypoint.core.values import Change, ChangeKind, MemberState

GOING = (MemberState.DONE, MemberState.DEPARTING)
"""The states of members that leave anyway."""


def wanted(run: MembershipState) -> None:
    """The ledger has to know a new order."""
    run._marking.ordered(run._now_s)


def scaled_down(run: MembershipState, scale: Scale) -> Change:
    """Why a round ends that has more nodes than an operator wants."""
    # Nodes of earlier releases know this kind of change.
    return causes.happened(ChangeKind.READY_AGAIN, run.number, (), str(scale))


def ask(run: MembershipState, drain: Order, *, is_repeat: bool = False) -> None:
    """Ask the node to leave, if it is there."""
    # R5: a deposed coordinator asks for nothing any more.
    if run.deposed:
        return
    member = run.roster.living(drain.node)
    if member is not None and member.takes_orders and member.state not in GOING:
        run._do(do.AskToLeave(drain, is_repeat))


def ask_again(run: MembershipState, member: Member) -> None:
    """The member has attached, here or again: it may not have heard that it has to leave."""
    drain = run._orders.written.drain_of(member.id)
    if drain is not None:
        ask(run, drain, is_repeat=True)


def recorded(run: MembershipState) -> None:
    """The ledger has a record, with the orders of when it was formed."""
    in_ledger(run, run._orders.record_written())
    # R7: later orders are written next.
    if run._orders.is_due:
        run._marking.ordered(run._now_s)


def in_ledger(run: MembershipState, drains: Iterable[Order]) -> None:
    """The ledger has these drains now: a successor would ask, too."""
    for drain in drains:
        ask(run, drain)
