"""Each test is of one kind, and `make test` and `make verify` run all of them."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

from tests import kinds

ROOT = Path(__file__).parents[1]
IMPURE = """
import os, socket, subprocess, sys, threading
import pytest

def test_nothing():
    one, other = socket.socketpair()
    one.close(), other.close()

def test_binds():
    socket.create_server(("127.0.0.1", 0)).close()

def test_connects():
    with socket.socket() as one:
        one.connect_ex(("127.0.0.1", 1))

def test_connects_in_a_thread():
    thread = threading.Thread(target=test_connects)
    thread.start()
    thread.join()

def test_starts():
    subprocess.run([sys.executable, "-c", ""], check=True)

def test_forks():
    os.waitpid(os.fork() or os._exit(0), 0)

def test_loads():
    import torch

@pytest.fixture
def started():
    test_starts()

def test_with_a_fixture_that_starts(started):
    pass

@pytest.mark.processes
def test_marked():
    test_starts()
"""


@pytest.mark.processes
def test_a_pure_test_that_is_not_pure_fails(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(IMPURE)
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "conftest.py").write_text(
        "from tests.kinds import Purity\n"
        "def pytest_configure(config):\n"
        "    config.addinivalue_line('markers', 'processes: as in pyproject.toml')\n"
        "    config.pluginmanager.register(Purity())\n"
    )
    command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "test_it.py")
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))},
        capture_output=True,
        text=True,
        check=False,
    )
    ended = re.findall(r"^([A-Z]+) test_it\.py::(\w+)", done.stdout, re.MULTILINE)
    assert {test: outcome for outcome, test in ended} == {
        "test_nothing": "PASSED",
        "test_binds": "FAILED",
        "test_connects": "FAILED",
        "test_connects_in_a_thread": "FAILED",
        "test_starts": "FAILED",
        "test_forks": "FAILED",
        "test_loads": "FAILED",
        "test_with_a_fixture_that_starts": "ERROR",
        "test_marked": "PASSED",
    }
    assert "Add a marker: sockets (socket.bind" in done.stdout


def selects(expression: str, markers: set[str]) -> bool:
    def has(name: str, /, **_: object) -> bool:
        return name in markers

    return Expression.compile(expression).evaluate(has)


def test_every_test_runs_in_either_make_test_or_make_verify() -> None:
    for count in range(len(kinds.NOT_PURE) + 1):
        for each in itertools.combinations(kinds.NOT_PURE, count):
            markers = set(each)
            assert selects(kinds.TEST, markers) != selects(kinds.VERIFY, markers)
            assert selects(kinds.UNIT, markers) == (not markers)


def recipe(target: str) -> str:
    """The commands of a target of the Makefile."""
    found = re.search(
        rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert found is not None
    return found[1]


@pytest.mark.parametrize(
    ("target", "expression"),
    [("unit", kinds.UNIT), ("test", kinds.TEST), ("verify", kinds.VERIFY)],
)
def test_the_makefile_leaves_nothing_else_out(target: str, expression: str) -> None:
    command = recipe(target)
    assert re.findall(r' -m "([^"]*)"', command) == [expression]
    assert not re.search(r"--ignore|--deselect| -k |tests/", command)


def test_the_configuration_leaves_nothing_out() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert options["testpaths"] == ["tests"]
    assert "python_files" not in options
    assert not any(re.match(r"-m|-k|--ignore|--deselect", each) for each in options["addopts"])


def test_ci_runs_both() -> None:
    assert "make test verify" in (ROOT / ".ci" / "run").read_text()


def test_seeds_are_for_make_test_first() -> None:
    later = [bool(each.marks) for each in kinds.seeds(2, verify=5, long=9)]
    assert later[:5] == [False, False, True, True, True]
    assert len(later) == (9 if kinds.LONG else 5)
