"""What operators ask for: a node is drained, evicted or admitted again, or the run is scaled.

`orders` keeps it, and `ordering` tells nodes and the ledger.
"""

from __future__ import annotations

from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core import member_changes, ordering, reasons
from rallypoint.core.orders import order
from rallypoint.core.state import MembershipState
from rallypoint.core.values import ChangeKind, RoundRecord


def on_drain_requested(run: MembershipState, event: on.DrainRequested) -> None:
    member = run.roster.living(event.node)
    # A node that does not know what it is asked would drop the connection.
    if member is None or member.state in ordering.GOING or not member.takes_orders:
        return
    # R11: a repeat changes nothing.
    if run._orders.now.drain_of(member.id) is not None:
        return
    drain = order(member.id, event.by, event.reason)
    if not run._orders.now.has_room_for(drain=drain):
        return
    run._orders.now = run._orders.now.with_drain(drain)
    ordering.wanted(run)
    if not run._has_successor:
        ordering.ask(run, drain)


def on_evict_requested(run: MembershipState, event: on.EvictRequested) -> None:
    orders, name = run._orders.now, event.node.name
    eviction = order(event.node, event.by, event.reason)
    # R11: the first one counts.
    if orders.eviction_of(name) is not None or not orders.has_room_for(eviction=eviction):
        return
    run._orders.now = orders.with_eviction(eviction)
    ordering.wanted(run)
    member = run.roster.get(name)
    if member is None:
        return
    run._do(do.Evict(member.id, eviction, reasons.evicted(eviction, knows=member.takes_orders)))
    member_changes.remove(run, [member], ChangeKind.NODE_LOST, reasons.evicted_by(eviction))


def on_admit_requested(run: MembershipState, event: on.AdmitRequested) -> None:
    orders, name = run._orders.now, event.node.name
    # R11: a repeat changes nothing.
    if orders.eviction_of(name) is None:
        return
    run._orders.now = orders.without_eviction(name)
    ordering.wanted(run)
    run._do(do.Readmit(order(event.node, event.by, event.reason)))


def on_scale_requested(run: MembershipState, event: on.ScaleRequested) -> None:
    # R11: a repeat changes nothing.
    if run._orders.now.scale == event.scale:
        return
    if not run._orders.now.has_room_for(scale=event.scale):
        return
    run._orders.now = run._orders.now.with_scale(event.scale)
    run.adopt_settings(run.asked_settings)
    ordering.wanted(run)
    run._do(do.Rescale(event.scale))
    record = run._committing.record
    # R3: a round that is larger than its run is not begun.
    if isinstance(record, RoundRecord) and record.head.nodes > event.scale.max_nodes:
        run._committing.cannot_begin(ordering.scaled_down(run, event.scale))
