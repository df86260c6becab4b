from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rallypoint.errors import LogDirectoryError
from rallypoint.launch.logs import (
    LogPump,
    check_log_dir,
    read_what_is_there,
    round_log_dir,
)
from rallypoint.launch.output_streams import Stream
from rallypoint.launch.worker_processes import WorkerGroup
from tests.launch.child_workers import Exits, spec, until
from tests.waiting import DEADLINE_S, wait_until


def _nothing(local_rank: int, stream: int) -> bool:
    return False


def _rank(local_rank: int, rank: int) -> str:
    return str(rank)


class Terminal:
    """Two pipes in the place of the agent's stdout and stderr."""

    def __init__(self) -> None:
        self.out_read, self.out = os.pipe()
        self.err_read, self.err = os.pipe()

    def pump(self, **more: object) -> LogPump:
        return LogPump(stdout_fd=self.out, stderr_fd=self.err, **more)  # type: ignore[arg-type]

    def read(self) -> tuple[bytes, bytes]:
        """What has been written so far."""
        return _read_all(self.out_read), _read_all(self.err_read)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self.out_read, self.out, self.err_read, self.err):
            try:
                os.close(fd)
            except OSError:
                assert fd == self.out_read, "only this one is closed by a test"


class FakeWorker:
    """The write ends of a worker's pipes."""

    def __init__(self, pump: LogPump, local_rank: int = 0, rank: int = 0) -> None:
        out_read, self.out = os.pipe()
        err_read, self.err = os.pipe()
        pump.attach(local_rank, rank, out_read, err_read)

    def prints(self, out: bytes = b"", err: bytes = b"") -> None:
        os.write(self.out, out)
        os.write(self.err, err)

    def ends(self) -> None:
        os.close(self.out)
        os.close(self.err)


def _read_all(fd: int) -> bytes:
    data = b""
    while select.select([fd], [], [], 0)[0]:
        data += os.read(fd, 65536)
    return data


def test_each_stream_goes_to_its_own_with_the_prefix() -> None:
    async def scenario() -> None:
        pump = terminal.pump(prefix=lambda _, rank: f"[node:{rank}] ")
        pump.begin_round(1)
        one, two = FakeWorker(pump, 0, 4), FakeWorker(pump, 1, 5)
        one.prints(b"out one\n", b"err one\n")
        two.prints(b"out two\n", b"err two\nhalf")
        assert await pump.drain(DEADLINE_S)
        out, err = terminal.read()
        assert sorted(out.splitlines()) == [b"[node:4] out one", b"[node:5] out two"]
        assert set(err.splitlines()) == {
            b"[node:4] err one",
            b"[node:5] err two",
            b"[node:5] half",
        }
        assert pump.last_lines(0) == ("err one",)
        assert pump.last_lines(1) == ("err two", "half")
        one.ends()
        two.ends()
        assert await pump.close(DEADLINE_S)

    with Terminal() as terminal:
        asyncio.run(scenario())


def test_files_have_the_bytes_unchanged(tmp_path: Path) -> None:
    async def scenario() -> None:
        pump = terminal.pump(log_dir=tmp_path, run_id="job", prefix=_rank, shows=_nothing)
        for number in (3, 4):
            pump.begin_round(number)
            worker = FakeWorker(pump, 0, 7)
            worker.prints(b"out %d\xff" % number, b"err %d\n" % number)
            worker.ends()
            assert await pump.drain(DEADLINE_S)
        assert await pump.close(DEADLINE_S)
        assert terminal.read() == (b"", b"")

    with Terminal() as terminal:
        asyncio.run(scenario())
    for number in (3, 4):
        directory = tmp_path / "job" / f"round-{number}"
        assert (directory / "rank-7.out").read_bytes() == b"out %d\xff" % number
        assert (directory / "rank-7.err").read_bytes() == b"err %d\n" % number


