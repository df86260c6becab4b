"""Coordinators and nodes are killed, replaced, frozen and thawed at random; then all heals.

Repeat a failure, or try longer:

    RALLYPOINT_TEST_CHAOS=SEED:CYCLES pytest tests/failover/test_chaos.py -s
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.failover.conftest import file_fleet
from tests.failover.fleet import Fleet

NODES = 4
REPLICAS = 2
CYCLES = 10
PAUSE_S = (0.2, 2.0)
FROZEN_S = (0.3, 4.0)
OPTIONS = ("--expected-nodes", str(NODES), "--host-coordinator", "no", "--max-restarts", "any")

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(0)]


class Chaos:
    """One seed's story. Whoever is killed is replaced soon; whoever is frozen thaws."""

    def __init__(self, fleet: Fleet, chance: random.Random) -> None:
        self.fleet = fleet
        self.chance = chance
        self.thaws: list[tuple[float, int]] = []
        self.told: list[str] = []

    def cycle(self) -> None:
        self._thaw(time.monotonic())
        act = self.chance.choice(
            [self.kill_replica, self.freeze_replica, self.kill_node, self.freeze_node]
        )
        self.told.append(act())
        time.sleep(self.chance.uniform(*PAUSE_S))
        self.replace()

    def kill_replica(self) -> str:
        replica = self.chance.choice([each for each in self.fleet.replicas if each.is_alive])
        replica.process.signal(signal.SIGKILL)
        replica.process.popen.wait()
        return f"killed {replica.process.name}"

    def freeze_replica(self) -> str:
        replica = self.chance.choice([each for each in self.fleet.replicas if each.is_alive])
        return self._freeze(replica.process.name, replica.process.pid)

    def kill_node(self) -> str:
        agent = self.chance.choice(self.fleet.living)
        agent.kill_with_worker()
        return f"killed {agent.name}"

    def freeze_node(self) -> str:
        agent = self.chance.choice(self.fleet.living)
        return self._freeze(agent.name, agent.process.pid)

    def _freeze(self, name: str, pid: int) -> str:
        frozen_s = self.chance.uniform(*FROZEN_S)
        self.fleet.machine.freeze(pid)
        self.thaws.append((time.monotonic() + frozen_s, pid))
        return f"froze {name} for {frozen_s:.1f} s"

    def _thaw(self, now_s: float) -> None:
        due = [pid for at_s, pid in self.thaws if at_s <= now_s]
        self.thaws = [(at_s, pid) for at_s, pid in self.thaws if at_s > now_s]
        self.fleet.machine.thaw(*due)

    def replace(self) -> None:
        while sum(each.is_alive for each in self.fleet.replicas) < REPLICAS:
            self.fleet.serve()
        missing = NODES - len(self.fleet.living)
        if missing:
            self.fleet.start(missing, f"2:{NODES}", *OPTIONS)

    def heal(self) -> None:
        self._thaw(float("inf"))
        self.replace()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = file_fleet(tmp_path)
    fleet.machine.env |= {"RALLYPOINT_LEASE_TTL": "1", "RALLYPOINT_ATTACH_GRACE": "2"}
    yield fleet
    fleet.close()


def test_nothing_is_forked_lost_or_counted_twice(fleet: Fleet) -> None:
    seed, _, cycles = os.environ.get("RALLYPOINT_TEST_CHAOS", "").partition(":")
    number = int(seed or random.SystemRandom().randrange(1 << 32))
    print(f"seed {number}")
    chaos = Chaos(fleet, random.Random(number))
    chaos.replace()
    fleet.at_work(1)
    for _ in range(int(cycles or CYCLES)):
        chaos.cycle()
    chaos.heal()
    story = f"seed {number}: {'; '.join(chaos.told)}"
    try:
        fleet.wait(lambda: is_whole(fleet))
        fleet.counts_since(time.monotonic())
    except AssertionError as error:
        raise AssertionError(f"not whole again. {story}\n{error}") from None
    fleet.check_rounds()
    check_counters(fleet, story)


def is_whole(fleet: Fleet) -> bool:
    """All living nodes, and no others, are in one round."""
    told = [agent.log.events("working") for agent in fleet.living]
    last = {each[-1]["round"] if each else 0 for each in told}
    return len(told) == NODES and len(last) == 1 and all(t and t[-1]["size"] == NODES for t in told)


def check_counters(fleet: Fleet, story: str) -> None:
    """R10, R11: no answer twice in a round, and none below what the worker was told before."""
    times: dict[int, Counter[int]] = defaultdict(Counter)
    for agent in fleet.agents:
        own: dict[tuple[int, int], list[int]] = defaultdict(list)
        for each in agent.log.events("added"):
            times[each["round"]][each["value"]] += 1
            own[each["pid"], each["round"]].append(each["value"])
        for values in own.values():
            assert all(a < b for a, b in itertools.pairwise(values)), story
    for counted in times.values():
        assert max(counted.values()) == 1, story
