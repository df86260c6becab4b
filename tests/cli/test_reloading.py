"""SIGHUP to `rallypoint serve`: tokens change without losing a node; a bad file changes nothing."""

from __future__ import annotations

import asyncio
import os
import pty
import queue
import secrets
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rallypoint
from rallypoint.cli import api, reloading
from rallypoint.cli.reloading import Reloader
from rallypoint.errors import UntrustedCoordinatorError, UsageError
from rallypoint.security.authority import new_host_token
from rallypoint.security.files import signature, signatures
from rallypoint.security.state import State
from rallypoint.security.token_form import credential
from rallypoint.settings import parse_endpoint
from tests.agent.processes import MAIN, Machine, Process
from tests.loops import until
from tests.waiting import wait_until

OLD, NEW = "old-" + "VQ2t9qk0X5cM1sB7nJ4eRw", "new-" + "b8Kd0PzX3mYt6uVw1LqRsA"
OLD_CA, NEW_CA = new_host_token(), new_host_token()
"""The same by TLS: each names an authority of its own."""


def noting(read: Callable[[], tuple[str, ...]]) -> tuple[Reloader, list[tuple[str, ...]]]:
    """A reloader, and the tokens that it gave to be used, each time."""
    used: list[tuple[str, ...]] = []

    def use(tokens: tuple[str, ...]) -> int:
        used.append(tokens)
        return 0

    return Reloader(read, use), used


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


class Serving:
    """A `rallypoint serve` with a token file."""

    def __init__(self, machine: Machine, *options: str, tokens: str | None = OLD) -> None:
        self.tokens = (OLD_CA, NEW_CA) if tokens == OLD_CA else (OLD, NEW)
        self.path = machine.directory / "tokens"
        argv = [sys.executable, "-c", MAIN, "serve", "--port", "0", *options]
        if tokens is not None:
            self.write(tokens)
            argv += ["--token-file", str(self.path)]
        self.process = Process(argv, machine.env, machine.directory, "serve")
        machine.processes.append(self.process)
        self.endpoint = self.process.line(r"^(https?://\S+)$")[1]

    def write(self, text: str) -> None:
        """Replace the content at once: a reader gets either the old one or this."""
        draft = self.path.with_suffix(".draft")
        draft.write_text(text)
        draft.chmod(0o600)
        draft.rename(self.path)

    def reload(self) -> str:
        """What it says of it."""
        self.process.signal(signal.SIGHUP)
        return self.process.line("SIGHUP: (.*)")[1]

    def status(self, token: str) -> int:
        port = self.endpoint.rpartition(":")[2]
        try:
            api.runs(parse_endpoint(f"http://127.0.0.1:{port}"), token)
        except (rallypoint.TokenError, UntrustedCoordinatorError):
            return 401
        return 200

    def statuses(self) -> tuple[int, int]:
        old, new = self.tokens
        return self.status(old), self.status(new)


def join(serving: Serving, name: str, token: str) -> rallypoint.Run:
    """A run of its own, with one node."""
    path = serving.path.with_name(f"{name}.token")
    path.write_text(token)
    path.chmod(0o600)
    return rallypoint.join(
        name, serving.endpoint, min_nodes=1, max_nodes=1, node_name=name, token_file=str(path)
    )


@pytest.mark.processes
@pytest.mark.parametrize(("old", "new"), [(OLD, NEW), (OLD_CA, NEW_CA)], ids=["clear", "tls"])
def test_tokens_are_replaced_without_losing_nodes(machine: Machine, old: str, new: str) -> None:
    """With TLS that is a new authority, and both are shown, each to whom asks for it."""
    serving = Serving(machine, tokens=old)
    assert serving.statuses() == (200, 401)
    with join(serving, "a", old) as a:
        world = a.next_world()
        assert world is not None
        serving.write(f"{new}\n{old}\n")
        assert serving.reload() == "the token file was read again: 2 tokens are accepted"
        assert serving.statuses() == (200, 200)
        with join(serving, "b", new) as b:
            b.next_world()
            serving.write(new)
            assert serving.reload() == (
                "the token file was read again: 1 token is accepted; "
                "1 connection with another token stays until it ends"
            )
            assert serving.statuses() == (401, 200)
            refused = (rallypoint.TokenError, UntrustedCoordinatorError)
            with pytest.raises(refused), join(serving, "c", old):
                pass
            # The session goes on that was opened with the old one.
            world.store.set("key", b"1")
            assert world.change is None
            a.close("the end")
    text = serving.process.text
    assert credential(old) not in text
    assert credential(new) not in text


