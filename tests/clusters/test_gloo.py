"""gloo between hosts whose own names mean loopback, as on Debian, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.clusters.hosts import Hosts

pytestmark = [pytest.mark.processes, pytest.mark.verify, pytest.mark.torch]
Make = Callable[..., Hosts]

SUM = """
import datetime, os
import torch, torch.distributed as dist
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
number = torch.ones(1)
dist.all_reduce(number)
print("the sum is", int(number), "by", os.environ["GLOO_SOCKET_IFNAME"], flush=True)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("own_name", ["127.0.1.1", None], ids=["loopback", "unknown"])
def test_workers_meet_whatever_the_own_name_means(make_hosts: Make, own_name: str | None) -> None:
    pytest.importorskip("torch")
    made = make_hosts("n1", "n2")
    program = made.folder / "sum.py"
    program.write_text(SUM)
    for host in made:
        known = [f"127.0.0.1 localhost\n{made['n1'].address} first\n"]
        if own_name is not None:
            known.append(f"{own_name} {host.name}\n")
        # In place: each host has this very file as its /etc/hosts.
        (made.folder / host.name / "hosts").write_text("".join(known))
    command = ["rallypoint", "run", "--endpoint", "first:29400", "--nnodes", "2"]
    agents = [made.start(host.name, *command, "--run-id", "sum", str(program)) for host in made]
    for agent in agents:
        agent.line("the sum is 2 by eth0", 90)
        agent.ends(0)
