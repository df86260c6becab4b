"""Processes for the figures: started with this checkout on their path, and ended by their id.

Times of different processes are compared, so all are `time.monotonic()`, which on Linux is one
clock for the whole machine. Processes write what happened to them as lines of JSON; reading those
lines late changes no figure.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import rallypoint

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGE_ROOT: Final = Path(rallypoint.__file__).resolve().parents[1]
DEADLINE_S: Final = 60.0
"""How long anything may take before the measurement has failed."""
POLL_S: Final = 0.02

Event = dict[str, Any]
Say = Callable[[str], None]


class NotMeasuredError(Exception):
    """What was to be timed did not happen."""


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment with default settings, and the same `rallypoint` to import."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RALLYPOINT_")}
    path = os.pathsep.join([str(PACKAGE_ROOT), str(ROOT), *filter(None, [kept.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": path} | more


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at; nobody else is likely to take it meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def wait_until(what: Callable[[], bool], waited_for: str, within_s: float = DEADLINE_S) -> None:
    """Poll until it is so. Raises NotMeasuredError."""
    ends_s = time.monotonic() + within_s
    while not what():
        if time.monotonic() > ends_s:
            raise NotMeasuredError(f"not within {within_s:g} s: {waited_for}")
        time.sleep(POLL_S)


def python(*arguments: str, **popen: Any) -> subprocess.Popen[str]:
    """Start this interpreter."""
    popen.setdefault("env", clean_environment())
    return subprocess.Popen([sys.executable, *arguments], text=True, **popen)


def run_part(module: str, *arguments: object) -> list[Event]:
    """Run one module of these benchmarks in a fresh process; the lines of JSON that it prints."""
    command = ("-m", f"benchmarks.{module}", *map(str, arguments))
    with python(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            out, err = process.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise NotMeasuredError(f"{module} has not ended within {DEADLINE_S:g} s") from None
    if process.returncode != 0:
        raise NotMeasuredError(f"{module} ended with {process.returncode}: {err[-2_000:]}")
    return [json.loads(line) for line in out.splitlines()]


def read_line(process: subprocess.Popen[str]) -> str:
    """The next line that it prints. Raises NotMeasuredError."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], DEADLINE_S)
    line = process.stdout.readline() if ready else ""
    if not line.endswith("\n"):
        raise NotMeasuredError(f"a part said {line!r} and no more: {process.args!r}")
    return line.strip()


def expect(process: subprocess.Popen[str], word: str) -> None:
    """It must say this next. Raises NotMeasuredError."""
    said = read_line(process)
    if said != word:
        raise NotMeasuredError(f"a part said {said!r} instead of {word!r}: {process.args!r}")


def tell(process: subprocess.Popen[str], text: str = "") -> None:
    """A line on its stdin."""
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()


# -- a coordinator -------------------------------------------------------------------------------


class Coordinator:
    """A `rallypoint serve` on a free port of loopback."""

    def __init__(self) -> None:
        self.process = python(
            *("-m", "rallypoint.cli", "serve", "--port", "0"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.endpoint = read_line(self.process)
        self.port = int(self.endpoint.rpartition(":")[2])

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(self, *_: object) -> None:
        end([self.process])


def ask(port: int, path: str) -> Any:
    """What a coordinator on this machine answers over HTTP."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())


# -- agents --------------------------------------------------------------------------------------


class Agent:
    """One `rallypoint run` with one trivial worker; both write down what happens to them."""

    def __init__(self, name: str, log: Path, arguments: Sequence[str]) -> None:
        self.name = name
        self._log = log
        self._read_bytes = 0
        self._events: list[Event] = []
        self.process = python(
            *("-m", "benchmarks.logged_agent", "run", "--node-name", name, *arguments),
            *("-m", "benchmarks.logged_worker"),
            env=clean_environment(BENCHMARK_LOG=str(log), TMPDIR=str(log.parent)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def events(self, kind: str, since_s: float = 0.0) -> list[Event]:
        """What has happened so far, in order."""
        self._read()
        return [e for e in self._events if e["event"] == kind and e["at_s"] >= since_s]

    def first(self, kind: str, since_s: float = 0.0) -> float | None:
        """When it first happened; None if it did not."""
        found = self.events(kind, since_s)
        return float(found[0]["at_s"]) if found else None

    def _read(self) -> None:
        if not self._log.exists():
            return
        with self._log.open("rb") as file:
            file.seek(self._read_bytes)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        self._events += [json.loads(line) for line in whole.splitlines()]

    @property
    def worker_pid(self) -> int:
        """The process id of its last worker."""
        return int(self.events("working")[-1]["pid"])

    def signal(self, number: int) -> None:
        """Send it to the agent and to its worker, one right after the other."""
        self.process.send_signal(number)
        os.kill(self.worker_pid, number)


@contextlib.contextmanager
def agents(count: int, nnodes: str, endpoint: str, run_id: str) -> Iterator[list[Agent]]:
    """So many agents, all in the first round, each with its worker at work.

    The first is there before the others start: with a `host:port` endpoint it is the host.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        arguments = ("--nnodes", nnodes, "--endpoint", endpoint, "--run-id", run_id)
        started: list[Agent] = []
        try:
            for index in range(count):
                name = f"node{index}"
                started.append(Agent(name, Path(folder, f"{name}.jsonl"), arguments))
                if index == 0:
                    wait_for(started, "attached")
            wait_for(started, "working")
            yield started
        finally:
            workers = [e["pid"] for a in started for e in a.events("working")[-1:]]
            end([agent.process for agent in started])
            for pid in workers:  # its guard has done it, or is about to
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def wait_for(those: Sequence[Agent], kind: str, since_s: float = 0.0) -> list[float]:
    """Wait until it has happened to all of them; when it first did, for each."""
    wait_until(lambda: all(a.first(kind, since_s) is not None for a in those), f"{kind} everywhere")
    times = [agent.first(kind, since_s) for agent in those]
    return [at_s for at_s in times if at_s is not None]


def end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Kill them, stopped ones too, and take their exit codes."""
    for process in processes:
        if process.poll() is None:
            process.kill()
    for process in processes:
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
