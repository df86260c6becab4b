"""Commands whose standard descriptors are closed, full, or without a reader."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.ports import free_port

from .conftest import COMMAND

pytestmark = pytest.mark.processes

DEADLINE_S = 60.0


def _shell(line: str, directory: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PROGRAM": str(directory / "program.py"), "OUT": str(directory / "out")}
    command = f"{sys.executable} -m rallypoint.cli"
    assert COMMAND[1:] == ("-m", "rallypoint.cli")
    return subprocess.run(
        ["bash", "-c", line.replace("rallypoint", command, 1)],
        env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    program = "import os\nprint('said', flush=True)\nopen(os.environ['OUT'], 'w').write('ran')\n"
    (tmp_path / "program.py").write_text(program)
    return tmp_path


@pytest.mark.parametrize(
    "closed",
    [
        *("<&-", ">&-", "2>&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"),
        *("> /dev/full", "2> /dev/full", "> /dev/full 2>&1", "<&- > /dev/full 2>&-"),
    ],
)
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.verify)])
def test_a_run_works_with_any_open_descriptors(directory: Path, closed: str, workers: int) -> None:
    line = f"rallypoint run --standalone --nproc-per-node {workers} $PROGRAM {closed}"
    done = _shell(line, directory)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (directory / "out").read_text() == "ran"


def test_lost_output_is_reported_once(directory: Path) -> None:
    done = _shell("rallypoint run --standalone $PROGRAM > /dev/full", directory)
    assert done.returncode == 0
    assert done.stderr.count("output cannot be written: No space left on device") == 1


@pytest.mark.parametrize("stdout", ["> /dev/full", ">&-", "2> /dev/full"])
def test_a_coordinator_serves_though_its_endpoint_cannot_be_written(
    directory: Path, stdout: str
) -> None:
    port = free_port()
    command = f"exec {sys.executable} -m rallypoint.cli serve --port {port} {stdout}"
    serving = subprocess.Popen(["bash", "-c", command], stderr=subprocess.PIPE, text=True)
    try:
        _until_it_answers(port)
    finally:
        serving.terminate()
        _, err = serving.communicate(timeout=DEADLINE_S)
    assert serving.returncode == 0
    assert "Traceback" not in err
    is_told = stdout == "> /dev/full"
    assert (f"http://127.0.0.1:{port} (stdout cannot be written: No space" in err) == is_told


def _until_it_answers(port: int) -> None:
    """Once it does, it handles signals, too."""
    ends_s = time.monotonic() + DEADLINE_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10):
                return
        except OSError:
            assert time.monotonic() < ends_s
            time.sleep(0.05)


def test_with_stdout_closed_messages_still_go_to_stderr(directory: Path) -> None:
    """With stdout closed, its number must not become that of a socket or a file."""
    done = _shell("rallypoint run --standalone $PROGRAM >&-", directory)
    assert (done.returncode, done.stdout) == (0, "")
    assert "has succeeded" in done.stderr


@pytest.mark.parametrize("command", ["env", "--version", "--help", "env --json", "run --help"])
def test_a_command_that_cannot_write_its_output_fails(directory: Path, command: str) -> None:
    full = _shell(f"rallypoint {command} > /dev/full", directory)
    assert full.returncode == 1, full.stderr
    notes = [each for each in full.stderr.splitlines() if not each.startswith("rallypoint: ")]
    assert notes == [
        "error: the output cannot be written: No space left on device",
        "hint: is its disk full?",
    ]
    for closed in (">&-", "<&- >&- 2>&-"):
        done = _shell(f"rallypoint {command} {closed}", directory)
        assert done.returncode == 0
        assert all(each.startswith("rallypoint: ") for each in done.stderr.splitlines())


@pytest.mark.parametrize("closed", ["2>&-", "2> /dev/full", "<&- >&- 2>&-"])
def test_an_error_without_a_stderr_is_still_an_error(directory: Path, closed: str) -> None:
    done = _shell(f"rallypoint run --nnodes 0 $PROGRAM {closed}", directory)
    assert (done.returncode, done.stdout) == (2, "")
