"""A command line to type at, snapshots of what it says, and real coordinators to ask."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rallypoint.cli import main
from tests import ports

SNAPSHOTS = Path(__file__).parent / "snapshots"
COMMAND = (sys.executable, "-m", "rallypoint.cli")
NOT_PLAIN = ("RALLYPOINT_", "CUDA_", "FORCE_COLOR", "SLURM", "OMPI_", "PMI", "PET_", "JOB_COMPL")
PLAIN = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}


@pytest.fixture(autouse=True)
def plain_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What is tested must not depend on whose terminal it is."""
    make_plain(monkeypatch, tmp_path_factory)


def make_plain(patch: pytest.MonkeyPatch, folders: pytest.TempPathFactory) -> None:
    for name in list(os.environ):
        if name.startswith(NOT_PLAIN):
            patch.delenv(name)
    patch.setenv("HOME", str(folders.mktemp("home")))  # without a token
    for name, text in PLAIN.items():
        patch.setenv(name, text)


@dataclass(frozen=True)
class Done:
    """How a command line ended."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"{self.out}{self.err}exit code {self.code}\n"


Cli = Callable[..., Done]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Type a command line, in this process."""

    def type_it(*arguments: str) -> Done:
        capsys.readouterr()
        code = main.exit_code_of(arguments)
        out, err = capsys.readouterr()
        return Done(int(code), out, err)

    return type_it


@pytest.fixture
def snapshot(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the file that has it; `--rewrite-snapshots` writes the file."""

    def compare(name: str, text: str) -> None:
        path = SNAPSHOTS / f"{name}.txt"
        if request.config.getoption("--rewrite-snapshots"):
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"no snapshot {path.name}: run pytest with --rewrite-snapshots"
        assert text == path.read_text(encoding="utf-8")

    return compare


# -- coordinators --------------------------------------------------------------------------------


class Served:
    """A `rallypoint serve`; `endpoint` is what it printed."""

    def __init__(self, *options: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "serve", *options],
            env=os.environ | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.endpoint = self._first_line()

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    def _first_line(self) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 60)
        line = self.process.stdout.readline().strip() if ready else ""
        if not line:
            self.process.kill()
            raise AssertionError(f"serve did not start: {self.process.communicate()[1]}")
        return line

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str, float]:
        """Its exit code, what it said on stderr, and how long it took to end."""
        began_s = time.monotonic()
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err, time.monotonic() - began_s

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        self.process.wait()


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Start coordinators on free ports; all are ended with the test."""
    with contextlib.ExitStack() as stack:

        def start(*options: str, env: dict[str, str] | None = None) -> Served:
            served = Served("--port", "0", *options, env=env)
            stack.callback(served.kill)
            return served

        yield start


# -- what is no coordinator ----------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[Callable[[bytes | None], str]]:
    """Something else that listens: it answers each connection with these bytes (None: never)."""
    with contextlib.ExitStack() as stack:

        def start(answer: bytes | None) -> str:
            sock = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            if answer is not None:
                threading.Thread(target=_answer_all, args=(sock, answer), daemon=True).start()
            return f"127.0.0.1:{sock.getsockname()[1]}"

        yield start


def _answer_all(sock: socket.socket, answer: bytes) -> None:
    with contextlib.suppress(OSError):  # the test is over
        while True:
            connection, _ = sock.accept()
            # The client may have given up by now; the next one still gets an answer.
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                connection.recv(65_536)
                connection.sendall(answer)


@pytest.fixture
def free_port() -> int:
    """A port without a listener."""
    return ports.free_port()


def without_ports(text: str) -> str:
    """The text with its ports taken out: they differ from time to time."""
    return re.sub(r"((?:127\.0\.0\.1|\[::1\]):|port )\d+", r"\1PORT", text)


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "train.py"
    path.write_text("")
    return str(path)
