"""A rolling upgrade: the previous release and this one, each from its own wheel, in one job.

Replicas of `serve`, nodes and the ledger are of both releases at the same time. They are replaced
one by one, in both orders. Between the steps the coordinator also changes from the new release back
to the old one. No promise may be lost: rounds, tokens, acknowledged writes and workers.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent.processes import Process
from tests.failover import etcd_history, records, releases
from tests.failover.conftest import etcd_fleet, file_fleet
from tests.failover.fleet import Agent, Fleet, Replica
from tests.kinds import LONG
from tests.ledger.etcd_processes import EtcdCluster
from tests.waiting import wait_until

NODES = 3
OPTIONS = ("--max-restarts", "any", "--regroup-stop-timeout", "1")
QUICK = {"RALLYPOINT_LEASE_TTL": "2", "RALLYPOINT_ATTACH_GRACE": "6"}
OLD, NEW = "old", "new"
CASES = [
    ("etcd", "coordinators first"),
    ("etcd", "nodes first"),
    ("file", "coordinators first"),
    ("file", "nodes first"),
]
"""Without LONG=1 the first and the last: both orders, and both ledgers."""

pytestmark = [pytest.mark.processes, pytest.mark.verify, pytest.mark.timeout(0)]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The unpacked wheel of each release."""
    commits = {OLD: releases.previous(), NEW: "HEAD"}
    folder = tmp_path_factory.mktemp("wheels")
    made = {name: releases.built(commit, folder / name) for name, commit in commits.items()}
    for each in made.values():
        where = "import rallypoint; print(rallypoint.__file__)"
        told = subprocess.run(
            [sys.executable, "-c", where],
            env=os.environ | {"PYTHONPATH": str(each)},
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        assert Path(told.stdout.strip()).is_relative_to(each), "another copy is imported first"
    return made


class Upgrade:
    """One job whose processes are of two releases. `hosts`: the option --host-coordinator."""

    def __init__(self, fleet: Fleet, wheels: dict[str, Path], hosts: str = "no") -> None:
        self.fleet = fleet
        self.options = ("--host-coordinator", hosts, *OPTIONS)
        self.wheels = wheels
        self.release_of: dict[int, str] = {}
        """By process."""
        self.nodes: list[Agent] = []
        self.harm = records.Harm()
        fleet.machine.env |= QUICK

    def _as(self, release: str) -> None:
        self.fleet.machine.env["PYTHONPATH"] = str(self.wheels[release])

    def serve(self, release: str) -> Replica:
        """One more replica of this release."""
        self._as(release)
        replica = self.fleet.serve()
        self._is_of(replica.process, release)
        return replica

    def start(self, release: str, name: str) -> Agent:
        """A node of this release."""
        self._as(release)
        agent = self.fleet.start_as(
            name, f"2:{NODES}", "--expected-nodes", str(NODES), *self.options
        )
        self._is_of(agent.process, release)
        return agent

    def _is_of(self, process: Process, release: str) -> None:
        wanted = f"PYTHONPATH={self.wheels[release]}\0".encode()
        # It is empty for a moment after the process has begun.
        environ = Path(f"/proc/{process.pid}/environ")
        wait_until(lambda: wanted in environ.read_bytes(), says=f"{process.name} is {release}")
        self.release_of[process.pid] = release

    def begin(self) -> None:
        """Everything is old."""
        if "no" in self.options:
            self.serve(OLD)
            self.serve(OLD)
        self.nodes = [self.start(OLD, f"node{number}") for number in range(NODES)]
        self.fleet.all_in_one_round()

    def owner(self) -> Replica:
        return self.fleet.owner()

    def replace_replicas(self) -> None:
        """One by one, the owner first; then the new owner is lost, so that the old one owns again.

        The workers must not notice any of it.
        """
        first = self.owner()
        (second,) = [each for each in self.fleet.replicas if each.is_alive and each is not first]
        new = self.unnoticed(lambda: self.serve(NEW))
        self.unnoticed(lambda: self.end(second))
        self.unnoticed(lambda: self.end(first))
        assert self.owner() is new
        back = self.unnoticed(lambda: self.serve(OLD))
        self.unnoticed(lambda: self.kill(new))
        assert self.owner() is back, "the previous release does not take over from this one"
        self.unnoticed(lambda: self.serve(NEW))
        self.unnoticed(lambda: self.kill(back))
        assert self.release_of[self.owner().process.pid] == NEW

    def replace_nodes(self) -> None:
        """One by one: each leaves as an operator would make it leave, and its successor joins."""
        for index, node in enumerate(self.nodes):
            self.harm.nodes.add(node.name)
            node.process.signal(signal.SIGTERM)
            node.process.code()
            self.nodes[index] = self.start(NEW, node.name)
            told = self.fleet.all_in_one_round()
            assert len(told) == NODES
            self.fleet.counts_since(time.monotonic())

    def unnoticed(self, act: Callable[[], Replica | None]) -> Replica | None:
        """Do it; the round and its workers go on, and writes are acknowledged again."""
        fleet = self.fleet
        pids, rounds = fleet.worker_pids(), {a.last("working")["round"] for a in fleet.living}
        made = act()
        fleet.wait(lambda: fleet.status()["attached"] == NODES)
        fleet.counts_since(time.monotonic())
        assert fleet.worker_pids() == pids, "the workers were started again"
        assert {agent.last("working")["round"] for agent in fleet.living} == rounds
        return made

    def end(self, replica: Replica) -> None:
        replica.process.signal(signal.SIGTERM)
        assert replica.process.code() == 0

    def kill(self, replica: Replica) -> None:
        replica.process.signal(signal.SIGKILL)
        replica.process.popen.wait()

    def check(self, cluster: EtcdCluster | None) -> None:
        """All rules, over what both releases wrote down; then the run ends for all."""
        fleet = self.fleet
        living = [each.process.pid for each in fleet.living]
        living += [each.process.pid for each in fleet.replicas if each.is_alive]
        assert {self.release_of[pid] for pid in living} == {NEW}
        paused_s = time.monotonic()
        fleet.pause.touch()
        fleet.wait(lambda: all(agent.first("paused", paused_s) for agent in fleet.living))
        fleet.machine.command("close", fleet.run_id, "--endpoint", fleet.endpoint).ends(0)
        fleet.wait(lambda: not fleet.living)
        stories = [records.Story(agent.name, agent.log.all()) for agent in fleet.agents]
        records.check(stories, self.harm)
        if cluster is not None:
            prefix = "/" + fleet.endpoint.rpartition("/")[2]
            counted = etcd_history.check(etcd_history.history(cluster.options, prefix))
            for each in (event for story in stories for event in story.of("added")):
                assert each["value"] <= counted[each["round"]], f"R10: {each} is not in the log"


@pytest.mark.parametrize(("engine", "order"), CASES if LONG else CASES[::3])
def test_a_job_goes_on_through_an_upgrade(
    request: pytest.FixtureRequest,
    wheels: dict[str, Path],
    tmp_path: Path,
    engine: str,
    order: str,
) -> None:
    cluster = request.getfixturevalue("three_etcd") if engine == "etcd" else None
    fleet = etcd_fleet(cluster, tmp_path) if cluster else file_fleet(tmp_path)
    try:
        upgrade = Upgrade(fleet, wheels)
        upgrade.begin()
        steps = [upgrade.replace_replicas, upgrade.replace_nodes]
        for step in steps if order == "coordinators first" else reversed(steps):
            step()
        upgrade.check(cluster)
    finally:
        fleet.close()


def test_a_job_whose_nodes_coordinate_goes_on_through_an_upgrade(
    request: pytest.FixtureRequest, wheels: dict[str, Path], tmp_path: Path
) -> None:
    """Each node that leaves may be the coordinator: candidates of both releases take over."""
    cluster = request.getfixturevalue("three_etcd")
    fleet = etcd_fleet(cluster, tmp_path)
    try:
        upgrade = Upgrade(fleet, wheels, hosts="auto")
        upgrade.begin()
        upgrade.replace_nodes()
        upgrade.check(cluster)
    finally:
        fleet.close()
