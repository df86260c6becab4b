"""Programs and nodes that fail again and again: three situations, a fault, and what must hold.

What each failure costs is checked by `CoordinatorsKeepRules`, at each step of a coordinator.
"""

from __future__ import annotations

import random
import urllib.parse
from collections.abc import Callable
from typing import Final

import msgspec

from rallypoint.core.blame import NO_BLAME, Blame
from rallypoint.core.election import decode_run
from rallypoint.core.values import Failure, FailureKind
from rallypoint.ledger.keys import RUNS
from rallypoint.simulation.plan import Plan, PlannedFault, merged, some_faults
from rallypoint.simulation.scene import Oracle, Scene, StartedNode, Undo

NO_RESTART: Final = 78


def guilty(plan: Plan, draw: random.Random) -> Plan:
    """The program fails again and again on one node or two: its run has a budget for that."""
    return msgspec.structs.replace(
        _troubled(plan, draw),
        max_restarts=draw.choice((None, 2, 3, 5)),
        restart_window_s=draw.choice((None, 5.0, 10.0)),
        early_s=draw.choice((0.0, 2.0)),
        same_failure=draw.choice((None, 2, 3)),
        no_restart_exit_codes=draw.choice(((), (NO_RESTART,))),
        faults=_failures(draw, draw.choice((1, 2))),
    )


def cooling(plan: Plan, draw: random.Random) -> Plan:
    """One node or two break too many rounds, and stay out. Spares may take their places."""
    plan = _troubled(plan, draw)
    return msgspec.structs.replace(
        plan,
        max_nodes=draw.choice((0, plan.nodes - 1)),
        max_restarts=None,
        restart_window_s=draw.choice((None, 5.0, 10.0)),
        max_restarts_per_node=draw.choice((0, 1, 2)),
        cooldown_s=draw.choice((2.0, 5.0, 30.0)),
        faults=_failures(draw, draw.choice((1, 2))),
    )


def checked(plan: Plan, draw: random.Random) -> Plan:
    """Agents whose checks fail at times, and whose workers fail. There may be spares."""
    plan = _troubled(plan, draw)
    kinds = ("worker fails", "worker fails", "kill owner", "kill another", "slow ledger")
    return msgspec.structs.replace(
        plan,
        max_nodes=draw.choice((0, plan.nodes - 1)),
        program="agent",
        has_check=True,
        max_restarts=None,
        max_restarts_per_node=draw.choice((None, 1)),
        cooldown_s=draw.choice((1.0, 3.0)),
        faults=some_faults(draw, kinds, draw.randrange(2, 8), 5.0),
    )


def _troubled(plan: Plan, draw: random.Random) -> Plan:
    """A few nodes, in rounds that are short, whose coordinators may die."""
    nodes = draw.choice((3, 4, 5))
    return msgspec.structs.replace(
        plan,
        nodes=nodes,
        min_nodes=draw.choice((1, 2, nodes - 1, nodes)),
        max_nodes=draw.choice((0, 0, nodes - 1)),
        replicas=draw.choice((0, 1)),
        hosts="auto",
        has_older=draw.random() < 0.2,
        same_names=draw.random() < 0.7,
        lease_ttl_s=2.0,
        last_call_s=1.0,
        lost_after_s=10.0,
        suspect_after_s=2.0,
        stop_s=draw.choice((0.0, 1.0, 5.0)),
        lasting="",
        knobs=None,
    )


def _failures(draw: random.Random, nodes: int) -> tuple[PlannedFault, ...]:
    """So many nodes fail in each of their rounds, others now and then, and coordinators die."""
    troubles = ("kill owner", "kill another", "slow ledger", "fail", "leave another")
    moments = ("", "", "", "GATHERING", "COMMITTING", "RESTORED")
    return merged(
        some_faults(draw, ("always fails",), nodes, 1.0),
        some_faults(draw, troubles, draw.randrange(1, 6), 8.0, moments),
    )


def _always_fails(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """The workers of one node fail soon after each round has begun, also after its next start."""
    own = random.Random(draw.getrandbits(32))
    is_on = [True]

    def again() -> None:
        if not is_on:
            return
        for here in scene.living:
            if here.index == victim.index:
                here.process.soon(_failing(here, _failure(own)))
        scene.world.after(own.uniform(0.3, 3.0), again)

    again()
    return is_on.clear


def _failing(here: StartedNode, failure: Failure) -> Callable[[], None]:
    def fail() -> None:
        if here.node is not None and not here.is_over:
            here.node.failed(failure)

    return fail


def _failure(draw: random.Random) -> Failure:
    kind = draw.choice((*((FailureKind.EXCEPTION,) * 5), FailureKind.COMMUNICATION))
    text = draw.choice((*(("no data in /part/{}",) * 5), "step {} is wrong"))
    code = draw.choice((*((1,) * 19), NO_RESTART))
    return Failure(kind, text.format(draw.randrange(99)), exit_code=code)


GUILT_FAULTS: Final = {"always fails": _always_fails}
LONG_S: Final = 60.0
"""No world of these situations goes on for so long between two writes."""
LASTS_S: Final = 40.0
"""How long a node fails in each round."""


class BlameOutlivesOwners(Oracle):
    """R11: what the ledger has of the failures is not forgotten, whoever owns the run."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._known: dict[str, tuple[int, int, Blame]] = {}
        """By run: the floor of its head, the charged rounds, and the blame there."""

    def written(self, name: str, value: bytes | None) -> None:
        """See Oracle."""
        if not name.startswith(RUNS):
            return
        run_id = urllib.parse.unquote(name.removeprefix(RUNS))
        if value is None:
            self._known.pop(run_id, None)  # The run was removed: the next one begins anew.
            return
        head = decode_run(value)
        floor, charged, before = self._known.get(run_id, (head.floor, head.restarts, NO_BLAME))
        self._known[run_id] = (head.floor, head.restarts, head.blame)
        # The failure that ends a run is not charged.
        if floor != head.floor or self.scene.plan.has_older or head.close is not None:
            return
        is_forgiven = self.scene.plan.restart_window_s is not None
        if not is_forgiven and head.blame.spent < before.spent:
            what = f"{before.spent} counted against its budget, and now {head.blame.spent}"
            self.scene.broke("R11", f"the head of {run_id} has lost blame: {what}")
        self._must_keep(run_id, before, head.blame)
        is_charged = head.restarts > charged
        if not is_charged and not is_forgiven and head.blame.repeats < before.repeats:
            what = f"{before.repeats} times {before.fingerprint!r}"
            self.scene.broke("R11", f"the head of {run_id} has forgotten that it failed {what}")

    def _must_keep(self, run_id: str, before: Blame, after: Blame) -> None:
        """A node that has to stay out for long is not forgotten by the next write."""
        known = {each.name: each.rounds for each in after.offenders}
        for each in before.offenders:
            is_long = each.left_s + each.forgiven_s > LONG_S
            if is_long and known.get(each.name, 0) < each.rounds:
                what = f"{each.name} broke {each.rounds} rounds, and now {known.get(each.name, 0)}"
                self.scene.broke("R11", f"the head of {run_id} has lost blame: {what}")


GUILT_ORACLES: Final[tuple[type[Oracle], ...]] = (BlameOutlivesOwners,)
