from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rallypoint.launch import guard_process
from rallypoint.launch.guard import Guard
from tests.agent.processes import SRC, alive, gone
from tests.launch.child_workers import until
from tests.waiting import DEADLINE_S

pytestmark = pytest.mark.processes

SLEEPER = "import os, time; print('ready', flush=True); time.sleep(600)"
PROCESSES = 2 * (1 + 3)  # of agent_like.py: workers with three children each


@contextlib.contextmanager
def sleeper(code: str = SLEEPER) -> Iterator[subprocess.Popen[bytes]]:
    """The leader of a session of its own, ready, and gone afterwards."""
    arguments = [sys.executable, "-I", "-S", "-c", code]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            guard_process.kill_groups({process.pid: 0}, DEADLINE_S)


@contextlib.contextmanager
def agent() -> Iterator[tuple[subprocess.Popen[bytes], dict[str, list[int]]]]:
    """A running agent_like.py, and the pids that it and its workers printed, by their word."""
    arguments = [sys.executable, str(Path(__file__).with_name("agent_like.py"))]
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, env=environment, start_new_session=True
    ) as process:
        pids: dict[str, list[int]] = {"pid": [], "ready": [], "agent": [], "guard": []}
        try:
            _read_until_ready(process, pids)
            yield process, pids
        finally:
            process.kill()
            guard_process.kill_groups(dict.fromkeys(pids["pid"], 0), DEADLINE_S)


def _read_until_ready(process: subprocess.Popen[bytes], pids: dict[str, list[int]]) -> None:
    assert process.stdout is not None
    give_up_at = time.monotonic() + DEADLINE_S
    text = b""
    # Children and workers share a pipe, and the agent's words take another way: any order may come.
    while not (pids["agent"] and len(pids["ready"]) == 2 and len(pids["pid"]) == PROCESSES):
        readable, _, _ = select.select([process.stdout], [], [], give_up_at - time.monotonic())
        assert readable, f"the agent is not ready, it printed {pids}"
        *lines, text = (text + os.read(process.stdout.fileno(), 4096)).split(b"\n")
        for line in lines:
            word, *number = line.split()
            pids[word.decode()].append(int(number[0]) if number else 0)


def test_no_process_of_the_workers_survives_kill_9_of_the_agent() -> None:
    with agent() as (process, pids):
        workers = pids["pid"]
        assert all(alive(pid) for pid in workers)
        process.kill()
        began_s = time.monotonic()
        gone([*workers, *pids["guard"]])
        took_s = time.monotonic() - began_s
    assert took_s < guard_process.KILL_WITHIN_S - 2


def test_the_guard_is_out_of_reach_of_signals_to_the_agents_group() -> None:
    with agent() as (process, pids):
        (guard_pid,) = pids["guard"]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(guard_pid, number)
        os.killpg(process.pid, signal.SIGKILL)  # its session too is its own
        began_s = time.monotonic()
        gone([*pids["pid"], guard_pid])
        took_s = time.monotonic() - began_s
    assert took_s < guard_process.KILL_WITHIN_S - 2


def test_signals_cannot_end_a_guard_that_has_just_been_started() -> None:
    async def scenario() -> None:
        guard = Guard()
        guard.start()
        assert guard.pid is not None
        os.kill(guard.pid, signal.SIGTERM)
        with sleeper() as process:
            guard.add(process.pid)
            await guard.close(DEADLINE_S)
            assert process.wait(DEADLINE_S) == -signal.SIGKILL

    asyncio.run(scenario())


def test_close_kills_registered_groups_and_not_removed_ones() -> None:
    async def scenario() -> None:
        guard = Guard()
        guard.start()
        pid = guard.pid
        with sleeper() as kept, sleeper() as removed:
            guard.add(kept.pid)
            guard.add(removed.pid)
            guard.remove(removed.pid)
            guard.remove(12345678)  # never added
            await guard.close(DEADLINE_S)
            assert kept.wait(DEADLINE_S) == -signal.SIGKILL
            assert removed.poll() is None
            assert pid is not None
            gone([pid])
        await guard.close()  # again: nothing happens
        assert guard.pid is None

    asyncio.run(scenario())