@pytest.mark.processes
def test_a_file_that_changes_is_read_without_a_signal(machine: Machine) -> None:
    serving = Serving(machine)
    serving.write(f"{NEW}\n{OLD}\n")
    told = serving.process.line("a file of tokens or certificates has changed: (.*)")[1]
    assert told == "the token file was read again: 2 tokens are accepted"
    assert serving.statuses() == (200, 200)


def test_a_state_is_read_again_each_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reloading, "WATCH_S", 0.01)
    monkeypatch.setattr(reloading, "RENEW_S", 0.05)
    state = State(tmp_path / "state")
    state.create()
    asked: queue.SimpleQueue[str] = queue.SimpleQueue()
    watch = reloading.Watch((state.folder,), asked.put)
    watch.start()
    assert [asked.get(timeout=30) for _ in range(2)] == [reloading.NEXT_DAY] * 2
    state.token_file.write_text(state.token_file.read_text() * 2)
    assert any(asked.get(timeout=30) == reloading.CHANGED for _ in range(100))
    watch.stop()
    watch._thread.join(30)
    assert not watch._thread.is_alive()


def test_a_file_that_is_gone_for_a_moment_is_no_change(tmp_path: Path) -> None:
    path = tmp_path / "token"
    assert signature(path) is None
    path.write_text("a")
    before = signature(path)
    assert before == signature(path)
    path.unlink()
    path.write_text("b")
    assert signature(path) != before


def test_other_rights_are_a_change(tmp_path: Path) -> None:
    """Files that others may read are refused with "chmod 600 FILE": then they count."""
    state = State(tmp_path / "state")
    state.create()
    for path in (state.token_file, state.folder):
        mode = path.stat().st_mode
        path.chmod(mode | 0o070)
        before = signature(state.folder)
        path.chmod(mode)
        assert signature(state.folder) != before


def test_a_change_while_the_coordinator_starts_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloading, "WATCH_S", 0.01)
    path = tmp_path / "token"
    path.write_text("a")
    seen = signatures([path])
    path.write_text("bc")
    asked: queue.SimpleQueue[str] = queue.SimpleQueue()
    watch = reloading.Watch((path,), asked.put, seen)
    watch.start()
    assert asked.get(timeout=30) == reloading.CHANGED
    watch.stop()
    watch._thread.join(30)
    assert not watch._thread.is_alive()


def _is_missing(path: Path) -> None:
    path.unlink()


def _is_empty(path: Path) -> None:
    path.write_text("")


def _has_an_empty_line(path: Path) -> None:
    path.write_text(f"\n{NEW_CA}\n")


def _is_weak(path: Path) -> None:
    path.write_text("hunter2\n")


def _has_a_weak_one(path: Path) -> None:
    path.write_text(f"{NEW_CA}\nhunter2\n")


def _names_no_authority(path: Path) -> None:
    path.write_text(f"{NEW}\n")


def _is_a_nodes(path: Path) -> None:
    path.write_text(f"{credential(NEW_CA)}\n")


def _is_cut(path: Path) -> None:
    path.write_text(f"{NEW_CA[:60]}\n")


def _has_no_token(path: Path) -> None:
    path.write_text(f"{NEW_CA}\nthis is a secret sentence\n")


def _is_open_to_others(path: Path) -> None:
    path.write_text(NEW_CA)
    path.chmod(0o644)


def _is_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _has_too_many(path: Path) -> None:
    path.write_text("".join(f"{secrets.token_hex(16)}\n" for _ in range(17)))


def _has_too_many_lines(path: Path) -> None:
    path.write_text(f"{NEW}\n" * 10_000)


@pytest.mark.processes
def test_an_unusable_file_changes_nothing(machine: Machine) -> None:
    serving = Serving(machine, "--host", "0.0.0.0", tokens=OLD_CA)
    for spoil, why in (
        (_is_empty, "its first line is empty"),
        (_has_an_empty_line, "its first line is empty"),
        (_is_weak, "can be guessed"),
        (_has_a_weak_one, "can be guessed"),
        (_names_no_authority, "names no certificate authority"),
        (_is_a_nodes, "has no certificate of it"),
        (_is_cut, "is not complete"),
        (_has_no_token, "line 2: token must be 1 to 512 visible ASCII characters"),
        (_is_open_to_others, "can be read by others"),
        (_has_too_many, "has more than 16 tokens"),
        (_has_too_many_lines, "has more than 16 tokens"),
        (_is_missing, "No such file"),
        (_is_a_folder, "there is no state in"),
    ):
        if serving.path.exists():
            serving.write(OLD_CA)
        elif spoil is not _is_missing:
            serving.path.touch()
        spoil(serving.path)
        said = serving.reload()
        assert said.startswith("the tokens stay as they were: "), spoil.__name__
        assert why in said, spoil.__name__
        assert serving.statuses() == (200, 401), spoil.__name__
    for secret in ("hunter2", "secret sentence", NEW):
        assert secret not in serving.process.text
    serving.process.signal(signal.SIGTERM)
    assert "Traceback" not in serving.process.ends(0)


