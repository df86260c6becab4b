"""What operators do to a run, at moments that the seed draws: they drain, evict, admit and scale.

Each is a fault of situations: see `situation_faults`. It reaches the coordinator as a request does:
in a turn of its process. A coordinator that owns no run is not asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core import events as on
from rallypoint.core.orders import Scale
from rallypoint.core.values import NodeId
from rallypoint.simulation.scene import Scene, StartedNode

Fault = Callable[[Scene, StartedNode, random.Random], None]
BY: Final = "operator ann"


def _drain(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """An operator asks a node to leave, and another one comes in its place."""
    node = victim.node_id
    if node is None or not _order(scene, victim, on.DrainRequested(node, BY, "new kernel")):
        return
    scene.start_later(victim.index, draw.expovariate(0.1))


def _evict(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """An operator takes a node out of its run, and its scheduler starts it again and again."""
    node = victim.node_id
    if node is None or not _order(scene, victim, on.EvictRequested(node, BY, "bad memory")):
        return
    for delay_s in (draw.expovariate(0.5), draw.expovariate(0.05)):
        scene.start_later(victim.index, delay_s)
    if draw.random() < 0.5:
        _admit_later(scene, victim, node, draw)


def _admit_later(scene: Scene, victim: StartedNode, node: NodeId, draw: random.Random) -> None:
    """The operator lifts the eviction after some time, and the node is started at about then."""
    after_s = draw.expovariate(0.3)
    order = on.AdmitRequested(node, BY, "memory replaced")

    def admit() -> None:
        if scene.is_chaotic:
            _order(scene, victim, order)

    scene.world.after(after_s, admit)
    # Also before the ledger has it, which a slow one has late.
    for delay_s in (draw.random() * 0.2, draw.expovariate(0.5)):
        scene.start_later(victim.index, after_s + delay_s)


def _scale(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """An operator changes how many nodes the run has."""
    least = draw.choice((1, 1, 2))
    most = draw.randrange(least, scene.plan.nodes + 1)
    if _order(scene, victim, on.ScaleRequested(Scale(least, most, BY))):
        scene.sizes.append((least, most))


def _order(scene: Scene, victim: StartedNode, order: on.Event) -> bool:
    """Give it to the coordinator that owns the node's run. False if there is none now."""
    for front in scene.fronts:
        run = front.driver.coordinator.runs.get(victim.run_id)
        if run is not None and run.is_claimed and not front.has_ended and front.process.is_alive:
            front.process.soon(_post, scene, front.process.name, run, order)
            return True
    return False


def _post(scene: Scene, name: str, run: HostedRun, order: on.Event) -> None:
    scene.say(name, f"an operator: {order}")
    run.post(order)


def _preempt(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """The machine of a node will be taken away: it drains, and another one comes in its place."""
    if victim.node is not None and victim.process.is_alive and not victim.is_over:
        victim.process.soon(_post_notice, victim)
        scene.start_later(victim.index, draw.expovariate(0.1))


def _post_notice(victim: StartedNode) -> None:
    node = victim.node
    if node is not None and node._on_asked_to_leave is not None:
        node._on_asked_to_leave("a notice of its cloud")


OPERATOR_FAULTS: Final[dict[str, Fault]] = {
    "drain": _drain,
    "evict": _evict,
    "scale": _scale,
    "preempt": _preempt,
}