def test_a_new_round_begins_without_last_lines() -> None:
    async def scenario() -> None:
        pump = terminal.pump()
        worker = FakeWorker(pump)
        worker.prints(err=b"old\n")
        worker.ends()
        assert await pump.drain(DEADLINE_S)
        assert pump.last_lines(0) == ("old",)
        pump.begin_round(2)
        assert pump.last_lines(0) == ()
        await pump.close(DEADLINE_S)

    with Terminal() as terminal:
        asyncio.run(scenario())


def test_drain_does_not_wait_for_a_pipe_that_stays_open() -> None:
    async def scenario() -> None:
        pump = terminal.pump()
        kept, other = FakeWorker(pump, 0), FakeWorker(pump, 1)
        kept.prints(b"x" * 60_000 + b"\n", b"last\n")
        start = time.monotonic()
        assert await pump.drain(60, local_rank=0)
        assert await pump.drain(60)
        assert await pump.drain(60, local_rank=9)  # nobody
        assert time.monotonic() - start < 30
        assert pump.last_lines(0) == ("last",)
        assert pump.last_lines(9) == ()
        kept.ends()
        other.ends()
        await pump.close(DEADLINE_S)

    with Terminal() as terminal:
        asyncio.run(scenario())


def test_drain_ends_though_a_descendant_never_stops_writing() -> None:
    class Endless(Stream):
        reads = 0

        def read(self) -> int:
            self.reads += 1
            assert self.reads < 10, "it goes on for as long as there is something"
            os.write(write_end, b"x" * 100)
            return len(os.read(self.fd, 60))

    read_end, write_end = os.pipe()
    os.write(write_end, b"x" * 100)
    stream = Endless(read_end, None, None, b"", None, lambda fd: None)
    read_what_is_there(stream)
    assert stream.reads == 2  # what was there when it began
    stream.close()
    os.close(write_end)


def test_a_console_that_hangs_delays_only_the_output() -> None:
    async def scenario() -> None:
        pump = terminal.pump()
        noisy, failing = FakeWorker(pump, 0), FakeWorker(pump, 1)
        failing.prints(err=b"the error\n")
        await until(lambda: pump.last_lines(1) != ())
        os.set_blocking(noisy.out, False)
        room = fcntl.fcntl(terminal.out, fcntl.F_GETPIPE_SZ)
        written = 0

        def is_more_than_the_terminal_takes() -> bool:
            nonlocal written
            with contextlib.suppress(BlockingIOError):
                while True:
                    written += os.write(noisy.out, b"y" * 999 + b"\n")
            return written > room

        # The terminal is not read, so the rest is in the worker's pipe or in the pump's hands. (A
        # terminal that takes no more is no sign: its last page may have had room for all.)
        await until(is_more_than_the_terminal_takes)
        start = time.monotonic()
        assert await pump.drain(0.1) is False
        for _ in range(20_000):
            pump.say("the agent says something")
        assert time.monotonic() - start < 30
        assert pump.last_lines(1) == ("the error",)
        assert await pump.close(0.1) is False
        noisy.ends()
        failing.ends()
        reader = threading.Thread(target=_read_until_end, args=(terminal.out_read,))
        said = threading.Thread(target=_read_until_end, args=(terminal.err_read,))
        reader.start()
        said.start()
        wait_until(lambda: pump._ended)
        os.close(terminal.out)
        os.close(terminal.err)
        reader.join()
        said.join()
        terminal.out = os.dup(0)
        terminal.err = os.dup(0)

    with Terminal() as terminal:
        asyncio.run(scenario())


def _read_until_end(fd: int) -> None:
    while os.read(fd, 65536):
        pass


def test_a_console_whose_reader_has_gone_does_not_stop_the_output() -> None:
    async def scenario() -> None:
        pump = terminal.pump()
        worker = FakeWorker(pump)
        os.close(terminal.out_read)
        for _ in range(20):
            worker.prints(b"x" * 60_000 + b"\n", b"err\n")
            assert await pump.drain(DEADLINE_S)
        used = time.process_time()
        await asyncio.sleep(0.3)
        assert time.process_time() - used < 0.2, "it spins"
        assert terminal_err(terminal) == b"err\n" * 20
        worker.ends()
        assert await pump.close(DEADLINE_S)

    def terminal_err(terminal: Terminal) -> bytes:
        return _read_all(terminal.err_read)

    with Terminal() as terminal:
        asyncio.run(scenario())


