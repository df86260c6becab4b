"""Coordinators, nodes, workers and members of etcd are killed, frozen and replaced at random; then
all heals, and the run is closed. Whatever was done, the records keep the rules.

Repeat a failure, or try longer (the test's name says which ledger, and who coordinates):

    RALLYPOINT_TEST_CHAOS=SEED:CYCLES pytest 'tests/failover/test_chaos.py::test_chaos[etcd-nodes]'

The seed decides what is done to whom, and not what the machine makes of it: a failure may need
several tries.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.agent.processes import alive
from tests.failover import etcd_history, records
from tests.failover.conftest import etcd_fleet, file_fleet
from tests.failover.fleet import Agent, Fleet
from tests.kinds import LONG
from tests.ledger.etcd_processes import EtcdCluster, EtcdProcess

NODES = 4
REPLICAS = 2
CYCLES = 60 if LONG else 6
HEALED_EVERY = 12
"""After as many cycles all is mended, and must be well, before the next ones."""
SHORT_S, LONG_S = (0.02, 0.4), (0.5, 2.5)
"""Pauses: a fault that falls into the next one, and one that has nearly been got over."""
FROZEN_S = (0.2, 1.5, 5.0)
ETCD_FROZEN_S = (0.3, 3.0)
CLOSED_WITHIN_S = 30.0
# Otherwise a kill of three of four nodes would count as an outage, of up to two minutes.
ENV = {
    "RALLYPOINT_LEASE_TTL": "1",
    "RALLYPOINT_ATTACH_GRACE": "4",
    "RALLYPOINT_COORDINATOR_SILENCE": "2",
    "RALLYPOINT_YIELD_AFTER": "5",
    "RALLYPOINT_MASS_GRACE": "4",
}
OPTIONS = ("--expected-nodes", str(NODES), "--max-restarts", "any", "--regroup-stop-timeout", "1")
WAITS_FOR_REPLICAS = ("--host-coordinator", "no")

pytestmark = [pytest.mark.processes, pytest.mark.verify, pytest.mark.timeout(0)]


class Chaos:
    """The events of one seed. A killed process is replaced soon; a frozen one thaws."""

    def __init__(self, fleet: Fleet, chance: random.Random, cluster: EtcdCluster | None) -> None:
        self.fleet = fleet
        self.chance = chance
        self.cluster = cluster
        self.harm = records.Harm()
        self.told: list[str] = []
        self.has_replicas = False
        self._ending: list[Agent] = []
        self._thaws: list[tuple[float, int]] = []
        self._dead_etcd: list[tuple[float, EtcdProcess]] = []

    def cycle(self) -> None:
        self._mend(time.monotonic())
        self.replace()  # a process that got a signal may have ended meanwhile
        acts: list[tuple[Callable[[], str], int]] = [
            (self.kill_node, 3),
            (self.freeze_node, 3),
            (self.end_node, 1),
            (self.kill_worker, 1),
            (self.fail_worker, 1),
        ]
        if self.has_replicas:
            acts += [(self.kill_replica, 4), (self.freeze_replica, 4), (self.end_replica, 1)]
        else:
            acts += [(self.kill_host, 4), (self.freeze_host, 4)]
        if self.cluster is not None:
            acts += [(self.kill_etcd, 1), (self.freeze_etcd, 1), (self.freeze_all_etcd, 1)]
        (act,) = self.chance.choices([a for a, _ in acts], [weight for _, weight in acts])
        self.told.append(act())
        time.sleep(self.chance.uniform(*self.chance.choice((SHORT_S, LONG_S))))
        self.replace()

    # -- what is done --------------------------------------------------------------------------

    def kill_replica(self) -> str:
        replica = self.chance.choice([each for each in self.fleet.replicas if each.is_alive])
        replica.process.signal(signal.SIGKILL)
        replica.process.popen.wait()
        return f"killed {replica.process.name}"

    def freeze_replica(self) -> str:
        replica = self.chance.choice([each for each in self.fleet.replicas if each.is_alive])
        return self._freeze(replica.process.name, replica.process.pid)

    def end_replica(self) -> str:
        replica = self.chance.choice([each for each in self.fleet.replicas if each.is_alive])
        replica.process.signal(signal.SIGTERM)
        return f"asked {replica.process.name} to end"

    def kill_node(self) -> str:
        return self._kill(self.chance.choice(self.fleet.living))

    def kill_host(self) -> str:
        return self._kill(self._host())

    def _kill(self, agent: Agent) -> str:
        self.harm.nodes.add(agent.name)
        agent.kill_with_worker()
        return f"killed {agent.name}"

    def freeze_node(self) -> str:
        return self._freeze_agent(self.chance.choice(self.fleet.living))

    def freeze_host(self) -> str:
        return self._freeze_agent(self._host())

    def _host(self) -> Agent:
        """The coordinator, as far as the records say."""
        hosts = [
            agent
            for agent in self.fleet.living
            if (told := agent.log.events("attached")) and told[-1]["hosts"]
        ]
        return self.chance.choice(hosts or self.fleet.living)

    def _freeze_agent(self, agent: Agent) -> str:
        self.harm.nodes.add(agent.name)
        worker = self._worker(agent)
        is_whole = worker is not None and self.chance.random() < 0.5
        pids = [agent.process.pid] + ([worker] if is_whole and worker is not None else [])
        return self._freeze(f"{agent.name}{' and its worker' if is_whole else ''}", *pids)

    def end_node(self) -> str:
        agent = self.chance.choice(self.fleet.living)
        self.harm.nodes.add(agent.name)
        self._ending.append(agent)
        agent.process.signal(signal.SIGTERM)
        return f"asked {agent.name} to end"

    def kill_worker(self) -> str:
        agent = self.chance.choice(self.fleet.living)
        worker = self._worker(agent)
        if worker is None:
            return f"{agent.name} has no worker to kill"
        self.harm.program_failures += 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        return f"killed the worker of {agent.name}"

    def fail_worker(self) -> str:
        self.harm.program_failures += 1
        self.fleet.fail.touch()
        return "asked a worker to fail"

    def _worker(self, agent: Agent) -> int | None:
        told = agent.log.events("working")
        return told[-1]["pid"] if told and alive(told[-1]["pid"]) else None

    def kill_etcd(self) -> str:
        assert self.cluster is not None
        if self._dead_etcd:
            return "a member of etcd is dead already"
        member = self.chance.choice(self.cluster.members)
        self._dead_etcd.append((time.monotonic() + self.chance.uniform(*ETCD_FROZEN_S), member))
        member.kill()
        return f"killed {member.name}"

    def freeze_etcd(self) -> str:
        assert self.cluster is not None
        member = self.chance.choice(self.cluster.members)
        return self._freeze_members([member], member.name)

    def freeze_all_etcd(self) -> str:
        assert self.cluster is not None
        return self._freeze_members(self.cluster.members, "all of etcd")

    def _freeze_members(self, members: list[EtcdProcess], name: str) -> str:
        living = [m.process.pid for m in members if m.process and m.process.poll() is None]
        return self._freeze(name, *living, limits_s=ETCD_FROZEN_S)

    def _freeze(self, name: str, *pids: int, limits_s: tuple[float, ...] = FROZEN_S) -> str:
        low_s, *_, high_s = limits_s
        frozen_s = self.chance.triangular(low_s, high_s, limits_s[len(limits_s) // 2])
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # a worker, which ends when it likes
                self.fleet.machine.freeze(pid)
        self._thaws += [(time.monotonic() + frozen_s, pid) for pid in pids]
        return f"froze {name} for {frozen_s:.1f} s"

    # -- what is mended ------------------------------------------------------------------------

    def _mend(self, now_s: float) -> None:
        due = [pid for at_s, pid in self._thaws if at_s <= now_s]
        self._thaws = [(at_s, pid) for at_s, pid in self._thaws if at_s > now_s]
        self.fleet.machine.thaw(*due)
        for each in [each for each in self._dead_etcd if each[0] <= now_s]:
            self._dead_etcd.remove(each)
            each[1].start()

    def replace(self) -> None:
        missing = REPLICAS - sum(each.is_alive for each in self.fleet.replicas)
        for _ in range(missing if self.has_replicas else 0):
            self.fleet.serve(wait=False)
        for _ in range(NODES - len(self.fleet.living)):
            options = (*OPTIONS, *(WAITS_FOR_REPLICAS if self.has_replicas else ()))
            self.fleet.start_as(self._name(), f"2:{NODES}", *options)

    def _name(self) -> str:
        """A new name; or that of a node that is gone, as with schedulers that reuse names."""
        living = {agent.name for agent in self.fleet.living}
        gone = [agent.name for agent in self.fleet.agents[-NODES:] if agent.name not in living]
        is_again = gone and self.chance.random() < 0.3
        return self.chance.choice(gone) if is_again else f"node{len(self.fleet.agents)}"

    def heal(self) -> None:
        """Mend all, and wait until all is well."""
        self._mend(float("inf"))
        # Who was asked to end while it was frozen, or had no coordinator, ends only now. Until
        # then the round before is whole still, and nobody is to wait for a write of it.
        self.fleet.wait(lambda: not any(agent.is_alive for agent in self._ending))
        self._ending.clear()
        self.fleet.wait(lambda: self._is_whole_after_replacing())
        self.fleet.counts_since(time.monotonic())

    def _is_whole_after_replacing(self) -> bool:
        self.replace()
        return is_whole(self.fleet)


def is_whole(fleet: Fleet) -> bool:
    """All living nodes, and no others, are in one round."""
    return len(fleet.in_one_round()) == NODES


@pytest.fixture
def chaos(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Chaos]:
    engine, _, who = request.param.partition("-")
    cluster = request.getfixturevalue("three_etcd") if engine == "etcd" else None
    fleet = etcd_fleet(cluster, tmp_path) if cluster else file_fleet(tmp_path)
    fleet.machine.env |= ENV
    seed, _, _ = os.environ.get("RALLYPOINT_TEST_CHAOS", "").partition(":")
    number = int(seed or random.SystemRandom().randrange(1 << 32))
    print(f"seed {number}")
    chaos = Chaos(fleet, random.Random(number), cluster)
    chaos.has_replicas = who == "replicas"
    chaos.told.append(
        f"RALLYPOINT_TEST_CHAOS={number}:{cycles()} pytest "
        f"'tests/failover/test_chaos.py::test_chaos[{request.param}]'"
    )
    yield chaos
    fleet.close()
    for process in fleet.machine.processes:
        (tmp_path / f"{process.name}.{process.pid}.txt").write_text(process.text)
    for member in cluster.members if cluster else ():
        if member.process is None or member.process.poll() is not None:
            member.start()
    if cluster:
        cluster.wait_until_ready()


def cycles() -> int:
    return int(os.environ.get("RALLYPOINT_TEST_CHAOS", "").partition(":")[2] or CYCLES)


KINDS = ["etcd-replicas", "etcd-nodes", "file-replicas", "file-nodes"]


@pytest.mark.parametrize("chaos", KINDS, indirect=True)
def test_chaos(chaos: Chaos) -> None:
    try:
        play(chaos)
    except AssertionError as error:
        story = "\n  ".join(chaos.told)
        raise AssertionError(f"{error}\n\nwhat was done:\n  {story}") from error


def play(chaos: Chaos) -> None:
    fleet = chaos.fleet
    chaos.replace()
    # A node that starts after the last call is admitted in another round.
    fleet.wait(lambda: is_whole(fleet))
    for number in range(1, cycles() + 1):
        chaos.cycle()
        if number % HEALED_EVERY == 0 or number == cycles():
            chaos.heal()
            chaos.told.append("all was well")
    read_all(fleet)
    close(chaos)
    stories = [records.Story(agent.name, agent.log.all()) for agent in fleet.agents]
    records.check(stories, chaos.harm)
    if chaos.cluster is not None:
        check_history(chaos.cluster, fleet)


def read_all(fleet: Fleet) -> None:
    """Every worker stops counting, and writes down what it then sees."""
    paused_s = time.monotonic()
    fleet.pause.touch()
    fleet.wait(lambda: all(agent.first("paused", paused_s) for agent in fleet.living))


def close(chaos: Chaos) -> None:
    """R6: the run ends for all, and a later node gets that answer."""
    fleet = chaos.fleet
    fleet.machine.command("close", fleet.run_id, "--endpoint", fleet.endpoint).ends(0)
    closed_s = time.monotonic()
    fleet.wait(lambda: not fleet.living, CLOSED_WITHIN_S)
    late = fleet.start_as("late", f"1:{NODES}", *OPTIONS)
    late.process.code()
    assert "closed" in late.process.text, late.process.text
    formed = [each for agent in fleet.agents for each in agent.log.events("formed", closed_s)]
    assert not formed, f"R6: {formed}"


def check_history(cluster: EtcdCluster, fleet: Fleet) -> None:
    """The writes to etcd, and whether workers got the same."""
    prefix = "/" + fleet.endpoint.rpartition("/")[2]
    counted = etcd_history.check(etcd_history.history(cluster.options, prefix))
    for agent in fleet.agents:
        for each in agent.log.events("added"):
            number, value = each["round"], each["value"]
            assert value <= counted[number], f"R10: {value} of round {number} is not in the log"
