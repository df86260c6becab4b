"""R8: silent hosts, judged by witnesses: network namespaces on a bridge, a coordinator, agents.

`lost_after` is far longer than a test, so a node can be lost only by the evidence of witnesses.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rallypoint.core.reasons import HOST_GONE, NOT_HEARD
from tests.failover.fleet import Agent, Fleet
from tests.failover.netns import Host, Network
from tests.failover.spread import RALLYPOINT, SERVE_PORT, HostedReplica

pytestmark = [pytest.mark.processes, pytest.mark.verify]

QUICK = {"RALLYPOINT_SUSPECT_AFTER": "3", "RALLYPOINT_LOST_AFTER": "600"}
LIVES = "its host answered"


class Hosts(Fleet):
    """A coordinator on one host, and an agent on each of some others."""

    def __init__(self, net: Network, folder: Path, nodes: int, **env: str) -> None:
        self.net = net
        self.desk = net.host("desk")
        self.machines = [net.host(f"n{number}") for number in range(nodes)]
        super().__init__(folder, "memory", f"http://{self.desk.address}:{SERVE_PORT}")
        # The default: on a busy machine, agents start seconds apart.
        del self.machine.env["RALLYPOINT_LAST_CALL"]
        self.machine.env |= QUICK | env

    def serve_there(self) -> HostedReplica:
        argv = [sys.executable, *RALLYPOINT, "serve", "--port", str(SERVE_PORT)]
        argv += ["--host", "0.0.0.0", "--insecure"]
        with self.desk.inside():
            process = self._process(argv, "desk", {})
        process.line("is ready at")
        replica = HostedReplica(process, SERVE_PORT, self.desk)
        self.replicas.append(replica)
        return replica

    def start_all(self, watched: int) -> list[Agent]:
        """All agents at work, each when it has seen so many other hosts."""
        count = len(self.machines)
        for host in self.machines:
            with host.inside():
                self.start(1, f"2:{count}", "--expected-nodes", str(count))
        self.at_work(1)
        self.wait(lambda: all(len(self.seen_by(each)) >= watched for each in self.agents))
        return self.agents

    def seen_by(self, agent: Agent) -> set[str]:
        """The hosts that have answered an agent, which can testify about them."""
        return {each["host"] for each in agent.log.events("tried", has_answered=True)}

    def has_ended(self, agent: Agent) -> bool:
        return agent.first("ended", round=1) is not None

    def lost(self, agents: list[Agent]) -> str:
        """Wait until these are told of a loss; the evidence, and who was lost."""
        self.wait(lambda: all(map(self.has_ended, agents)))
        told = agents[0].first("ended", round=1)
        assert told is not None
        assert told["kind"] == "node_lost"
        return f"{' '.join(told['nodes'])}: {told['detail']}"


@pytest.fixture
def hosts(net: Network, tmp_path: Path) -> Iterator[Callable[..., Hosts]]:
    made: list[Hosts] = []

    def make(nodes: int, **env: str) -> Hosts:
        made.append(Hosts(net, tmp_path / "fleet", nodes, **env))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            each.close()


def test_a_host_that_is_gone_is_lost(hosts: Callable[..., Hosts]) -> None:
    fleet = hosts(4)
    fleet.serve_there()
    gone, *others = fleet.start_all(watched=3)
    fleet.net.part(fleet.machines[0])
    text = fleet.lost(others)
    assert text.startswith(f"{gone.name}: {HOST_GONE} ")
    assert text.endswith(", which had reached it before")
    assert all(agent.name in text for agent in others)
    fleet.at_work(2, others)


def test_a_switch_that_is_gone_takes_its_hosts(hosts: Callable[..., Hosts]) -> None:
    fleet = hosts(5)
    fleet.serve_there()
    agents = fleet.start_all(watched=2)
    fleet.net.part(*fleet.machines[:2])
    text = fleet.lost(agents[2:])
    assert HOST_GONE in text
    told = fleet.wait(lambda: [e for e in [a.first("working", round=2) for a in agents[2:]] if e])
    fleet.wait(lambda: all(a.last("working")["size"] == 3 for a in agents[2:]))
    assert told


def test_a_frozen_process_on_a_host_that_lives_is_not_lost(hosts: Callable[..., Hosts]) -> None:
    fleet = hosts(4)
    replica = fleet.serve_there()
    frozen, *others = fleet.start_all(watched=3)
    frozen.process.signal(signal.SIGSTOP)
    try:
        replica.process.line(LIVES)
    finally:
        frozen.process.signal(signal.SIGCONT)
    fleet.counts_since(frozen.last("added")["at_s"])
    assert not any(map(fleet.has_ended, [frozen, *others]))


def test_a_node_that_only_its_coordinator_does_not_hear_is_not_lost(
    hosts: Callable[..., Hosts],
) -> None:
    fleet = hosts(4)
    replica = fleet.serve_there()
    agents = fleet.start_all(watched=3)
    fleet.desk.drop_incoming("ip", "saddr", fleet.machines[0].address)
    replica.process.line(LIVES)
    assert not any(map(fleet.has_ended, agents[1:]))


def test_a_coordinator_that_is_cut_off_loses_nobody(hosts: Callable[..., Hosts]) -> None:
    fleet = hosts(4, RALLYPOINT_COORDINATOR_SILENCE="12")
    replica = fleet.serve_there()
    agents = fleet.start_all(watched=3)
    pids = fleet.worker_pids()
    fleet.net.part(fleet.desk)

    def are_suspect() -> bool:
        picture = replica.picture(fleet.run_id) or {}
        return [m["link"] for m in picture.get("members", ())].count("silent") == 4

    fleet.wait(are_suspect)
    since_s = max(agent.last("added")["at_s"] for agent in agents)
    fleet.net.heal()
    fleet.counts_since(since_s)
    assert fleet.worker_pids() == pids
    assert not any(map(fleet.has_ended, agents))
    replica.process.rewind()
    assert not [line for line in replica.process.lines if "lost" in line]


def test_behind_a_firewall_that_drops_nobody_is_a_witness(hosts: Callable[..., Hosts]) -> None:
    fleet = hosts(3, RALLYPOINT_LOST_AFTER="14")
    fleet.serve_there()
    for host in fleet.machines:
        host.drop_incoming("tcp flags & (syn | ack) == syn")
    gone, *others = fleet.start_all(watched=0)
    fleet.net.part(fleet.machines[0])
    text = fleet.lost(others)
    assert text == f"{gone.name}: {NOT_HEARD}"


def test_of_three_hosts_of_which_one_is_the_coordinators(hosts: Callable[..., Hosts]) -> None:
    """The only witness elsewhere sees that its network is whole by the coordinator itself."""
    fleet = hosts(3)
    first: Host = fleet.machines[0]
    fleet.endpoint = f"{first.address}:{SERVE_PORT}"
    agents = fleet.start_all(watched=0)
    gone = fleet.machines[2].address
    fleet.wait(lambda: gone in fleet.seen_by(agents[1]))
    fleet.net.part(fleet.machines[2])
    text = fleet.lost(agents[:1])
    assert text.startswith(f"{agents[2].name}: {HOST_GONE} ")
    fleet.at_work(2, agents[:2])