def test_a_non_blocking_console_gets_everything() -> None:
    async def scenario() -> None:
        os.set_blocking(terminal.out, False)
        pump = terminal.pump()
        worker = FakeWorker(pump)
        read: list[bytes] = []

        def read_slowly() -> None:
            while data := os.read(terminal.out_read, 10_000):
                read.append(data)
                if data.endswith(b"end\n"):
                    return

        reader = threading.Thread(target=read_slowly)
        for number in range(10):
            if number == 3:
                reader.start()
            await asyncio.to_thread(worker.prints, b"x" * 49_999 + b"\n")
        worker.prints(b"end\n")
        await asyncio.to_thread(reader.join)
        assert len(b"".join(read)) == 500_004
        worker.ends()
        assert await pump.close(DEADLINE_S)

    with Terminal() as terminal:
        asyncio.run(scenario())


def test_a_full_file_system_is_reported_once_and_output_continues(tmp_path: Path) -> None:
    async def scenario() -> None:
        directory = round_log_dir(tmp_path, "job", 1)
        directory.mkdir(parents=True)
        for rank in (0, 1):
            (directory / f"rank-{rank}.out").symlink_to("/dev/full")
        pump = terminal.pump(log_dir=tmp_path, run_id="job")
        pump.begin_round(1)
        workers = [FakeWorker(pump, rank, rank) for rank in (0, 1)]
        for _ in range(3):
            for worker in workers:
                worker.prints(b"out\n", b"err\n")
            assert await pump.drain(DEADLINE_S)
        for worker in workers:
            worker.ends()
        assert await pump.close(DEADLINE_S)
        out, err = terminal.read()
        assert out == b"out\n" * 6
        told = [line for line in err.splitlines() if line != b"err"]
        assert len(told) == 1
        assert os.strerror(errno.ENOSPC).encode() in told[0]
        assert (directory / "rank-0.err").read_bytes() == b"err\n" * 3

    with Terminal() as terminal:
        asyncio.run(scenario())


def test_a_log_directory_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    async def scenario() -> None:
        pump = terminal.pump(log_dir=tmp_path / "file", run_id="job")
        pump.begin_round(1)
        worker = FakeWorker(pump)
        worker.prints(b"out\n")
        worker.ends()
        assert await pump.close(DEADLINE_S)
        out, err = terminal.read()
        assert out == b"out\n"
        assert os.strerror(errno.ENOTDIR).encode() in err

    (tmp_path / "file").write_text("")
    with Terminal() as terminal:
        asyncio.run(scenario())


def test_a_closed_pump_accepts_nothing_and_blocks_nothing() -> None:
    async def scenario() -> None:
        pump = terminal.pump()
        assert await pump.close(DEADLINE_S)
        await until(lambda: pump._ended)
        worker = FakeWorker(pump)
        with pytest.raises(BrokenPipeError):
            worker.prints(b"out\n")
        worker.ends()
        pump.say("nobody hears it")
        assert await pump.drain(60)
        assert await pump.close(60)

    with Terminal() as terminal:
        asyncio.run(scenario())


def test_messages_of_the_agent_are_lines_on_stderr() -> None:
    async def scenario() -> None:
        pump = terminal.pump(shows=_nothing, prefix=_rank)
        pump.say("one")
        pump.say("two\n")
        assert await pump.close(DEADLINE_S)
        assert terminal.read() == (b"", b"one\ntwo\n")

    with Terminal() as terminal:
        asyncio.run(scenario())


