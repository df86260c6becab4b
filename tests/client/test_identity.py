"""A node's default name: unique without anything that containers of one host can share."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from rallypoint.client.identity import node_info
from rallypoint.core.ranks import Candidate, natural_order
from rallypoint.core.values import NAME_LENGTH_MAX
from rallypoint.settings import NodeSettings, parse_endpoint

NAMES = (
    "from rallypoint.client.identity import node_info; from rallypoint import settings;"
    "own = settings.node_settings(endpoint='http://h:1', run_id='r');"
    "print(node_info(own, 1).name, node_info(own, 1).name)"
)


def settings(node_name: str | None = None) -> NodeSettings:
    return NodeSettings(endpoint=parse_endpoint("http://h:1"), run_id="r", node_name=node_name)


def names_of_a_process(*wrapper: str) -> list[str]:
    return subprocess.run(
        [*wrapper, sys.executable, "-c", NAMES], capture_output=True, text=True, check=True
    ).stdout.split()


@pytest.mark.processes
def test_containers_with_one_host_name_and_pid_have_different_names() -> None:
    own_pids = ("unshare", "-Urpf", "--mount-proc")
    if not shutil.which("unshare") or subprocess.run([*own_pids, "true"], check=False).returncode:
        pytest.skip("this machine does not let a process have a pid namespace")
    first, second = names_of_a_process(*own_pids), names_of_a_process(*own_pids)
    pids = {name.rsplit("-", 3)[1] for name in (*first, *second)}
    assert pids == {"1"}
    assert len({*first, *second}) == 4


def test_a_fork_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = node_info(settings(), 1).name.rsplit("-", 2)[1]
    monkeypatch.setattr(os, "getpid", lambda: 2**22 + 1)
    assert node_info(settings(), 1).name.rsplit("-", 2)[1] != before


def test_names_of_nodes_in_one_process_sort_by_start() -> None:
    made = [node_info(settings(), 1) for _ in range(12)]
    candidates = [Candidate(each.name, each.host, 1) for each in reversed(made)]
    assert natural_order(candidates) == [each.name for each in made]


def test_a_name_is_readable_and_has_host_and_pid() -> None:
    info = node_info(settings(), 1)
    assert re.fullmatch(rf"{re.escape(info.host)}-{os.getpid()}-[a-z]{{6}}-\d+", info.name)


def test_a_long_host_name_is_cut_before_the_unique_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "h" * 300)
    one, two = node_info(settings(), 1).name, node_info(settings(), 1).name
    assert one != two
    assert len(one) == NAME_LENGTH_MAX


def test_a_given_name_is_kept() -> None:
    assert node_info(settings(node_name="node-7"), 1).name == "node-7"
