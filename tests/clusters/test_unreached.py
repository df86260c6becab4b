"""A firewall between the hosts: the agents say what torch would wait for in silence."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.clusters.hosts import Hosts
from tests.clusters.programs import STEADY

pytestmark = [pytest.mark.processes, pytest.mark.verify]
Make = Callable[..., Hosts]


@pytest.mark.parametrize("where", ["n1:29400", "n1", "file"])
def test_a_silent_coordinator_is_told_with_address_interface_and_options(
    make_hosts: Make, where: str
) -> None:
    made = make_hosts("n1", "n2")
    made["n1"].plug.drop_incoming("ct state new")
    made.env["RALLYPOINT_CONNECT_TIMEOUT"] = "8"
    endpoint = f"file://{made.folder}/ledger" if where == "file" else where
    options = ("--endpoint", endpoint, "--port-range", "29400:29401")
    n1 = made.start("n1", *command(made, *options, "--host-coordinator", "yes"))
    n1.line("waiting: ")
    n2 = made.start("n2", *command(made, *options, "--host-coordinator", "no"))
    # By its name if the endpoint has several ports, as the user knows it.
    address = "n1" if where == "n1" else made["n1"].address
    n2.line(
        rf"waiting: .*{address}:2940\d: no answer within [\d.]+ s from \S+ \(eth0\).*"
        "; see --port-range, --interface"
    )
    text = n2.ends(3)
    assert f"{address}:2940" in text
    assert "(--port-range, or that of --endpoint)" in text
    assert "(--interface)" in text


def command(made: Hosts, *options: str) -> list[str]:
    program = made.folder / "steady.py"
    program.write_text(STEADY)
    where = () if "--endpoint" in options else ("--endpoint", "n1:29400")
    run = ("--nnodes", "2", "--run-id", "wall")
    return ["rallypoint", "run", *where, *run, *options, str(program)]


@pytest.mark.parametrize(
    ("options", "is_reached"), [((), False), (("--port-range", "29400:29410"), True)]
)
def test_a_port_of_rank_0_behind_a_firewall(
    make_hosts: Make, options: tuple[str, ...], is_reached: bool
) -> None:
    made = make_hosts("n1", "n2")
    made["n1"].plug.drop_incoming("tcp dport != 29400-29410 ct state new")
    n1 = made.start("n1", *command(made, *options))
    n2 = made.start("n2", *command(made, *options))
    n2.line("works in round 1")
    if is_reached:
        (made.folder / "finish").touch()
        assert "cannot reach" not in n2.ends(0)
        n1.ends(0)
    else:
        n2.line(
            r"error: this node cannot reach rank 0 at n1:\d+ from eth0: no answer within 10 s; "
            "see --port-range, --interface"
        )
