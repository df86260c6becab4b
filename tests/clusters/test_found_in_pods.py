"""Pods of an Indexed Job, as Kubernetes sets them up: names, /etc/hosts, variables, DNS.

No Kubernetes is at hand: each pod is a host with the files and variables that kubelet gives it. The
cluster's DNS is a dnsmasq that knows a pod from when it is published.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from rallypoint.security.authority import new_host_token
from tests.agent.processes import Process, gone, signal_all
from tests.clusters.hosts import Hosts, need
from tests.clusters.programs import STEADY
from tests.environments.recorded import pod

pytestmark = [pytest.mark.processes, pytest.mark.verify]

SERVICE = "train.default.svc.cluster.local"
TOKEN = {"RALLYPOINT_TOKEN": new_host_token()}
WORKER = """
import os
print(f"worker {os.environ['RANK']} of {os.environ['WORLD_SIZE']}", flush=True)
"""


class Pods:
    """Three pods, a DNS server, and a pod of another kind. `start` runs the same command in each.

    `addresses`: where each pod is now.
    """

    def __init__(self, hosts: Hosts, dns: str, other: str) -> None:
        self.hosts = hosts
        self.addresses = {host.name: host.address for host in hosts}
        self._names = [name for name in self.addresses if name not in (dns, other)]
        self._records = hosts.folder / "records"
        self._records.write_text(f"{hosts[other].address} {other}.default.svc.cluster.local\n")
        (hosts.folder / "worker.py").write_text(WORKER)
        (hosts.folder / "steady.py").write_text(STEADY)
        resolving = "search default.svc.cluster.local svc.cluster.local cluster.local\n"
        resolving += f"nameserver {hosts[dns].address}\noptions ndots:5 timeout:1 attempts:2\n"
        for name in self._names:
            (hosts.folder / name / "resolv.conf").write_text(resolving)
            self._write_own(name)
        self._dns_host = dns
        self._dns = hosts.start(
            dns,
            *("dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", "--local=/cluster.local/"),
            *(f"--addn-hosts={self._records}", "--user=root", "--pid-file="),
        )
        self._dns.line("read .*records")

    def start(self, program: str = "worker.py", **variables: str) -> list[Process]:
        return [self.start_one(index, program, **variables) for index in range(len(self._names))]

    def start_one(self, index: int, program: str, **variables: str) -> Process:
        env = TOKEN | pod(index) | variables
        return self.hosts.start(self._names[index], "rallypoint", "run", program, env=env)

    def publish(self, *indexes: int) -> None:
        """From now on, the names of these pods lead to their present addresses."""
        names = [self._names[index] for index in indexes]
        kept = [
            line
            for line in self._records.read_text().splitlines()
            if not any(f" {name}." in line for name in names)
        ]
        kept += [f"{self.addresses[name]} {name}.{SERVICE}" for name in names]
        self._records.write_text("\n".join(kept) + "\n")
        self.hosts.run(self._dns_host, "pkill", "-HUP", "dnsmasq")
        self._dns.line("read .*records")

    def lose(self, index: int) -> None:
        """The pod's node has lost power: no packet comes from it any more."""
        host = self.hosts[self._names[index]]
        host.pull_cable()
        pids = host.pids("rallypoint") + host.pids("steady.py")
        signal_all(pids, signal.SIGKILL)
        gone(pids)

    def come_back(self, index: int, address: str) -> None:
        """The pod is made again on another node: with its name, and at another address."""
        host = self.hosts[self._names[index]]
        self.hosts.run(host.name, "ip", "address", "flush", "dev", "eth0")
        self.hosts.run(host.name, "ip", "address", "add", f"{address}/24", "dev", "eth0")
        host.plug_in()
        self.addresses[host.name] = address
        self._write_own(host.name)
        self.publish(index)

    def _write_own(self, name: str) -> None:
        """Its /etc/hosts, as kubelet writes it: of the pods only itself."""
        lines = ["127.0.0.1\tlocalhost", f"{self.addresses[name]}\t{name}.{SERVICE}\t{name}"]
        # Written in place, because it is bound to /etc/hosts of the pod.
        Path(self.hosts.folder / name / "hosts").write_text("\n".join(lines) + "\n")


@pytest.fixture
def pods(make_hosts: Callable[..., Hosts]) -> Pods:
    need({"dnsmasq": "dnsmasq-base"})
    return Pods(
        make_hosts("train-0", "train-1", "train-2", "dns", "rallypoint"), "dns", "rallypoint"
    )


def test_pods_meet_also_if_their_names_are_published_late(pods: Pods) -> None:
    agents = pods.start(RALLYPOINT_NNODES="3", RALLYPOINT_RUN_ID="uid-1")
    agents[2].line("waiting")
    pods.publish(0, 1, 2)
    for index, agent in enumerate(agents):
        assert f"worker {index} of 3" in agent.ends(0)


@pytest.mark.parametrize("lost", [1, 0])
def test_a_pod_comes_back_at_another_address(pods: Pods, lost: int) -> None:
    """Any but pod 0, which hosts the coordinator; with `rallypoint serve` pod 0, too."""
    variables = {"RALLYPOINT_NNODES": "3", "RALLYPOINT_RUN_ID": "uid-1"}
    if lost == 0:
        variables["RALLYPOINT_ENDPOINT"] = "http://rallypoint:29400"
        serve = pods.hosts.start(
            "rallypoint", "rallypoint", "serve", "--host", "0.0.0.0", env=TOKEN
        )
        serve.line("29400")
    pods.publish(0, 1, 2)
    agents = pods.start("steady.py", **variables)
    for index, agent in enumerate(agents):
        agent.line(f"worker {index} of 3 works in round 1")
    before = pods.addresses[f"train-{lost}"]
    pods.lose(lost)
    pods.come_back(lost, f"{before.rpartition('.')[0]}.77")
    agents[lost] = pods.start_one(lost, "steady.py", **variables)
    for index, agent in enumerate(agents):
        agent.line(f"worker {index} of 3 works in round [2-9]", 60)
    (pods.hosts.folder / "finish").touch()
    for agent in agents:
        agent.ends(0)


def test_pods_that_do_not_know_how_many_they_are_do_not_train(pods: Pods) -> None:
    for agent in pods.start():
        text = agent.ends(2)
        assert "does not tell a pod how many pods there are" in text
        assert '- {name: RALLYPOINT_NNODES, value: "4"}' in text
        assert "worker" not in text
