"""However `rallypoint bench` ends, none of its processes and folders is left."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rallypoint.bench.processes import PACKAGE_ROOT, tree_of, wait_until
from tests.agent.processes import signal_all

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != "linux", reason="what is left is looked for in /proc"),
]

SCENARIOS = {
    "meet": ("bench.socket_baseline", "bench.fleet", "serve --port 0"),
    "idle --at embedded --processes 2": ("bench.embedded", "bench.fleet"),
    "failover": ("bench.real_nodes", "serve --port 0 --ledger"),
    "recover": ("plain_worker", "logged_agent", "guard_process", "serve --port 0"),
}
# `make test` ends the plainest one and the one with most processes.
ENDED = [
    pytest.param(each, marks=() if each in ("meet", "failover") else pytest.mark.verify)
    for each in SCENARIOS
]
FOREVER = ("--repeats", "1000000", "--seconds", "1000")
ENDED_WITHIN_S = 20.0


class Measuring:
    """A `rallypoint bench` in a group of its own, as a terminal's foreground has it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.mark = f"BENCH_TEST={secrets.token_hex(8)}"
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rallypoint.cli", "bench", *arguments, *FOREVER],
            env={**os.environ, name: value, "TMPDIR": str(folder), "PYTHONPATH": str(PACKAGE_ROOT)},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.seen: set[int] = {self.process.pid}

    def look(self) -> str:
        """The command lines of all its processes that run now."""
        self.seen |= {*tree_of(self.process.pid), *_with(self.mark)}
        return "\n".join(filter(None, (_command(pid) for pid in self.seen)))

    def wait_for(self, *programs: str) -> None:
        wait_until(
            lambda: all(each in self.look() for each in programs),
            f"{programs} to run",
            unless=lambda: "" if self.process.poll() is None else "it has ended",
        )

    def ended(self) -> tuple[int, str]:
        """Its exit code and its messages, once no process and no folder is left."""
        _, said = self.process.communicate(timeout=ENDED_WITHIN_S)
        wait_until(lambda: not self.look(), "the end of all processes", ENDED_WITHIN_S)
        wait_until(lambda: not list(self.folder.iterdir()), "no folder", ENDED_WITHIN_S)
        return self.process.returncode, said

    def kill(self) -> None:
        signal_all(_with(self.mark), signal.SIGKILL)
        self.process.communicate()


def _command(pid: int) -> str:
    """Its command line; "" once it has ended, also for a process that was not reaped yet."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def _with(mark: str) -> set[int]:
    """The processes that have this in their environment."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.add(int(folder.name))
    return found


@pytest.fixture
def measuring(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Measuring]:
    scenario: str = request.param
    found = Measuring(tmp_path, *scenario.split())
    try:
        found.wait_for(*SCENARIOS[scenario])
        yield found
    finally:
        found.kill()


@pytest.mark.parametrize("measuring", ENDED, indirect=True)
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.verify)]
)
def test_a_signal_ends_all_processes(measuring: Measuring, number: signal.Signals) -> None:
    measuring.process.send_signal(number)
    code, said = measuring.ended()
    assert code == 128 + number
    assert "Traceback" not in said
    assert said.splitlines()[-1] == f"rallypoint: {number.name}: all started processes have ended"


@pytest.mark.parametrize("measuring", ENDED, indirect=True)
def test_a_kill_ends_all_processes(measuring: Measuring) -> None:
    measuring.process.kill()
    code, said = measuring.ended()
    assert code == -signal.SIGKILL
    assert "Traceback" not in said


@pytest.mark.parametrize("measuring", ENDED, indirect=True)
def test_only_the_command_gets_ctrl_c(measuring: Measuring) -> None:
    """A terminal sends the signal to the whole foreground group."""
    os.killpg(measuring.process.pid, signal.SIGINT)
    code, said = measuring.ended()
    assert code == 128 + signal.SIGINT
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "rallypoint: SIGINT: all started processes have ended"


@pytest.mark.parametrize("measuring", ["meet"], indirect=True)
def test_a_second_signal_does_not_wait_for_a_process_that_hangs(measuring: Measuring) -> None:
    [serve] = [pid for pid in measuring.seen if "serve --port 0" in _command(pid)]
    os.kill(serve, signal.SIGSTOP)
    measuring.process.terminate()
    wait_until(lambda: "rallypoint.bench." not in measuring.look(), "only the coordinator left")
    measuring.process.terminate()
    code, _ = measuring.ended()
    assert code == -signal.SIGTERM