def test_a_guard_that_dies_is_replaced_and_the_new_one_knows_the_groups() -> None:
    async def scenario() -> None:
        lost: list[int] = []
        guard = Guard(on_lost=lost.append)
        guard.start()
        first = guard.pid
        assert first is not None
        with sleeper() as process, sleeper() as later:
            guard.add(process.pid)
            os.kill(first, signal.SIGKILL)
            async with asyncio.timeout(DEADLINE_S):
                while guard.pid in (None, first):
                    guard.add(later.pid)  # also while there is none, and again
                    await asyncio.sleep(0.001)
            assert lost == [first]
            await guard.close(DEADLINE_S)
            assert process.wait(DEADLINE_S) == -signal.SIGKILL
            assert later.wait(DEADLINE_S) == -signal.SIGKILL

    asyncio.run(scenario())


@pytest.mark.parametrize("is_told_before", [True, False])
def test_the_agents_directory_is_removed_with_it(tmp_path: Path, is_told_before: bool) -> None:
    async def scenario() -> None:
        scratch = tmp_path / "with a space"
        scratch.mkdir()
        (scratch / "error-1-0.json").write_text("{}")
        guard = Guard()
        if is_told_before:
            guard.remove_in_the_end(scratch)
        guard.start()
        if not is_told_before:
            guard.remove_in_the_end(scratch)
        await guard.close(DEADLINE_S)
        assert not scratch.exists()

    asyncio.run(scenario())


@pytest.mark.parametrize("all_sent", [True, False])
def test_more_lines_than_the_pipe_holds_do_not_block(all_sent: bool) -> None:
    async def scenario() -> None:
        guard = Guard()
        guard.start()
        assert guard.pid is not None
        os.kill(guard.pid, signal.SIGSTOP)  # it reads nothing now
        start = time.monotonic()
        for number in range(20_000):
            guard.add(4_194_305 + number)  # above the kernel's highest pid: no process
        with sleeper() as process:
            guard.add(process.pid)
            assert time.monotonic() - start < 60
            os.kill(guard.pid, signal.SIGCONT)
            if all_sent:
                await until(lambda: guard._process is not None and not guard._process.unsent)
            await guard.close(DEADLINE_S)
            assert process.wait(DEADLINE_S) == -signal.SIGKILL

    asyncio.run(scenario())


def test_a_guard_that_reads_nothing_delays_no_connection_and_keeps_none_too_long() -> None:
    async def scenario() -> None:
        guard = Guard()
        guard.start()
        pid = guard.pid
        assert pid is not None
        await until(lambda: bool(_sockets_of(pid)))
        os.kill(pid, signal.SIGSTOP)
        one, other = socket.socketpair()
        with one, other:
            for _ in range(3_000):  # more than the kernel lets be on their way
                guard.keep(one)()
            kept = guard.keep(other)
            os.kill(pid, signal.SIGCONT)
            await until(lambda: guard._process is not None and not guard._process.unsent)
            await until(lambda: set(_sockets_of(pid)) >= {_name(other)})
            await until(lambda: len(_sockets_of(pid)) == 2)
            kept()
            await until(lambda: len(_sockets_of(pid)) == 1)
            await guard.close(DEADLINE_S)
            assert guard.keep(one)() is None  # nothing to do any more

    asyncio.run(scenario())


def _sockets_of(pid: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(entry))  # noqa: PTH115
    return [each for each in found if each.startswith("socket:")]


def _name(sock: socket.socket) -> str:
    return os.readlink(f"/proc/self/fd/{sock.fileno()}")  # noqa: PTH115


def test_a_copy_belongs_to_its_line_however_the_lines_arrive() -> None:
    one, other = socket.socketpair()
    kept = guard_process.Kept()
    with one, other:
        copies = [os.dup(each.fileno()) for each in (one, other)]
        for lost in (b"keep 1\n", b"ke", b"ep 4\n"):  # the guard had too many files
            kept.read(lost, [])
        kept.read(b"add 7 8\nk", copies[:1])
        kept.read(b"eep", [])
        kept.read(b" 2\ndrop 1\nkeep 3\n", copies[1:])
        assert [(n, _name(each)) for n, each in kept.connections.items()] == [
            (2, _name(one)),
            (3, _name(other)),
        ]
        assert kept.groups == {7: 8}
        kept.read(b"drop 2\ndrop 3\n", [])
        assert kept.connections == {}
        for copy in copies:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(copy)


