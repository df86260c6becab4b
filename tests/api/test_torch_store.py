"""A World's store as torch's Store: whole processes, with gloo."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.processes import Machine
from tests.ports import free_port

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed"),
]

PROGRAMS = Path(__file__).with_name("torch_programs.py")
WITHIN_S = 200.0
SUM_OF_TWO = "6.0"
"""(1 + 2) by the first all_reduce, and twice that by the second."""


class Programs:
    """Starts programs that meet at one endpoint, and ends what is left of them."""

    def __init__(self) -> None:
        self._endpoint = f"127.0.0.1:{free_port()}"
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, name: str) -> subprocess.Popen[str]:
        node = f"n{len(self._processes)}"
        process = subprocess.Popen(
            [sys.executable, str(PROGRAMS), name, self._endpoint, node],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )
        self._processes.append(process)
        return process

    def clean_up(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


@pytest.fixture
def programs() -> Iterator[Programs]:
    found = Programs()
    yield found
    found.clean_up()


def said(process: subprocess.Popen[str]) -> list[str]:
    """All that it says until it ends well."""
    out, err = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 0, err
    return out.splitlines()


@pytest.mark.verify
def test_a_program_reduces_over_it_and_again_after_a_regroup(programs: Programs) -> None:
    lines = [said(process) for process in [programs.start("regroups") for _ in range(2)]]
    assert sorted(lines) == [
        [f"one {rank} 2 {SUM_OF_TWO}", f"two {rank} 2 True {SUM_OF_TWO}"] for rank in range(2)
    ]


@pytest.mark.verify
def test_workers_of_an_agent_reduce_over_it_and_again_after_a_regroup(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.env["OMP_NUM_THREADS"] = "1"
    try:
        options = ("--nproc-per-node=2", "--max-restarts=1")
        agent = machine.command("run", *options, str(PROGRAMS), "reduces")
        text = agent.ends(0, WITHIN_S)
        assert f"round 1 sum {SUM_OF_TWO}" in text
        assert text.count(f"round 2 sum {SUM_OF_TWO}") == 2
    finally:
        machine.close()


@pytest.mark.verify
def test_a_round_that_ends_while_torch_waits_is_a_clear_error(programs: Programs) -> None:
    processes = [programs.start("waits") for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "met\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outs = [said(process) for process in processes]
    (waited,) = [out for out in outs if out]
    in_init, explained, in_a_thread = waited
    assert in_init.startswith("True round 1 has ended: n")
    assert explained == "explained True"
    assert in_a_thread.startswith("True True round 1 has ended: n")
    assert in_a_thread.endswith("left: it had enough")


def test_the_store_is_torchs_after_torch_is_imported(programs: Programs) -> None:
    assert said(programs.start("kinds")) == [
        "plain True True False",
        "both True True True 0:00:07",
        "b'value' b'value'",
        "2 b'x' True",
        "[b'12', b'1', b'2'] 6 True",
        "True ('nothing',)",
        "True",
        "UsageError",
        "UsageError",
        "UsageError",
        "1 keys for 0 values",
        "0:00:09 True",
        "b'v' b'v'",
    ]
