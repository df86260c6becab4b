"""A coordinator of many real nodes is killed: the target that docs/operations.md promises.

64 agents with a worker and a guard each are 192 processes, which take a minute or two to start on
a small machine, so this runs only when it is asked for:

    RALLYPOINT_TEST_MANY=64 python -m pytest -s tests/failover/test_many_nodes.py
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.failover.conftest import etcd_fleet
from tests.failover.fleet import ALL_WITHIN_S, SERVES_WITHIN_S, Fleet
from tests.kinds import LONG
from tests.ledger.etcd_processes import EtcdCluster

NODES = int(os.environ.get("RALLYPOINT_TEST_MANY", "64" if LONG else "0"))
STARTED_WITHIN_S = 400.0
AT_ONCE = 8
"""So many agents are started together: all of them at once would starve each other."""
COUNT_EVERY_S = "2"
"""So that what is measured is not how fast 64 workers can write."""

pytestmark = [
    pytest.mark.processes,
    pytest.mark.verify,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not NODES, reason="takes minutes: make verify LONG=1 runs it"),
]


def start(fleet: Fleet) -> float:
    """All agents, each with its worker in round 1; how long that took."""
    began_s = time.monotonic()
    for count in range(0, NODES, AT_ONCE):
        now = min(AT_ONCE, NODES - count)
        fleet.start(now, str(NODES), FAILOVER_EVERY_S=COUNT_EVERY_S)
        fleet.wait(lambda: all(each.first("attached") for each in fleet.agents), 120.0)
    fleet.wait(lambda: all(a.first("working", round=1) for a in fleet.agents), STARTED_WITHIN_S)
    fleet.counts_since(time.monotonic())
    return time.monotonic() - began_s


def test_all_nodes_are_attached_again_in_time(three_etcd: EtcdCluster, tmp_path: Path) -> None:
    fleet = etcd_fleet(three_etcd, tmp_path)
    # Attached are the nodes, so a coordinator in one of them would do; `serve` is what is asked.
    fleet.machine.env["RALLYPOINT_HOST_COORDINATOR"] = "no"
    # So that the bounds fail if a killed owner is succeeded only when its lease has run out.
    fleet.machine.env["RALLYPOINT_LEASE_TTL"] = "60"
    try:
        fleet.serve()
        fleet.serve()
        took_s = start(fleet)
        print(f"\n{NODES} agents in round 1 within {took_s:.0f} s")
        pids = fleet.worker_pids()
        for number in range(2):
            owner, killed_s = fleet.owner(), time.monotonic()
            owner.process.signal(signal.SIGKILL)
            owner.process.popen.wait()
            first_s, last_s = fleet.all_attached_since(killed_s)
            print(f"kill {number + 1}: served after {first_s:.2f} s, all after {last_s:.2f} s")
            assert first_s < SERVES_WITHIN_S
            assert last_s < ALL_WITHIN_S
            fleet.counts_since(killed_s)
            fleet.serve()
        assert fleet.worker_pids() == pids
        assert not any(agent.first("ended") for agent in fleet.agents)
        status = fleet.status()
        assert (status["round"], status["phase"], status["attached"]) == (1, "active", NODES)
        print(f"{fleet.check_counter(1)} writes, each there once")
        fleet.check_rounds()
    finally:
        fleet.close()
