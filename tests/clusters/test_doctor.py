"""`rallypoint doctor` on hosts with real faults of the network, and under launchers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.clusters.hosts import Hosts, need
from tests.clusters.slurm import Slurm
from tests.clusters.test_mpi import mpirun

pytestmark = [pytest.mark.processes, pytest.mark.verify, pytest.mark.timeout(240)]
Make = Callable[..., Hosts]
ALL_PAIRS = ("rallypoint", "doctor", "--all-pairs")


def report(made: Hosts, host: str, *arguments: str, code: int) -> dict[str, dict[str, Any]]:
    """The findings of `doctor --json` on a host."""
    process = made.start(host, "rallypoint", "doctor", *arguments, "--json")
    line = process.line(r'^\{.*"checks".*$').string
    process.ends(code)
    return {each["check"]: each for each in json.loads(line)["checks"]}


def test_a_firewall_on_the_way(make_hosts: Make) -> None:
    made = make_hosts("n1", "n2")
    found = report(made, "n2", "n1:29400", code=0)
    assert found["port"]["facts"]["answers"][0]["kind"] == "refused"
    assert found["addresses"]["facts"]["seen_by_peers"] == f"{made['n2'].address} (eth0)"
    made["n1"].plug.drop_incoming("tcp dport 29400")
    found = report(made, "n2", "n1:29400", code=1)
    assert found["port"]["facts"]["answers"][0]["kind"] == "silent"
    assert "--port-range" in found["port"]["what_to_do"][0]


def test_a_host_without_a_network(make_hosts: Make) -> None:
    made = make_hosts("n1", "n2")
    made.run("n2", "ip", "link", "set", "eth0", "down")
    found = report(made, "n2", f"{made['n1'].address}:29400", code=1)
    assert "only loopback" in " ".join(found["addresses"]["evidence"])
    assert "no route leads" in " ".join(found["addresses"]["evidence"])
    assert found["port"]["facts"]["answers"][0]["kind"] == "unreachable"


def test_a_dead_dns_server(make_hosts: Make) -> None:
    """A look-up takes longer than any check may: it is reported, and stops no other check."""
    made = make_hosts("n1", "n2")
    silent = f"nameserver {made['n1'].address}\noptions timeout:30 attempts:3\n"
    made["n1"].plug.drop_incoming("udp dport 53")
    (made.folder / "n2" / "resolv.conf").write_text(silent)
    found = report(made, "n2", "nowhere.example:29400", code=1)
    assert "has not ended within 15 s" in found["names"]["summary"]
    assert "DNS" in found["names"]["summary"]
    assert "no answer within" in found["port"]["summary"]
    assert found["limits"]["verdict"] != "failed"
    assert found["memory"]["facts"]["memory_bytes"]


def test_a_dead_dns_server_prevents_the_end_of_no_command(make_hosts: Make) -> None:
    made = make_hosts("n1", "n2")
    silent = f"nameserver {made['n1'].address}\noptions timeout:30 attempts:3\n"
    made["n1"].plug.drop_incoming("udp dport 53")
    (made.folder / "n2" / "resolv.conf").write_text(silent)
    where = ("--endpoint", "etcd://nowhere.example:2379/rp")
    commands = [made.start("n2", "rallypoint", each, *where) for each in ("status", "coordinators")]
    for command in commands:
        assert "no endpoint of etcd answered" in command.ends(3)


def tournament(made: Hosts, *options: str, code: int) -> dict[str, Any]:
    """The table of a tournament of all hosts, and each one's exit code."""
    arguments = ("n1:29400", "--run-id", "pairs", "--nnodes", str(len(list(made))), "--json")
    nodes = [made.start(each.name, *ALL_PAIRS, *arguments, *options) for each in made]
    said = [each.ends(code, 120.0) for each in nodes]
    [table] = [line for text in said for line in text.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(table)
    return found


def test_all_pairs_of_hosts(make_hosts: Make) -> None:
    found = tournament(make_hosts("n1", "n2", "n3"), code=0)
    assert found["verdict"] == "ok"
    assert (found["reached"], found["pairs"]) == (6, 6)
    assert sorted(each["shown"] for each in found["nodes"]) == ["n1", "n2", "n3"]


def test_one_direction_between_two_hosts_is_blocked(make_hosts: Make) -> None:
    made = make_hosts("n1", "n2", "n3")
    made["n2"].plug.drop_incoming(f"ip saddr {made['n3'].address} ct state new")
    found = tournament(made, code=1)
    assert (found["reached"], found["pairs"]) == (5, 6)
    [line] = found["lines"]
    assert line.startswith(f"n3 does not reach n2 at {made['n2'].address}:")
    assert [each["problem"] for each in found["failures"]] == ["silent"]


def test_large_packets_are_lost(make_hosts: Make) -> None:
    """As with jumbo frames on one side of a switch that does not pass them."""
    made = make_hosts("n1", "n2", "n3")
    made["n2"].plug.drop_incoming(f"ip saddr {made['n3'].address} meta length > 1000")
    found = tournament(made, code=1)
    assert {each["problem"] for each in found["failures"]} == {"cut"}
    assert "MTU" in found["what_to_do"][0]


def test_a_host_that_does_not_come(make_hosts: Make) -> None:
    made = make_hosts("n1", "n2")
    arguments = ("n1:29400", "--run-id", "pairs", "--nnodes", "3", "--timeout", "8s")
    nodes = [made.start(each.name, *ALL_PAIRS, *arguments) for each in made]
    said = "".join(each.ends(1, 90.0) for each in nodes)
    assert "2 of 3 nodes came: " in said
    assert "on the machines that are missing" in said


def test_under_mpirun(make_hosts: Make) -> None:
    need({"mpirun": "openmpi-bin"})
    made = make_hosts("n1", "n2", "n3")
    job = made.start("n1", *mpirun(made), *ALL_PAIRS)
    assert "ok: 6 of 6 connections between 3 nodes work" in job.ends(0, 120.0)


def test_under_srun(make_slurm: Callable[[int], Slurm]) -> None:
    slurm = make_slurm(3)
    command = f"srun {' '.join(ALL_PAIRS)} 2>&1"
    job = slurm.submit(f"#!/bin/bash\n#SBATCH --nodes=3 --ntasks-per-node=1\n{command}\n")
    assert "ok: 6 of 6 connections between 3 nodes work" in job.ends("COMPLETED", 120)
