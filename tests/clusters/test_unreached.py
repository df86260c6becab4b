"""A firewall between the hosts: the agents say what torch would wait for in silence."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.clusters.hosts import Hosts, need
from tests.clusters.programs import STEADY

pytestmark = [pytest.mark.processes, pytest.mark.verify]
Make = Callable[..., Hosts]

FIREWALL = """
table inet wall {
chain input {
type filter hook input priority 0; policy drop
iif lo accept
ct state established,related accept
tcp dport 29400-29410 accept
}
}
"""


def command(made: Hosts, *options: str) -> list[str]:
    program = made.folder / "steady.py"
    program.write_text(STEADY)
    where = ("--endpoint", "n1:29400", "--nnodes", "2", "--run-id", "wall")
    return ["rallypoint", "run", *where, *options, str(program)]


@pytest.mark.parametrize(
    ("options", "is_reached"), [((), False), (("--port-range", "29400:29410"), True)]
)
def test_a_port_of_rank_0_behind_a_firewall(
    make_hosts: Make, options: tuple[str, ...], is_reached: bool
) -> None:
    need({"nft": "nftables"})
    made = make_hosts("n1", "n2")
    wall = made.folder / "wall.nft"
    wall.write_text(FIREWALL)
    made.run("n1", "nft", "-f", str(wall))
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
