"""What a run keeps over a failover: its host, its standbys, its restarts, and a whole restart."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.failover.conftest import etcd_fleet
from tests.failover.fleet import ALL_WITHIN_S, SERVES_WITHIN_S, Fleet, Replica
from tests.ledger.etcd_processes import EtcdCluster
from tests.ports import free_port

QUICK = {"RALLYPOINT_LEASE_TTL": "1"}
NOT_THE_NODES = ("--host-coordinator", "no")
"""Else a node would coordinate while there is no replica."""

pytestmark = [pytest.mark.processes, pytest.mark.verify]


@pytest.fixture
def fleets(tmp_path: Path) -> Iterator[Callable[[Fleet], Fleet]]:
    made: list[Fleet] = []

    def keep(fleet: Fleet) -> Fleet:
        # Round 1 is one of all nodes, however far apart they start on a busy machine.
        fleet.machine.env |= {"RALLYPOINT_LAST_CALL": "30"}
        made.append(fleet)
        return fleet

    yield keep
    for fleet in made:
        fleet.close()


def kill_owner(fleet: Fleet) -> Replica:
    """Kill it, start another one, and wait until the nodes are back. Returns their coordinator."""
    owner, killed_s = fleet.owner(), time.monotonic()
    owner.process.signal(signal.SIGKILL)
    owner.process.popen.wait()
    fleet.serve()
    fleet.all_attached_since(killed_s)
    return fleet.owner()


def test_a_run_survives_a_killed_host(
    fleets: Callable[[Fleet], Fleet], three_etcd: EtcdCluster, tmp_path: Path
) -> None:
    fleet = fleets(etcd_fleet(three_etcd, tmp_path))
    fleet.start(4, "3:4", "--expected-nodes", "4")
    fleet.at_work(1)
    hosts = [agent for agent in fleet.agents if agent.last("attached")["hosts"]]
    assert len(hosts) == 1
    killed_s = time.monotonic()
    hosts[0].kill_with_worker()
    survivors = fleet.living
    first_s, last_s = fleet.all_attached_since(killed_s)
    assert first_s < SERVES_WITHIN_S
    assert last_s < ALL_WITHIN_S
    told = fleet.at_work(2)
    for agent in survivors:
        # They kept round 1 until the dead node was lost: it ended after they had attached.
        back, ended = agent.first("attached", killed_s), agent.first("ended", killed_s)
        assert back is not None
        assert ended is not None
        assert (back["round"], ended["round"]) == (1, 1)
        assert back["at_s"] < ended["at_s"]
        assert "lost" in ended["kind"]
    for each in told:
        assert each["size"] == 3
        assert hosts[0].name not in each["members"]
    fleet.counts_since(time.monotonic())
    fleet.check_rounds()


def test_a_standby_and_a_newcomer_are_admitted_after_a_failover(
    fleets: Callable[[Fleet], Fleet], three_etcd: EtcdCluster, tmp_path: Path
) -> None:
    fleet = fleets(etcd_fleet(three_etcd, tmp_path))
    fleet.machine.env |= QUICK
    fleet.serve()
    options = ("--expected-nodes", "2", *NOT_THE_NODES)
    fleet.start(2, "1:3", *options)
    fleet.at_work(1)
    kill_owner(fleet)
    (newcomer,) = fleet.start(1, "1:3", *options)
    members = fleet.at_work(2)[0]["members"]
    assert sorted(members) == ["node0", "node1", "node2"]
    (standby,) = fleet.start(1, "1:3", *options)
    fleet.wait(lambda: fleet.status()["attached"] == 4)
    kill_owner(fleet)
    assert standby.first("working") is None
    newcomer.kill_with_worker()
    members = fleet.at_work(3)[0]["members"]
    assert sorted(members) == ["node0", "node1", "node3"]
    fleet.check_rounds()


def test_restarts_and_their_budget_survive_a_failover(
    fleets: Callable[[Fleet], Fleet], three_etcd: EtcdCluster, tmp_path: Path
) -> None:
    fleet = fleets(etcd_fleet(three_etcd, tmp_path))
    fleet.machine.env |= QUICK
    fleet.serve()
    agents = fleet.start(2, "2", "--max-restarts", "1", *NOT_THE_NODES)
    fleet.at_work(1)
    kill_owner(fleet)
    fleet.fail.touch()
    assert {each["restarts"] for each in fleet.at_work(2)} == {1}
    kill_owner(fleet)
    assert fleet.status()["restart_count"] == 1
    fleet.fail.touch()
    for agent in agents:  # The budget is spent: the run is closed, and no third round formed.
        assert "asked to fail" in agent.process.ends(1)
        assert agent.first("working", round=3) is None


def test_a_restarted_coordinator_resumes_its_run(
    fleets: Callable[[Fleet], Fleet], tmp_path: Path
) -> None:
    port = free_port()
    fleet = fleets(Fleet(tmp_path, f"file:{tmp_path}/ledger", f"http://127.0.0.1:{port}"))
    replica = fleet.serve(port=port)
    fleet.start(3)
    fleet.at_work(1)
    pids, killed_s = fleet.worker_pids(), time.monotonic()
    replica.process.signal(signal.SIGKILL)
    replica.process.popen.wait()
    fleet.serve(port=port)
    _, last_s = fleet.all_attached_since(killed_s)
    assert last_s < ALL_WITHIN_S
    fleet.counts_since(killed_s)
    assert fleet.worker_pids() == pids
    assert fleet.status()["round"] == 1
    fleet.check_counter(1)
    fleet.check_rounds()
