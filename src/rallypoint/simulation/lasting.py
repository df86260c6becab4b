"""Faults that last: the rest of the job has to go on without what they took (R7, R8).

After the peace, one such fault begins and stays. A worker of another node fails, so that a round
has to be formed: by the nodes that can be reached, with a coordinator that reaches the ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from rallypoint.core.values import Failure, FailureKind
from rallypoint.simulation.plan import ISOLATED
from rallypoint.simulation.scene import Oracle, Scene, StartedNode, Undo

DEAD: Final = "dead"
"""It meets the coordinator, also if that is a replica."""
Lasting = Callable[[Scene, StartedNode], Undo | None]


class Rest(msgspec.Struct, frozen=True):
    """What has to go on: one of these groups of nodes, in a round after the one that it was in.

    Without a group, nobody can go on, and the fault ends after `lasts_s`.
    """

    kind: str
    groups: list[list[StartedNode]]
    undo: Undo | None
    lasts_s: float = 0.0

    def goes_on(self, since_s: float) -> bool:
        """Whether all nodes of a group are in one new round, and their store answers.

        Or the failure has spent the restart budget, and the run has ended for all of them.
        """
        return any(_goes_on(nodes, since_s) for nodes in self.groups)


def _goes_on(nodes: list[StartedNode], since_s: float) -> bool:
    if not any(each.is_living for each in nodes):
        return True
    if not all(each.is_working and each.given_s > since_s for each in nodes):
        return False
    is_answered = all(each.answered_s > since_s for each in nodes)
    return is_answered and len({each.tokens[-1] for each in nodes}) == 1


def begin(scene: Scene, kind: str) -> Rest | None:
    """Begin the fault. None if the job cannot go on without what it takes."""
    if scene.ledger.is_on_one_machine:
        return None
    nodes = [each for each in scene.living if each.run_id]
    is_plain = len(scene.run_ids) == 1 and not scene.plan.is_mixed
    is_plain = is_plain and all(each.is_working for each in nodes)
    has_ended = any(each.has_finished for each in scene.nodes)
    if not is_plain or has_ended or len(nodes) < 2:
        return None
    hosts = [front.process for front in scene.fronts if not front.has_ended and _owns(front)]
    hosting = [each for each in nodes if each.process in hosts]
    replicas = [each for each in scene.living if not each.run_id]
    owning = [each for each in replicas if each.process in hosts and kind == DEAD]
    if len(replicas) < 2 and scene.plan.hosts == "no":
        owning = []  # Nobody else may coordinate.
    victim = (hosting or owning or nodes)[0]
    # Who is cut off from the ledger may not find another coordinator either.
    rest = [each for each in nodes if each is not victim]
    groups = [rest]
    if kind == ISOLATED:
        # The larger group goes on. Of two equal ones either may.
        groups = [rest, [victim]] if len(rest) == 1 else [rest]
    minimum = scene.run_settings.min_nodes
    groups = [each for each in groups if len(each) >= minimum]
    if not groups and kind != ISOLATED:
        return None
    scene.say(victim.name, f"LASTING {kind}")
    undo = LASTING[kind](scene, victim)
    other = next(each for each in nodes if each is not victim)
    node = other.node
    assert node is not None
    # The round may go on for a while first, with another coordinator.
    after_s = scene.world.random.choice((0.0, 3.0, 3.0 * scene.plan.lease_ttl_s))

    def fail() -> None:
        other.process.soon(lambda: node.failed(Failure(FailureKind.EXCEPTION, "boom")))

    scene.world.after(after_s, fail)
    lasts_s = 0.0 if groups else scene.world.random.uniform(20.0, 120.0)
    return Rest(kind, groups, undo, lasts_s)


def _owns(front: object) -> bool:
    runs = front.driver.coordinator.runs.values()  # type: ignore[attr-defined]
    return any(run.is_claimed and run.attached_count for run in runs)


def _cut_from_ledger(scene: Scene, victim: StartedNode) -> Undo:
    return scene.ledger.cut(victim.process)


def _dead(scene: Scene, victim: StartedNode) -> Undo:
    scene.tell(Oracle.killed_in_peace, victim)
    victim.process.kill()
    return lambda: scene.start(victim.index)


def _lost(scene: Scene, victim: StartedNode) -> Undo:
    scene.network.lose(victim.host)
    return lambda: scene.start(victim.index)


def _frozen(scene: Scene, victim: StartedNode) -> Undo:
    victim.process.freeze()
    return victim.process.thaw


def _isolated(scene: Scene, victim: StartedNode) -> Undo:
    """No other host reaches it, and it reaches none. All reach the ledger."""
    others = sorted({each.host for each in scene.nodes} - {victim.host})
    pairs = [pair for other in others for pair in ((victim.host, other), (other, victim.host))]
    return scene.network.block_all(pairs)


LASTING: Final[dict[str, Lasting]] = {
    "cut from the ledger": _cut_from_ledger,
    DEAD: _dead,
    "lost": _lost,
    "frozen": _frozen,
    ISOLATED: _isolated,
}
BOUND_S: Final = {
    "cut from the ledger": 90.0,
    DEAD: 90.0,
    "lost": 110.0,
    "frozen": 110.0,
    ISOLATED: 150.0,
}
"""How long it may take until the rest goes on."""
HEALED_S: Final = {**dict.fromkeys(BOUND_S, 240.0), ISOLATED: 25.0}
"""How long it may take, once the fault has ended, until all go on."""