@pytest.mark.processes
def test_without_a_token_file_the_coordinator_continues(machine: Machine) -> None:
    serving = Serving(machine, tokens=None)
    assert "there is no token file" in serving.reload()
    assert "there is no token file" in serving.reload()
    assert serving.status("") == 200
    serving.process.signal(signal.SIGTERM)
    serving.process.ends(0)


@pytest.mark.processes
def test_under_nohup_sighup_reloads_too(machine: Machine) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        serving = Serving(machine)
    finally:
        signal.signal(signal.SIGHUP, before)
    serving.write(NEW)
    assert "1 token is accepted" in serving.reload()
    assert serving.statuses() == (401, 200)


@pytest.mark.processes
def test_the_coordinator_survives_its_terminal(machine: Machine) -> None:
    ours, theirs = pty.openpty()
    endpoint = machine.directory / "endpoint"
    with endpoint.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, "serve", "--port", "0"],
            env=machine.env,
            stdin=theirs,
            stdout=out,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_take_terminal,  # its controlling one, as a shell's
        )
    os.close(theirs)
    try:
        wait_until(lambda: process.poll() is not None or endpoint.read_text().endswith("\n"))
        assert process.poll() is None
        assert _terminal(process.pid) != "0"
        os.close(ours)  # the terminal is closed: SIGHUP, and no write to it succeeds any more
        wait_until(lambda: _terminal(process.pid) == "0")
        where = f"{endpoint.read_text().strip()}/healthz"
        for _ in range(3):
            with urllib.request.urlopen(where, timeout=60) as answer:
                assert answer.read() == b"ok\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def _terminal(pid: int) -> str:
    """The number of its controlling terminal; "0" if it has none."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[4]


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


# -- the reader ------------------------------------------------------------------------------------


def test_a_file_system_that_hangs_delays_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The second request is for what is in the file after it: it must not be lost."""
    may_read = threading.Semaphore(0)
    contents = iter(("one", "two"))

    def read() -> tuple[str, ...]:
        may_read.acquire()
        return (next(contents),)

    async def main() -> None:
        reloader, used = noting(read)
        reloader.ask()
        reloader.ask()
        reloader.ask()
        assert used == []
        may_read.release()
        await until(lambda: used == [("one",)], "the file is not read")
        may_read.release()
        await until(lambda: used == [("one",), ("two",)], "the second request was lost")

    asyncio.run(main())
    assert "still being read" in caplog.text


def test_a_problem_of_the_file_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def read() -> tuple[str, ...]:
        raise UsageError("the file is gone", hint="write it")

    async def main() -> None:
        def use(tokens: tuple[str, ...]) -> int:
            raise AssertionError(tokens)

        Reloader(read, use).ask()
        await until(lambda: "the file is gone (hint: write it)" in caplog.text, "nothing is said")

    asyncio.run(main())


def test_an_error_while_reading_does_not_block_later_reloads(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults = iter([MemoryError("no memory"), None])

    def read() -> tuple[str, ...]:
        fault = next(faults)
        if fault is not None:
            raise fault
        return ("new",)

    async def main() -> None:
        reloader, used = noting(read)
        reloader.ask()
        await until(lambda: "the tokens stay as they were" in caplog.text, "nothing is said")
        assert used == []
        reloader.ask()
        await until(lambda: used == [("new",)], "the second request was lost")

    asyncio.run(main())
    assert "MemoryError('no memory')" in caplog.text


def test_an_error_of_the_use_does_not_lose_the_next_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    may_read = threading.Semaphore(0)

    def read() -> tuple[str, ...]:
        assert may_read.acquire(timeout=20)
        return ("new",)

    async def main() -> None:
        uses = 0

        def use(tokens: tuple[str, ...]) -> int:
            nonlocal uses
            uses += 1
            if uses == 1:
                raise ValueError("half-written")
            return 0

        reloader = Reloader(read, use)
        reloader.ask()
        reloader.ask()
        may_read.release(2)
        await until(lambda: uses == 2, "the second request was lost")

    asyncio.run(main())
    assert "the tokens stay as they were: the file was not read: ValueError('half-" in caplog.text


def test_without_a_thread_the_token_stays_and_a_reload_may_be_repeated(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        used: list[tuple[str, ...]] = []

        def use(tokens: tuple[str, ...]) -> int:
            used.append(tokens)
            return 0

        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        reloader = Reloader(lambda: ("new",), use)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            reloader.ask()
        assert "the tokens stay as they were: the file was not read" in caplog.text
        reloader.ask()
        await until(lambda: used == [("new",)], "the second request was lost")

    asyncio.run(main())
