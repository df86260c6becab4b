"""What must hold when operators drain, evict and admit nodes, and scale runs. See docs/protocol.md.

That each round has the size that an operator wants is checked by `CoordinatorsKeepRules`.
"""

from __future__ import annotations

import urllib.parse
from typing import Final

from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.election import decode_run
from rallypoint.core.orders import NO_ORDERS, Orders
from rallypoint.core.roster import Bucket
from rallypoint.core.values import Reachability
from rallypoint.ledger.keys import RUNS
from rallypoint.simulation.machine import SimulatedFront
from rallypoint.simulation.progress_oracles import MARGIN_S, SLOW_S, EndsInTime
from rallypoint.simulation.scene import Oracle, Scene
from rallypoint.simulation.steps import LEFT_S


class OrdersOutliveOwners(Oracle):
    """An eviction or a scale that is in the ledger stays there, whoever owns the run.

    Only an operator lifts an eviction. R4: no node is admitted, and no round is published with it,
    while the ledger has its eviction.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._known: dict[str, tuple[int, Orders]] = {}
        """By run: the floor of its head, and the orders there."""
        self._lifted: dict[tuple[str, str], None] = {}
        """Names that an operator has admitted again, by run."""

    def written(self, name: str, value: bytes | None) -> None:
        """See Oracle."""
        if not name.startswith(RUNS):
            return
        run_id = urllib.parse.unquote(name.removeprefix(RUNS))
        if value is None:
            self._known.pop(run_id, None)  # The run was removed: the next one begins anew.
            return
        head = decode_run(value)
        floor, before = self._known.get(run_id, (head.floor, NO_ORDERS))
        orders = head.orders
        self._known[run_id] = (head.floor, orders)
        if floor != head.floor:
            return
        gone = [each for each in before.evictions if each not in orders.evictions]
        lost = [each for each in gone if (run_id, each.node.name) not in self._lifted]
        if lost:
            self.scene.broke("R4", f"the head of {run_id} has lost the eviction of {lost[0]}")
        if before.scale is not None and orders.scale is None:
            self.scene.broke("R3", f"the head of {run_id} has lost that it was {before.scale}")

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle."""
        if isinstance(event, on.AdmitRequested):
            self._lifted[run.run_id, event.node.name] = None
        known = self._known.get(run.run_id)
        if known is None:
            return
        evicted = {each.node.name for each in known[1].evictions}
        for effect in effects:
            # A former owner that is suspended does not know what the ledger has.
            if isinstance(effect, do.Welcome) and not run.membership.suspended_reason:
                if effect.node.name in evicted:
                    self.scene.broke("R4", f"{effect.node.name} is admitted, and was evicted")
            elif isinstance(effect, do.Publish):
                inside = [row.name for row in effect.record.members if row.name in evicted]
                if inside:
                    number = effect.record.head.number
                    self.scene.broke("R4", f"round {number} has {inside[0]}, which was evicted")


class DrainedNodesLeave(EndsInTime):
    """A node that was asked to leave says that it departs, if it can be heard."""

    def is_due(self, run: HostedRun) -> bool:
        """See EndsInTime."""
        membership = run.membership
        for drain in membership.orders_written.drains:
            member = membership.roster.living(drain.node)
            if member is None or member.reachability is not Reachability.CONNECTED:
                continue
            if member.takes_orders and member.bucket not in (Bucket.DONE, Bucket.DEPARTING):
                return True
        return False

    def bound_s(self) -> float:
        """See EndsInTime: until a frozen node is suspect, and a slow line has brought its word."""
        left_s = LEFT_S[1] if self.scene.plan.has_steps else 0.0
        return left_s + 2 * (self.scene.plan.suspect_after_s + SLOW_S) + MARGIN_S

    def late(self, run: HostedRun) -> str:
        """See EndsInTime."""
        return f"a node of {run.run_id} was asked to leave, and stays"


class LiftedEvictionsEnd(EndsInTime):
    """An eviction that an operator has lifted is soon out of the ledger, so the node may join."""

    def is_due(self, run: HostedRun) -> bool:
        """See EndsInTime."""
        orders, written = run.membership.orders, run.membership.orders_written
        return any(orders.eviction_of(each.node.name) is None for each in written.evictions)

    def bound_s(self) -> float:
        """See EndsInTime: a write waits for the settle time, and for a slow ledger."""
        return SLOW_S + MARGIN_S

    def late(self, run: HostedRun) -> str:
        """See EndsInTime."""
        return f"the ledger still has an eviction of {run.run_id} that was lifted"


OPERATOR_ORACLES: Final[tuple[type[Oracle], ...]] = (
    *(OrdersOutliveOwners, DrainedNodesLeave, LiftedEvictionsEnd),
)
