"""A member of etcd dies, or all of it goes silent: what a job with replicas makes of that."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from rallypoint.clock import StallProofClock
from tests.failover.conftest import etcd_fleet
from tests.failover.fleet import PATIENCE_S, Fleet, Replica
from tests.ledger.etcd_processes import EtcdCluster, EtcdProcess

NODES = 4
AWAY_S = float(os.environ.get("RALLYPOINT_TEST_OUTAGE_S", "10"))
"""How long all of etcd is away; 60 is what is promised, and takes as long."""
SETTLED_S = 2.0
"""After this long nothing can be under way any more that was asked of etcd before."""

pytestmark = [pytest.mark.processes, pytest.mark.verify]


@pytest.fixture(scope="module")
def running(three_etcd: EtcdCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = etcd_fleet(three_etcd, tmp_path_factory.mktemp("fleet"))
    try:
        fleet.serve()
        fleet.serve()
        fleet.start(NODES)
        fleet.at_work(1)
        yield fleet
    finally:
        fleet.close()


def nothing_has_happened(fleet: Fleet, pids: list[int]) -> None:
    assert fleet.worker_pids() == pids
    assert not any(agent.first("ended") for agent in fleet.agents)
    status = fleet.is_in_phase("active")
    assert (status["round"], status["phase"], status["attached"]) == (1, "active", NODES)
    fleet.check_counter(1)
    fleet.check_rounds()


def kill(fleet: Fleet, cluster: EtcdCluster, member: EtcdProcess) -> None:
    """Kill a member, see that the job goes on, and start the member again."""
    pids, killed_s = fleet.worker_pids(), time.monotonic()
    member.kill()
    try:
        fleet.counts_since(killed_s)
        time.sleep(SETTLED_S)  # a lease that is not renewed would end within its ttl
        fleet.counts_since(time.monotonic())
        nothing_has_happened(fleet, pids)
    finally:
        member.start()
        cluster.wait_until_ready()


def test_a_run_survives_a_killed_member_of_etcd(running: Fleet, three_etcd: EtcdCluster) -> None:
    leader = three_etcd.leader()
    kill(running, three_etcd, next(m for m in three_etcd.members if m is not leader))


def test_a_run_survives_a_killed_leader_of_etcd(running: Fleet, three_etcd: EtcdCluster) -> None:
    kill(running, three_etcd, three_etcd.leader())


def test_a_run_survives_an_outage_of_etcd(running: Fleet, three_etcd: EtcdCluster) -> None:
    fleet, pids = running, running.worker_pids()
    owner = fleet.owner()
    began_s = time.monotonic()
    try:
        for member in three_etcd.members:
            member.freeze()
        frozen_s = time.monotonic()
        fleet.is_in_phase("suspended")
        says_why(fleet, owner)
        clock = StallProofClock()  # as that of the coordinator, which counts no time of a stall
        while time.monotonic() - frozen_s < AWAY_S:
            time.sleep(0.5)
            clock.now_s()
            assert fleet.worker_pids() == pids
            assert not any(agent.first("ended") for agent in fleet.agents)
        asked_s = time.monotonic()
        away_s = says_why(fleet, owner)
        # It was answered meanwhile; and it counts from when etcd last answered, or did not.
        assert asked_s - frozen_s - clock.stalled_s - SETTLED_S < away_s
        assert away_s < time.monotonic() - began_s + SETTLED_S
    finally:
        thawed_s = time.monotonic()
        for member in three_etcd.members:
            member.thaw()
    # R10: what cannot be written is not acknowledged.
    for agent in fleet.agents:
        told = agent.log.events("added", frozen_s + SETTLED_S)
        assert not told or told[0]["at_s"] > thawed_s
    fleet.counts_since(thawed_s)
    fleet.is_in_phase("active")
    fleet.wait(lambda: fleet.status()["attached"] == NODES)
    print(f"away for {thawed_s - frozen_s:.1f} s, whole {time.monotonic() - thawed_s:.1f} s later")
    nothing_has_happened(fleet, pids)


def says_why(fleet: Fleet, owner: Replica) -> float:
    """The API, `status` and the log have the same reason. Returns how long the ledger is away."""
    endpoint = f"http://127.0.0.1:{owner.port}"
    shown = fleet.machine.command("status", fleet.run_id, "--endpoint", endpoint).ends(0)
    assert "suspended: ledger unreachable for" in " ".join(shown.split())
    picture = owner.picture(fleet.run_id, PATIENCE_S)
    assert picture is not None
    assert picture["reason"].startswith("suspended: ledger unreachable for")
    owner.process.rewind()
    owner.process.line("suspended: ledger unreachable")
    away_s = picture["waiting"]["ledger_away_s"]
    assert isinstance(away_s, float)
    return away_s
