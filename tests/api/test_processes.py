"""Whole programs: forks, signals, and how a process ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.processes import signal_all
from tests.ports import free_port

pytestmark = pytest.mark.processes
PROGRAMS = Path(__file__).with_name("programs.py")


class Programs:
    """Starts programs, and ends what is left of them."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []
        self.children: list[int] = []

    def start(self, name: str, endpoint: str = "none", *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-X", "dev", "-W", "error", str(PROGRAMS), name, endpoint, *more]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.processes.append(process)
        return process

    def clean_up(self) -> None:
        signal_all(self.children, signal.SIGKILL)
        for process in self.processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


@pytest.fixture
def programs() -> Iterator[Programs]:
    found = Programs()
    yield found
    found.clean_up()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def lines(process: subprocess.Popen[str], exit_code: int = 0) -> list[str]:
    """All that it says until it ends, without a complaint."""
    try:
        out, err = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # it tells what each thread was doing
        pytest.fail(f"it did not end:\n{process.communicate()[1]}")
    # Debug mode tells of slow callbacks, which a busy machine has.
    complaints = [each for each in err.splitlines() if not each.startswith("Executing <")]
    assert (process.returncode, complaints) == (exit_code, [])
    return out.splitlines()


def test_a_fork_cannot_use_the_run_and_hides_no_death(programs, coordinator):
    peer = programs.start("peer", coordinator, "a")
    forking = programs.start("forks", coordinator, "b")
    assert line(forking) == "joined"
    assert line(peer) == "met 2"
    assert [line(forking) for _ in range(5)] == ["refused True True"] * 5
    assert line(forking) == "known 1 None None"
    programs.children.append(int(line(forking).removeprefix("child ")))
    began_s = time.monotonic()
    forking.kill()
    # A coordinator that stalled just then gives the grace (5 s). Silence would take 30 s.
    assert line(peer).startswith(
        ("node_lost b its process ended", "node_lost b its connection closed")
    )
    assert time.monotonic() - began_s < 25.0
    assert lines(peer) == []


def test_a_fork_has_no_copy_of_the_connection(programs, coordinator):
    peer = programs.start("peer", coordinator, "a")
    forking = programs.start("forks", coordinator, "b")
    for _ in range(7):
        line(forking)
    child = int(line(forking).removeprefix("child "))
    programs.children.append(child)
    assert line(peer) == "met 2"
    port = int(coordinator.rpartition(":")[2])
    [connection] = connections_to(port, forking.pid)
    assert connection not in sockets_of(child)


@pytest.mark.verify
@pytest.mark.parametrize("ends", ["killed", "frozen"])
def test_silence_counts_even_if_a_child_holds_the_connection(
    programs, coordinator, monkeypatch, ends
):
    """While any process holds the socket, no FIN is sent; a stopped process sends none either."""
    monkeypatch.setenv("RALLYPOINT_LOST_AFTER", "6")
    peer = programs.start("peer", coordinator, "a")
    forking = programs.start("forks_unseen", coordinator, "b")
    assert line(forking) == "joined"
    child = int(line(forking).removeprefix("child "))
    programs.children.append(child)
    assert line(peer) == "met 2"
    port = int(coordinator.rpartition(":")[2])
    [connection] = connections_to(port, forking.pid)
    assert connection in sockets_of(child)
    forking.send_signal(signal.SIGKILL if ends == "killed" else signal.SIGSTOP)
    assert line(peer) == "node_lost b it fell silent and did not answer"
    assert lines(peer) == []


def test_a_worker_of_an_old_round_that_writes_late_is_refused(
    programs, coordinator, monkeypatch, tmp_path
):
    """R13: its process was stopped while it wrote, and the others went on without it."""
    monkeypatch.setenv("RALLYPOINT_LOST_AFTER", "3")
    path = tmp_path / "model.pt"
    late = programs.start("writes_late", coordinator, "a", str(path))
    peer = programs.start("writes_next", coordinator, "b", str(path))
    assert line(late) == line(peer) == "met 2 round 1 of term 1"
    assert line(late) == "half"
    late.send_signal(signal.SIGSTOP)
    assert line(peer) == "met 1 round 2 of term 1"
    assert line(peer) == "written"
    late.send_signal(signal.SIGCONT)
    late.stdin.write("go on\n")
    late.stdin.flush()
    assert line(late) == "refused: round 1 of term 1 by round 2 of term 1"
    assert path.read_bytes() == b"by the next round"
    assert lines(peer) == []
    assert late.wait(30) == 0


def connections_to(port: int, pid: int) -> set[str]:
    """The connections of a process to a port of this machine, by the kernel's number of each."""
    there = set()
    for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = row.split()
        if int(fields[2].rpartition(":")[2], 16) == port:
            there.add(fields[9])
    return there & sockets_of(pid)


def sockets_of(pid: int) -> set[str]:
    """All sockets that a process holds."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(entry.readlink())
            if target.startswith("socket:"):
                found.add(target.removeprefix("socket:[").removesuffix("]"))
    return found


@pytest.mark.verify
def test_a_fork_of_the_host_hides_no_death(programs):
    endpoint = f"127.0.0.1:{free_port()}"
    forking = programs.start("forks", endpoint, "a")
    assert line(forking) == "joined"
    peer = programs.start("peer", endpoint, "b")
    assert line(peer) == "met 2"
    for _ in range(6):
        line(forking)
    programs.children.append(int(line(forking).removeprefix("child ")))
    forking.kill()
    forking.wait()
    peer.kill()  # Else it may come to the next coordinator, which would wait for it.
    peer.wait()
    # The port is free: the next one to bind it is the coordinator.
    other = programs.start("ends_alone", endpoint, "c")
    assert lines(other) == ["joined"]


def test_children_may_end_within_the_parents_blocks(programs, coordinator):
    process = programs.start("fork_exits", coordinator)
    assert lines(process) == ["exit 7", "return 0", "error 1", "still None 1"]


@pytest.mark.parametrize("endpoint", ["none", "host"])
def test_a_pool_of_forked_processes_works(programs, endpoint):
    where = f"127.0.0.1:{free_port()}" if endpoint == "host" else "none"
    assert lines(programs.start("pool", where)) == ["0 2 4 6 8", "1 None"]


def test_a_forked_child_may_join_a_run_of_its_own(programs, coordinator):
    assert lines(programs.start("child_joins", coordinator)) == ["child 1 1", "exit 0"]


def test_ctrl_c_ends_only_the_wait(programs, coordinator):
    peer = programs.start("peer", coordinator, "a")
    waiting = programs.start("waits", coordinator, "b")
    assert line(waiting) == "waiting"
    waiting.send_signal(signal.SIGINT)
    assert lines(waiting) == ["interrupted", "1"]
    assert lines(peer) == ["met 2", "node_left b interrupted"]


def test_a_program_that_just_ends_says_goodbye(programs, coordinator):
    peer = programs.start("peer", coordinator, "a")
    ending = programs.start("ends", coordinator, "b")
    assert lines(ending) == ["joined"]
    assert lines(peer) == ["met 2", "node_left b the program has left the run"]


def test_a_host_that_just_ends_stays_until_the_others_have_ended(programs):
    endpoint = f"127.0.0.1:{free_port()}"
    ending = programs.start("ends", endpoint, "a")
    assert line(ending) == "joined"
    peer = programs.start("peer", endpoint, "b")
    assert line(peer) == "met 2"
    assert line(peer) == "node_left a the program has left the run"
    assert ending.poll() is None
    assert lines(peer) == []
    out, _ = ending.communicate(timeout=60)
    assert (ending.returncode, out) == (0, "")


def test_rallypoint_is_not_called_from_its_own_callbacks(programs):
    assert lines(programs.start("callbacks")) == ["refused True"]