@pytest.mark.parametrize("run_id", ["../../etc", "/etc", "..", ".", "", "a/b\0c"])
def test_a_run_id_does_not_lead_out_of_the_log_directory(run_id: str, tmp_path: Path) -> None:
    directory = round_log_dir(tmp_path, run_id, 1)
    assert directory.parent.parent == tmp_path
    assert directory.resolve().is_relative_to(tmp_path.resolve())
    assert directory.parent.resolve() != tmp_path.resolve()


def test_check_log_dir_creates_the_directory_and_leaves_it_empty(tmp_path: Path) -> None:
    check_log_dir(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("open_umask")
def test_log_files_are_readable_by_this_user_only(tmp_path: Path) -> None:
    """A traceback may hold a password, and a log directory is often on a shared disk."""
    root = tmp_path / "made" / "logs"

    async def scenario() -> None:
        check_log_dir(root)
        pump = terminal.pump(log_dir=root, run_id="run")
        pump.begin_round(1)
        worker = FakeWorker(pump)
        worker.prints(b"out\n", b"password=hunter2\n")
        worker.ends()
        assert await pump.close(DEADLINE_S)

    with Terminal() as terminal:
        asyncio.run(scenario())
    found = list((tmp_path / "made").rglob("*"))
    assert {each.name for each in found} == {"logs", "run", "round-1", "rank-0.out", "rank-0.err"}
    for each in (tmp_path / "made", *found):
        assert mode(each) == (0o700 if each.is_dir() else 0o600), each


@pytest.mark.usefixtures("open_umask")
def test_an_existing_log_directory_is_unchanged(tmp_path: Path) -> None:
    root = tmp_path / "logs"
    root.mkdir(mode=0o775)
    check_log_dir(root)
    assert mode(root) == 0o775


def test_check_log_dir_reports_the_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogDirectoryError, match="file") as caught:
        check_log_dir(tmp_path / "file")
    assert caught.value.path == str(tmp_path / "file")
    assert caught.value.error == os.strerror(errno.EEXIST)
    assert "directory" in caught.value.hint
    with pytest.raises(LogDirectoryError, match="proc"):
        check_log_dir(Path("/proc/none"))


@pytest.mark.processes
def test_the_last_lines_are_complete_when_a_worker_has_failed() -> None:
    code = """
import os, sys, time
for number in range(1000):
    print("line", number, file=sys.stderr)
kept = os.fork()  # keeps the pipes, in a session where nobody looks for it
if kept == 0:
    os.setsid()
    time.sleep(600)
while os.getsid(kept) != kept:
    time.sleep(0.001)
print(kept, flush=True)
raise ValueError("the end")
"""

    async def scenario() -> None:
        pump = terminal.pump()
        exits = Exits()
        group = WorkerGroup([spec(code)], output=pump, exits=exits)
        await group.start()
        reader = threading.Thread(target=_read_until_end, args=(terminal.err_read,))
        reader.start()
        exit = await exits.next()
        start = time.monotonic()
        assert await pump.drain(60, exit.local_rank)
        assert time.monotonic() - start < 30
        lines = pump.last_lines(0)
        assert len(lines) == 20
        assert lines[-1] == "ValueError: the end"
        os.kill(int(_read_all(terminal.out_read)), signal.SIGKILL)
        await group.stop(0)
        assert await pump.close(DEADLINE_S)
        os.close(terminal.err)
        reader.join()
        terminal.err = os.dup(0)

    with Terminal() as terminal:
        asyncio.run(scenario())


def test_a_prompt_is_not_held_back() -> None:
    async def scenario() -> None:
        pump = terminal.pump(prefix=_rank, prompting=0)
        debugged, other = FakeWorker(pump, 0, 5), FakeWorker(pump, 1, 6)
        other.prints(b"a line without an end")
        debugged.prints(b"(Pdb) ")
        shown = b""
        while not shown:
            await asyncio.to_thread(select.select, [terminal.out_read], [], [], DEADLINE_S)
            shown += terminal.read()[0]
        assert shown == b"5(Pdb) "
        debugged.ends()
        other.ends()
        assert await pump.close(DEADLINE_S)

    with Terminal() as terminal:
        asyncio.run(scenario())
