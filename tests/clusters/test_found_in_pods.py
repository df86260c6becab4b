"""Pods of an Indexed Job, as Kubernetes sets them up: names, /etc/hosts, variables.

No Kubernetes is at hand: each pod is a host with the files and variables that kubelet gives it. The
names of the other pods are in /etc/hosts, too, in place of the cluster's DNS.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent.processes import Process
from tests.clusters.hosts import Hosts
from tests.environments.recorded import pod

pytestmark = [pytest.mark.processes, pytest.mark.verify]

SERVICE = "train.default.svc.cluster.local"
WORKER = """
import os
print(f"worker {os.environ['RANK']} of {os.environ['WORLD_SIZE']}", flush=True)
"""


class Pods:
    """Three pods. `start` runs the same command in each."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self._names = [host.name for host in hosts]
        (hosts.folder / "worker.py").write_text(WORKER)
        for name in self._names:
            self._write(name, [name])

    def start(self, **variables: str) -> list[Process]:
        token = {"RALLYPOINT_TOKEN": "Zq3xV0bT7mKc9LwYp2RfHs"}
        return [
            self.hosts.start(
                name, "rallypoint", "run", "worker.py", env=token | pod(index) | variables
            )
            for index, name in enumerate(self._names)
        ]

    def publish(self) -> None:
        """From now on, the name of each pod can be looked up by all."""
        for name in self._names:
            self._write(name, [name, *(other for other in self._names if other != name)])

    def _write(self, name: str, known: list[str]) -> None:
        lines = ["127.0.0.1\tlocalhost"]
        lines += [f"{self.hosts[each].address}\t{each}.{SERVICE}\t{each}" for each in known]
        # Written in place, because it is bound to /etc/hosts of the pod.
        Path(self.hosts.folder / name / "hosts").write_text("\n".join(lines) + "\n")


@pytest.fixture
def pods(make_hosts: Callable[..., Hosts]) -> Pods:
    return Pods(make_hosts("train-0", "train-1", "train-2"))


def test_pods_meet_also_if_their_names_are_published_late(pods: Pods) -> None:
    agents = pods.start(RALLYPOINT_NNODES="3", RALLYPOINT_RUN_ID="uid-1")
    agents[2].line("waiting")
    pods.publish()
    for index, agent in enumerate(agents):
        assert f"worker {index} of 3" in agent.ends(0)


def test_pods_that_do_not_know_how_many_they_are_do_not_train(pods: Pods) -> None:
    for agent in pods.start():
        text = agent.ends(2)
        assert "does not tell a pod how many pods there are" in text
        assert '- {name: RALLYPOINT_NNODES, value: "4"}' in text
        assert "worker" not in text
