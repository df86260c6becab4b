"""Workers that stand still: the variant of a plan, its fault, and what must hold (R15).

While one worker of a round hangs, none of the others advances: they wait for it. The round ends as
a hang then, in time; and no round ends so whose workers advance.
"""

from __future__ import annotations

import random
from typing import Final

import msgspec

from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.progress import ASK_S
from rallypoint.core.values import Change, Phase
from rallypoint.simulation.agents import SimulatedSystem, systems_of
from rallypoint.simulation.machine import SimulatedFront
from rallypoint.simulation.plan import Plan, PlannedFault, in_order
from rallypoint.simulation.scene import Oracle, Scene, StartedNode, Token

HANGING_PART: Final = 0.12
"""In which part of the seeds with agents some workers stand still."""
TIMEOUTS_S: Final = (9.0, 12.0)
"""Above the time after which a member is suspect, and a heartbeat: a node that cannot be heard for
so long is noticed before its reports are missed."""
SUSPECT_AFTER_S_MAX: Final = 5.0
BOUND_S: Final = 25.0
"""How much later than due a round may end, in peace: members are heard and attached by then."""
MARGIN_S: Final = 0.5


def hanging(plan: Plan, draw: random.Random) -> Plan:
    """Some workers stand still, and the nodes report progress."""
    is_plain = not (plan.situation or plan.is_store or plan.wild_clocks or plan.lasting)
    if plan.program != "agent" or not is_plain or draw.random() >= HANGING_PART:
        return plan
    if plan.suspect_after_s > SUSPECT_AFTER_S_MAX:
        return plan
    ends_s = max((each.at_s for each in plan.faults), default=10.0)
    # A node of an older release reports nothing, so its worker would stand for ever.
    count = 0 if plan.has_older else draw.choice((0, 1, 2))
    faults = [
        PlannedFault(
            round(draw.uniform(3.0, ends_s + 3.0), 3), "worker stands", draw.getrandbits(32)
        )
        for _ in range(count)
    ]
    return msgspec.structs.replace(
        plan,
        hang_timeout_s=draw.choice(TIMEOUTS_S),
        max_restarts=None,
        faults=in_order((*plan.faults, *faults)),
    )


def stand(scene: Scene, system: SimulatedSystem, draw: random.Random) -> None:
    """One of its workers stands still, until it is stopped. Its agent knows that it has worked."""
    known = [each for each in system.living if each.step]
    if known and scene.plan.hang_timeout_s:
        worker = draw.choice(known)
        worker.hangs_since_s = scene.world.now_s
        scene.say(system.here.name, f"worker {worker.spec.rank} stands still")


class _Watch(Oracle):
    """When workers advanced, and when rounds began."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.last_s: dict[tuple[str, Token], float] = {}
        self.began_s: dict[tuple[str, Token], float] = {}
        """Of rounds whose first coordinator is not replaced."""
        self.reporters: set[str] = set()

    def advanced(self, here: StartedNode, token: Token) -> None:
        """See Oracle."""
        self.last_s[here.run_id, token] = self.scene.world.now_s
        self.reporters.add(here.name)

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle."""
        for effect in effects:
            if isinstance(effect, do.Publish):
                head = effect.record.head
                self.began_s[run.run_id, (head.term, head.number)] = self.scene.world.now_s
            elif isinstance(effect, do.Break):
                self.broken(run, effect.change)

    def broken(self, run: HostedRun, change: Change) -> None:
        """A round has ended."""


class HangsAreTrue(_Watch):
    """R15: a round in which a worker has advanced within the timeout is not ended as a hang."""

    def broken(self, run: HostedRun, change: Change) -> None:
        """See _Watch."""
        if change.failure is None or not change.failure.is_hang:
            return
        membership = run.membership
        if not self.scene.plan.hang_timeout_s:
            self.scene.broke("R15", f"round {change.round} ends as a hang, and nobody wants that")
            return
        assert membership.round is not None
        head = membership.round.head
        place = run.run_id, (head.term, head.number)
        # A successor knows what the nodes have told it, and one of them may be late.
        if membership.term != head.term or place not in self.began_s:
            return
        since_s = max(self.last_s.get(place, 0.0), self.began_s[place])
        still_s = self.scene.world.now_s - since_s
        if still_s < self.scene.plan.hang_timeout_s - MARGIN_S:
            what = f"a worker has advanced {still_s:.1f} s ago"
            self.scene.broke("R15", f"round {change.round} ends as a hang, and {what}")


class HangsEnd(_Watch):
    """R15: a round whose workers stand still is ended within the timeout, 2 s and a bound."""

    def looked(self) -> None:
        """See Oracle."""
        scene, timeout_s = self.scene, self.scene.plan.hang_timeout_s
        if not timeout_s or scene.is_chaotic or scene.plan.has_older:
            return
        for front in scene.fronts:
            if not front.process.is_alive or front.has_ended:
                continue
            for run in front.driver.coordinator.runs.values():
                membership = run.membership
                if run.is_claimed and membership.phase is Phase.ACTIVE and membership.round:
                    head = membership.round.head
                    self._look_at(run.run_id, (head.term, head.number), timeout_s)

    def _look_at(self, run_id: str, token: Token, timeout_s: float) -> None:
        scene, place = self.scene, (run_id, token)
        for system in systems_of(scene, run_id):
            for worker in system.living:
                since_s = worker.hangs_since_s
                if since_s is None or worker.token != token or worker.is_stopping:
                    continue
                is_seen = place in self.last_s or system.here.name in self.reporters
                since_s = max(since_s, scene.peace_s, self.last_s.get(place, 0.0))
                late_s = scene.world.now_s - since_s - timeout_s - ASK_S
                if is_seen and late_s > BOUND_S:
                    what = f"worker {worker.spec.rank} of {system.here.name} stands still"
                    scene.broke("R15", f"{what}, and the round goes on for {late_s:.1f} s too long")


HANG_ORACLES: Final[tuple[type[Oracle], ...]] = (HangsAreTrue, HangsEnd)
