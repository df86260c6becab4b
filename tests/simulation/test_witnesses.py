"""R8: witnesses in simulated worlds: who is lost when hosts fall silent, and who is not."""

from __future__ import annotations

import random

import msgspec
import pytest

from rallypoint.core import effects as do
from rallypoint.core.reasons import HOST_GONE
from rallypoint.simulation.job import Job
from rallypoint.simulation.node_situations import witnesses
from rallypoint.simulation.plan import Plan, some_faults
from rallypoint.simulation.scene import Oracle, Scene
from tests.kinds import seeds


class Losses(Oracle):
    """Who was lost, when, and whether by witnesses."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.lost: list[tuple[float, str]] = []
        self.asked = 0

    def stepped(self, front, run, event, effects):
        """See Oracle."""
        for effect in effects:
            self.asked += isinstance(effect, do.AskWitness)
            if isinstance(effect, do.Forget) and HOST_GONE in effect.reason:
                self.lost.append((self.scene.world.now_s, effect.node.name))


def played(seed: int, plan: Plan) -> tuple[Job, Losses]:
    job = Job(seed, plan=plan)
    losses = Losses(job.scene)
    job.scene.oracles.append(losses)
    job.run()
    assert job.problems == []
    return job, losses


def world(*kinds: str, seed: int, count: int, calm_s: float) -> Plan:
    """A run of eight nodes with default settings, and a coordinator of its own."""
    return Plan(
        nodes=8,
        min_nodes=4,
        faults=some_faults(random.Random(seed), kinds, count, calm_s, at_s=10.0),
        replicas=1,
        hosts="no",
        last_call_s=1.0,
        suspect_after_s=5.0,
        lost_after_s=30.0,
        mass_min=8,
        silence_s=30.0,
        calls_per_s=0.2,
        has_witnesses=True,
    )


@pytest.mark.parametrize("seed", seeds(2, verify=6, long=30))
def test_a_host_without_power_is_lost_within_nine_seconds(seed: int) -> None:
    plan = world("power off", seed=seed, count=1, calm_s=5.0)
    plan = msgspec.structs.replace(
        plan, faults=(*plan.faults, *some_faults(random.Random(1), ("cut",), 1, 1.0, at_s=60.0))
    )
    job, losses = played(seed, plan)
    [off] = [each for each in job.events if each.what == "FAULT power off"]
    if off.who.startswith("serve"):
        return  # Another coordinator has the run then.
    [(lost_s, name)] = losses.lost
    assert lost_s - off.at_s <= 9.0, name


@pytest.mark.parametrize("seed", seeds(1, verify=4, long=20))
def test_nobody_is_lost_by_blips_stops_and_starved_machines(seed: int) -> None:
    """Twenty minutes of cuts of two seconds, stopped coordinators and slow machines."""
    kinds = ("blip", "blip", "stalled owner", "starve")
    plan = world(*kinds, seed=seed, count=80, calm_s=15.0)
    assert played(seed, plan)[1].lost == []


@pytest.mark.parametrize("kind", ["stop", "mute", "alone"])
def test_nobody_is_lost_whose_host_lives(kind: str) -> None:
    """Stopped processes; a way that is cut to the coordinator; a coordinator that is cut off."""
    _, losses = played(7, world(kind, seed=7, count=10, calm_s=15.0))
    assert losses.asked
    assert losses.lost == []


@pytest.mark.parametrize("seed", seeds(8, verify=60, long=600))
def test_the_situation_breaks_no_rule(seed: int) -> None:
    played(seed, witnesses(Plan(nodes=4, min_nodes=1, faults=()), random.Random(seed)).sound())
