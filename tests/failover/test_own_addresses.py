"""Which address nodes tell each other, on hosts of every kind: network namespaces and real agents.

Workers meet at MASTER_ADDR: rank 0 listens, and the other one, on another host, connects.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rallypoint.security.authority import new_host_token
from tests.failover.netns import Host, Network, run

TOKEN = new_host_token()

pytestmark = [pytest.mark.processes, pytest.mark.verify]

LIMIT_S = 100.0
PORT = 29400
MEET = """
import os, socket, sys, time
host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
print("meets at", host, flush=True)
if os.environ["RANK"] == "0":
    with socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        for _ in range(int(os.environ["WORLD_SIZE"]) - 1):
            server.accept()[0].sendall(b"!")
else:
    until_s = time.monotonic() + 60
    while True:
        try:
            # A second connection would not be accepted, so the first one may take its time.
            with socket.create_connection((host, port), timeout=60) as connection:
                assert connection.recv(1) == b"!"
            break
        except OSError as error:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.1)
"""


class Fleet:
    """Agents of one run, each on a host of its own."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.agents: list[subprocess.Popen[str]] = []
        (tmp_path / "meet.py").write_text(MEET)

    def start(
        self, host: Host, *options: str, hosts: str = "", named: str = "", nnodes: str = "2"
    ) -> None:
        """`hosts`: what this host has in place of /etc/hosts. `named`: its host name."""
        command = [
            *(sys.executable, "-m", "rallypoint", "run", "--nnodes", nnodes, "--run-id", "run"),
            *("--node-name", host.name, "--join-timeout", "40s", *options),
            str(self.tmp_path / "meet.py"),
        ]
        if hosts or named:
            path = self.tmp_path / f"hosts-{host.name}"
            path.write_text(hosts or "127.0.0.1 localhost\n")
            script = f'mount --bind {path} /etc/hosts && hostname {named or "host"} && exec "$@"'
            command = ["unshare", "-mu", "sh", "-c", script, "sh", *command]
        with host.inside():
            agent = subprocess.Popen(
                command,
                env=os.environ | {"RALLYPOINT_TOKEN": TOKEN},
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
        self.agents.append(agent)

    def end(self, *codes: int) -> list[str]:
        """What each agent said, once they have ended with these codes."""
        said = [agent.communicate(timeout=LIMIT_S)[0] for agent in self.agents]
        assert [agent.returncode for agent in self.agents] == list(codes), said
        return said

    def meets_at(self, *hosts: str, jobs: int = 1) -> None:
        """All workers met at one of these; each job at one."""
        found = {
            line.partition("meets at ")[2]
            for text in self.end(*[0 for _ in self.agents])
            for line in text.splitlines()
            if "meets at " in line
        }
        assert 1 <= len(found) <= jobs
        assert found <= set(hosts), found

    def close(self) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                agent.terminate()
                agent.communicate(timeout=LIMIT_S)


@pytest.fixture
def fleet(net: Network, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    try:
        yield made
    finally:
        made.close()


def ipv6_only(host: Host, number: int) -> str:
    """Take its IPv4 addresses away. Its new address."""
    address = f"fd00:77::{number}"
    inside = ("ip", "-n", host.namespace)
    run(*inside, "address", "flush", "dev", "eth0")
    run(*inside, "address", "add", f"{address}/64", "dev", "eth0", "nodad")
    return address


def link_local_only(host: Host, number: int) -> str:
    inside = ("ip", "-n", host.namespace)
    run(*inside, "address", "flush", "dev", "eth0")
    run(*inside, "address", "add", f"fe80::{number}/64", "dev", "eth0", "nodad")
    return f"fe80::{number}%eth0"


def test_nodes_meet_without_a_default_route(net: Network, fleet: Fleet) -> None:
    one, other = net.host("one"), net.host("other")
    for host in (one, other):
        fleet.start(host, "--endpoint", f"file://{fleet.tmp_path}/ledger")
    fleet.meets_at(one.address, other.address)


def test_a_host_that_resolves_itself_to_127_0_1_1_is_reachable(net: Network, fleet: Fleet) -> None:
    """As Debian has it in /etc/hosts."""
    one, other = net.host("one"), net.host("other")
    local = "127.0.0.1 localhost\n"
    endpoint = ("--endpoint", f"node0:{PORT}")
    fleet.start(one, *endpoint, hosts=f"{local}127.0.1.1 node0\n")
    fleet.start(other, *endpoint, hosts=f"{local}{one.address} node0\n")
    fleet.meets_at("node0", other.address)


def test_two_nodes_on_a_host_that_resolves_itself_to_127_0_1_1(net: Network, fleet: Fleet) -> None:
    """The one that does not carry the coordinator reaches it by loopback."""
    one, other = net.host("one"), net.host("other")
    local = "127.0.0.1 localhost\n"
    options = ("--endpoint", f"node0:{PORT}", "--host-coordinator", "no")
    carries = ("--endpoint", f"node0:{PORT}", "--node-name", "z", "--rank-policy", "natural")
    natural = ("--rank-policy", "natural")
    fleet.start(one, *options, *natural, hosts=f"{local}127.0.1.1 node0\n", nnodes="3")
    fleet.start(other, *options, *natural, hosts=f"{local}{one.address} node0\n", nnodes="3")
    fleet.start(one, *carries, hosts=f"{local}127.0.1.1 node0\n", nnodes="3")
    fleet.meets_at(one.address)


def two_that_have_only(
    kind: Callable[[Host, int], str], net: Network, fleet: Fleet, where: str
) -> None:
    hosts = [net.host("one"), net.host("other")]
    addresses = [kind(host, number) for number, host in enumerate(hosts, 1)]
    ledger = f"file://{fleet.tmp_path}/ledger"
    endpoint = f"[{addresses[0]}]:{PORT}" if where == "host" else ledger
    for host in hosts:
        fleet.start(host, "--endpoint", endpoint)
    fleet.meets_at(*addresses)


@pytest.mark.parametrize("where", ["host", "ledger"])
def test_nodes_meet_without_ipv4(net: Network, fleet: Fleet, where: str) -> None:
    two_that_have_only(ipv6_only, net, fleet, where)


@pytest.mark.parametrize("where", ["host", "ledger"])
def test_nodes_meet_over_link_local_addresses(net: Network, fleet: Fleet, where: str) -> None:
    two_that_have_only(link_local_only, net, fleet, where)


def places(net: Network, fleet: Fleet) -> tuple[Host, Host, dict[str, str]]:
    """Two hosts, and the kinds of endpoints at which they can meet."""
    one, other = net.host("one"), net.host("other")
    named = f"{one.address}:{PORT}"
    return one, other, {"host": named, "ledger": f"file://{fleet.tmp_path}/ledger"}


@pytest.mark.parametrize("where", ["host", "ledger"])
@pytest.mark.parametrize("has_default_route", [False, True])
def test_nodes_meet_beside_a_dead_second_interface(
    net: Network, fleet: Fleet, where: str, has_default_route: bool
) -> None:
    one, other, endpoints = places(net, fleet)
    for number, host in enumerate((one, other), 1):
        dead = f"10.200.{number}.1"
        host.add_dead_interface("eth1", dead, has_default_route=has_default_route)
        fleet.start(host, "--endpoint", endpoints[where])
    fleet.meets_at(one.address, other.address)


def test_an_interface_can_be_chosen_by_its_name_or_its_network(net: Network, fleet: Fleet) -> None:
    one, other, endpoints = places(net, fleet)
    for host, chosen in ((one, "eth0"), (other, f"{other.address}/24")):
        host.add_dead_interface("eth1", "10.200.0.1", has_default_route=True)
        fleet.start(host, "--endpoint", endpoints["ledger"], "--interface", chosen)
    fleet.meets_at(one.address, other.address)


def test_an_interface_that_does_not_exist_is_refused_with_those_that_do(
    net: Network, fleet: Fleet
) -> None:
    one, _, endpoints = places(net, fleet)
    fleet.start(one, "--endpoint", endpoints["ledger"], "--interface", "ib0")
    (said,) = fleet.end(2)
    assert "interface 'ib0' does not exist on this machine" in said
    assert f"this machine has {one.address} (eth0)" in said.splitlines()[-1]
    assert "--interface" in said.splitlines()[-1]


def test_nodes_meet_at_one_of_several_hosts_without_any_names(net: Network, fleet: Fleet) -> None:
    """No host knows its own name, as on a node without DNS; one name is of a host that is off."""
    one, other, _ = places(net, fleet)
    endpoint = f"{net.host('off').address},gone.invalid,{one.address},{other.address}"
    for host, chosen in ((one, "yes"), (other, "no")):
        options = ("--endpoint", endpoint, "--host-coordinator", chosen)
        fleet.start(host, *options, named=host.name)
    fleet.meets_at(one.address, other.address)


def test_nodes_meet_at_a_host_that_does_not_know_its_own_name(net: Network, fleet: Fleet) -> None:
    one, other, _ = places(net, fleet)
    endpoint = ("--endpoint", f"node0:{PORT}")
    fleet.start(one, *endpoint, named="node0")
    fleet.start(other, *endpoint, hosts=f"127.0.0.1 localhost\n{one.address} node0\n")
    fleet.meets_at("node0", other.address)


def test_nodes_meet_at_a_name_with_a_stale_address(net: Network, fleet: Fleet) -> None:
    one, other, _ = places(net, fleet)
    stale = f"{one.address.rpartition('.')[0]}.99"
    hosts = f"127.0.0.1 localhost\n{stale} node0\n{one.address} node0\n"
    for host in (one, other):
        fleet.start(host, "--endpoint", f"node0:{PORT}", hosts=hosts)
    fleet.meets_at("node0", other.address)


@pytest.mark.parametrize("where", ["host", "ledger"])
def test_nodes_meet_behind_a_firewall_within_a_range_of_ports(
    net: Network, fleet: Fleet, where: str
) -> None:
    one, other, endpoints = places(net, fleet)
    place = one.address if where == "host" else endpoints["ledger"]
    for host in (one, other):
        host.drop_incoming("tcp dport != 29400-29410 ct state new")
        fleet.start(host, "--endpoint", place, "--port-range", "29400:29410")
    fleet.meets_at(one.address, other.address)


def test_a_firewall_in_between_is_an_error_with_address_interface_and_option(
    net: Network, fleet: Fleet
) -> None:
    one, other, _ = places(net, fleet)
    one.drop_incoming(f"tcp dport {PORT}")
    options = ("--endpoint", f"{one.address}:{PORT}", "--set", "connect_timeout=5s")
    fleet.start(other, *options)
    (said,) = fleet.end(3)
    last = "\n".join(said.splitlines()[-2:])
    assert f"{one.address}:{PORT}: no answer within" in last
    assert f"from {other.address} (eth0)" in last
    assert "--port-range" in last


def test_an_elected_node_behind_a_firewall_is_named_with_the_options(
    net: Network, fleet: Fleet
) -> None:
    one, other, endpoints = places(net, fleet)
    one.drop_incoming("ct state new")
    options = ("--endpoint", endpoints["ledger"], "--join-timeout", "12s")
    fleet.start(one, *options)
    fleet.start(other, *options, "--host-coordinator", "no", "--set", "connect_timeout=8s")
    hosting, said = fleet.end(3, 3)
    last = "\n".join(said.splitlines()[-2:])
    assert f"{one.address}:" in last
    assert f"from {other.address} (eth0)" in last
    assert "--interface" in last
    assert "--port-range" in last
    assert f"{one.address} (eth0)" in hosting.splitlines()[-1]


def test_two_jobs_share_the_ports_of_a_host(net: Network, fleet: Fleet) -> None:
    one, other, _ = places(net, fleet)
    for run_id in ("job-41", "job-42"):
        for host, chosen in ((one, "yes"), (other, "no")):
            fleet.start(
                host,
                *("--endpoint", f"{one.address},{other.address}", "--run-id", run_id),
                *("--port-range", "29400:29403", "--host-coordinator", chosen),
            )
    fleet.meets_at(one.address, other.address, jobs=2)


def test_a_host_with_only_loopback_reports_it(net: Network, fleet: Fleet) -> None:
    one = net.host("one")
    run("ip", "-n", one.namespace, "link", "set", "eth0", "down")
    fleet.start(one, "--endpoint", f"file://{fleet.tmp_path}/ledger", "--join-timeout", "4s")
    (said,) = fleet.end(3)
    assert "this machine has no address but loopback" in said
    assert "--local-addr" in said.splitlines()[-1]
    assert "which only this machine reaches" in said.splitlines()[-1]


def test_an_address_of_another_host_is_refused(net: Network, fleet: Fleet) -> None:
    one, other = net.host("one"), net.host("other")
    endpoint = ("--endpoint", f"{one.address}:{PORT}")
    fleet.start(one, *endpoint, "--local-addr", other.address)
    fleet.start(one, *endpoint, "--local-addr", "127.0.0.1")
    fleet.start(one, *endpoint, "--local-addr", "localhost", hosts="127.0.0.1 localhost\n")
    foreign, loopback, name = fleet.end(2, 2, 2)
    assert f"local address '{other.address}' is not an address of this machine" in foreign
    for said in (loopback, name):
        assert "reaches only this machine, but other machines are expected" in said
    for said in (foreign, loopback, name):
        assert f"it has {one.address} (eth0)" in said.splitlines()[-1]


def test_the_elected_node_reports_its_address(net: Network, fleet: Fleet) -> None:
    """The node that is elected names its address and its interface at the end."""
    one = net.host("one")
    fleet.start(one, "--endpoint", f"file://{fleet.tmp_path}/ledger", "--join-timeout", "4s")
    (said,) = fleet.end(3)
    assert f"at {one.address}:" in said.splitlines()[-1]
    assert f"{one.address} (eth0): --local-addr gives another address" in said.splitlines()[-1]
