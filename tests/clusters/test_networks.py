"""The examples train on networks of every kind, and wherever the nodes meet.

`tests/failover/test_own_addresses` has the same networks with a plain connection between workers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from tests.agent.processes import Process
from tests.clusters.hosts import Hosts
from tests.kinds import LONG
from tests.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.verify, pytest.mark.torch]
Make = Callable[..., Hosts]

EXAMPLES = Path(__file__).parents[2] / "examples"
LOOPBACK = "127.0.0.1 localhost\n"
TRAINED_WITHIN_S = 90.0


def names(made: Hosts, own: str = "") -> None:
    """What each host knows: the first host by a name, and of its own name only `own`."""
    for host in made:
        known = [LOOPBACK, f"{own} {host.name}\n" if own else ""]
        if not (own and host.name == "n1"):
            known.append(f"{made['n1'].address} n1\n")
        (made.folder / host.name / "hosts").write_text("".join(known))


def dead_interface(made: Hosts) -> str:
    for number, host in enumerate(made, 1):
        host.plug.add_dead_interface("eth1", f"10.200.{number}.1", has_default_route=False)
    return "n1:29400"


def dead_default_route(made: Hosts) -> str:
    for number, host in enumerate(made, 1):
        host.plug.add_dead_interface("eth1", f"10.200.{number}.1", has_default_route=True)
    return "n1:29400"


def no_default_route(made: Hosts) -> str:
    return "n1:29400"


def ipv6_only(made: Hosts) -> str:
    for number, host in enumerate(made, 1):
        made.run(host.name, "ip", "address", "flush", "dev", "eth0")
        address = f"fd00:77::{number}/64"
        made.run(host.name, "ip", "address", "add", address, "dev", "eth0", "nodad")
        (made.folder / host.name / "hosts").write_text("::1 localhost\n")
    return "[fd00:77::1]:29400"


def no_names(made: Hosts) -> str:
    for host in made:
        (made.folder / host.name / "hosts").write_text(LOOPBACK)
    return f"{made['n1'].address}:29400"


def own_name_is_loopback(made: Hosts) -> str:
    names(made, "127.0.1.1")
    return "n1:29400"


NETWORKS = (
    dead_interface,
    dead_default_route,
    no_default_route,
    ipv6_only,
    no_names,
    own_name_is_loopback,
)


PROGRAMS = {
    "ddp": ("train_ddp.py", "--epochs", "2", "--checkpoint"),
    "digits": ("train_digits.py", "--epochs", "2", "--checkpoints"),
}


def training(made: Hosts, where: str, at_host: str, program: str, *options: str) -> list[Process]:
    """The agents of one job. `where`: whether they meet at the first host, or in a folder."""
    endpoint = at_host if where == "host" else f"file://{made.folder}/ledger"
    name, *arguments = PROGRAMS[program]
    command = ["rallypoint", "run", "--endpoint", endpoint, "--nnodes", "2", "--run-id", program]
    saved = str(made.folder / "saved")
    return [
        made.start(host.name, *command, *options, str(EXAMPLES / name), *arguments, saved)
        for host in made
    ]


PLACES = ("host", "file")
CASES = (
    list(product(NETWORKS, PLACES, PROGRAMS))
    if LONG
    # One program at one of the two places; that of DDP takes ten seconds.
    else [
        (network, PLACES[number % 2], "digits" if number % 3 else "ddp")
        for number, network in enumerate(NETWORKS)
    ]
)


@pytest.mark.parametrize(("network", "where", "program"), CASES)
def test_the_examples_train(
    make_hosts: Make, network: Callable[[Hosts], str], where: str, program: str
) -> None:
    pytest.importorskip("torch")
    made = make_hosts("n1", "n2")
    agents = training(made, where, network(made), program)
    said = [agent.ends(0, TRAINED_WITHIN_S) for agent in agents]
    assert "accuracy" in "".join(said)


def behind_walls(made: Hosts) -> tuple[str, ...]:
    """Let nothing through but some ports. The options that go with it."""
    for host in made:
        host.plug.drop_incoming("tcp dport != 29400-29450 ct state new")
    return "--port-range", "29400:29410"


@pytest.mark.parametrize("where", ["host", "file"])
def test_a_firewall_lets_the_ports_of_the_example_through(make_hosts: Make, where: str) -> None:
    """It needs rank 0's port and the coordinator's, and no others."""
    made = make_hosts("n1", "n2")
    options = behind_walls(made)
    agents = training(made, where, "n1", "digits", *options)
    said = "".join(agent.ends(0, TRAINED_WITHIN_S) for agent in agents)
    assert "accuracy" in said


@pytest.mark.parametrize("where", ["host", "file"])
@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "open"])
def test_ports_that_the_kernel_chooses_are_open_or_said_not_to_be(
    make_hosts: Make, where: str, is_open: bool
) -> None:
    """As gloo listens on them. It would wait for half an hour in silence."""
    pytest.importorskip("torch")
    made = make_hosts("n1", "n2")
    options = behind_walls(made)
    if is_open:
        for host in made:
            kernels = "/proc/sys/net/ipv4/ip_local_port_range"
            made.run(host.name, "sh", "-c", f"echo 29411 29450 > {kernels}")
    agents = training(made, where, "n1", "ddp", *options)
    if is_open:
        said = "".join(agent.ends(0, TRAINED_WITHIN_S) for agent in agents)
        assert "accuracy" in said
        assert "warning" not in said
        return
    [found] = said_by_one(
        agents,
        r"warning: this node reaches rank 0 at \S+:294\d\d, but not at \S+:\d+ from eth0: "
        "no answer within 10 s",
    )
    assert "--interface" in found
    assert "--port-range" in found


def said_by_one(agents: list[Process], pattern: str) -> list[str]:
    """The lines with this pattern, once there is one."""

    def lines() -> list[str]:
        every = "".join(agent.text for agent in agents).splitlines()
        return [line for line in every if re.search(pattern, line)]

    return wait_until(lines, within_s=30.0)