def test_no_reset_follows_the_fin_of_a_connection_with_unread_data() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(b"unread" * 1_000)
        guard_process.send_fins([ours])
        assert theirs.recv(1) == b""
        theirs.sendall(b"on its way")
        began_s = time.monotonic()
        guard_process.read_to_the_end([ours], 0.2)  # the peer does not end it
        assert time.monotonic() - began_s >= 0.2
        theirs.sendall(b"last words")
        theirs.shutdown(socket.SHUT_WR)
        guard_process.read_to_the_end([ours], DEADLINE_S)
        ours.close()
        assert theirs.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        guard_process.send_fins([theirs])  # its end is here already: no error


def test_a_group_registered_after_the_close_is_killed() -> None:
    """As of a start that hung, and that the agent waited for no longer."""

    async def scenario() -> None:
        guard = Guard()
        guard.start()
        await guard.close(DEADLINE_S)
        with sleeper() as process:
            await asyncio.to_thread(guard.add, process.pid)
            assert process.wait(DEADLINE_S) == -signal.SIGKILL

    asyncio.run(scenario())


def test_groups_of_several_threads_are_all_killed() -> None:
    """The pipe is full, so that their lines are mixed with what the loop sends later."""

    async def scenario() -> None:
        guard = Guard()
        guard.start()
        assert guard.pid is not None
        os.kill(guard.pid, signal.SIGSTOP)

        def add(process: subprocess.Popen[bytes], start: int) -> None:
            for number in range(start, start + 3_000):
                guard.add(4_194_305 + number)  # above the kernel's highest pid: no process
            guard.add(process.pid)

        with sleeper() as one, sleeper() as other:
            calls = [asyncio.to_thread(add, one, 0), asyncio.to_thread(add, other, 3_000)]
            await asyncio.gather(*calls)
            os.kill(guard.pid, signal.SIGCONT)
            await until(lambda: guard._process is not None and not guard._process.unsent)
            await guard.close(DEADLINE_S)
            ends = {process.wait(DEADLINE_S) for process in (one, other)}
        assert ends == {-signal.SIGKILL}

    asyncio.run(scenario())


def test_a_pid_reused_by_another_process_is_left_alone() -> None:
    with sleeper() as process:
        leader = guard_process.read_process(process.pid)
        assert leader is not None
        guard_process.kill_groups({process.pid: leader.start_time + 1}, 0.2)
        assert process.poll() is None
        guard_process.kill_groups({process.pid: leader.start_time}, DEADLINE_S)
        assert process.wait(DEADLINE_S) == -signal.SIGKILL


def test_members_are_killed_when_their_leader_is_gone() -> None:
    code = """
import os, subprocess, sys
kept = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"],
                        stdout=subprocess.DEVNULL, process_group=0)
print("ready", flush=True)
print(kept.pid, flush=True)
"""
    with sleeper(code) as process:
        assert process.stdout is not None
        member = int(process.stdout.readline())
        leader = guard_process.read_process(process.pid)
        start_time = leader.start_time if leader is not None else 1
        process.wait(DEADLINE_S)
        assert alive(member)
        guard_process.kill_groups({process.pid: start_time}, DEADLINE_S)
        assert not alive(member)


def test_a_process_name_with_parentheses_and_spaces_is_read_right() -> None:
    code = """
import ctypes, time
ctypes.CDLL(None).prctl(15, b") R 1 (", 0, 0, 0)
print('ready', flush=True); time.sleep(600)
"""
    arguments = [sys.executable, "-c", code]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        read = guard_process.read_process(process.pid)
        process.kill()
    assert read is not None
    assert (read.parent, read.session) == (os.getpid(), process.pid)
