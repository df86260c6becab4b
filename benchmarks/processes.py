"""Processes for the figures: started with this checkout on their path, and ended by their id.

Times of different processes are compared, so all are `time.monotonic()`, which on Linux is one
clock for the whole machine. Processes write what happened to them as lines of JSON; reading those
lines late changes no figure. What `rallypoint bench` has as well is in rallypoint/bench.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rallypoint.bench import processes
from rallypoint.bench.agents import Agent as Agent
from rallypoint.bench.agents import agents as agents
from rallypoint.bench.agents import wait_for as wait_for
from rallypoint.bench.event_log import Note as Event
from rallypoint.bench.processes import DEADLINE_S
from rallypoint.bench.processes import BenchError as NotMeasuredError
from rallypoint.bench.processes import end as end
from rallypoint.bench.processes import free_port as free_port
from rallypoint.bench.processes import wait_until as wait_until

ROOT: Final = Path(__file__).resolve().parents[1]

Say = Callable[[str], None]


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment with default settings, and the same packages to import."""
    kept = processes.clean_environment()
    return kept | {"PYTHONPATH": os.pathsep.join([kept["PYTHONPATH"], str(ROOT)])} | more


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


def ask(port: int, path: str, token: str = "") -> Any:
    """What a coordinator on this machine answers over HTTP."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    with contextlib.closing(connection):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request("GET", path, headers=headers)
        return json.loads(connection.getresponse().read())
