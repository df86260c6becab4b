"""What must hold when operators drain and evict nodes, and scale runs. See docs/protocol.md.

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


class OrdersOutliveOwners(Oracle):
    """An eviction or a scale that is in the ledger stays there, whoever owns the run.

    R4: and no round is published with a node whose eviction the ledger had before.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._known: dict[str, tuple[int, Orders]] = {}
        """By run: the floor of its head, and the orders there."""

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
        lost = [each for each in before.evictions if each not in orders.evictions]
        if lost:
            self.scene.broke("R4", f"the head of {run_id} has lost the eviction of {lost[0]}")
        if before.scale is not None and orders.scale is None:
            self.scene.broke("R3", f"the head of {run_id} has lost that it was {before.scale}")

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle."""
        known = self._known.get(run.run_id)
        if known is None:
            return
        for effect in effects:
            if isinstance(effect, do.Publish):
                evicted = {each.node.name for each in known[1].evictions}
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
        return 2 * (self.scene.plan.suspect_after_s + SLOW_S) + MARGIN_S

    def late(self, run: HostedRun) -> str:
        """See EndsInTime."""
        return f"a node of {run.run_id} was asked to leave, and stays"


OPERATOR_ORACLES: Final[tuple[type[Oracle], ...]] = (OrdersOutliveOwners, DrainedNodesLeave)
