"""How long it takes to import Rallypoint, and for nodes to meet for the first time."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Final

from benchmarks.figure import Figure, Group, Target
from benchmarks.processes import (
    Say,
    clean_environment,
    end,
    expect,
    free_port,
    python,
    read_line,
    run_part,
    tell,
)

IMPORT_S: Final = 0.15
MEET_2_MS: Final = 50
MEET_64_MS: Final = 500


# -- importing -----------------------------------------------------------------------------------


def _interpreter_s(code: str) -> float:
    """How long a fresh interpreter takes to run this, start and end included."""
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, env=clean_environment())
    return time.monotonic() - began_s


def measure_import(repeats: int, say: Say) -> list[Figure]:
    """Fresh interpreters in turn: with the import, and with nothing to do."""
    codes = {
        "import": "import rallypoint",
        "import_and_first_use": "import rallypoint.client.blocking, rallypoint.client.join_plan",
    }
    for code in ("pass", *codes.values()):
        _interpreter_s(code)  # files are read and compiled once
    values: dict[str, list[float]] = {name: [] for name in codes}
    for index in range(repeats):
        start_s = _interpreter_s("pass")
        for name, code in codes.items():
            values[name].append(_interpreter_s(code) - start_s)
        say(f"import {index + 1} of {repeats}")
    timed = "a fresh interpreter's `{}`, minus one that does nothing; byte code is there already"
    return [
        Figure(
            name=name,
            timed=timed.format(code),
            unit="s",
            values=tuple(values[name]),
            target=Target(IMPORT_S) if name == "import" else None,
            limited_by="" if name == "import" else "importing asyncio, msgspec and websockets",
        )
        for name, code in codes.items()
    ]


# -- meeting -------------------------------------------------------------------------------------


def _meet_in_threads(count: int) -> float:
    """A fresh process whose threads meet; milliseconds from the first call to the last answer."""
    lines = run_part("meeting_part", "threads", count, free_port())
    return _first_call_to_last_answer_ms([(each["called_s"], each["met_s"]) for each in lines])


def _meet_in_processes(count: int) -> float:
    """Processes that have imported everything and start at one signal."""
    port = free_port()
    arguments = ("-m", "benchmarks.meeting_part", "one", str(count), str(port))
    nodes = [
        python(*arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(count)
    ]
    try:
        for node in nodes:
            expect(node, "imported")
        start_s = time.monotonic() + 0.1
        for node in nodes:
            tell(node, str(start_s))
        outputs = [read_line(node) for node in nodes]
    finally:
        end(nodes)
    times = [output.split() for output in outputs]
    return _first_call_to_last_answer_ms([(float(t[0]), float(t[1])) for t in times])


def _first_call_to_last_answer_ms(times: list[tuple[float, float]]) -> float:
    first_s = min(called_s for called_s, _ in times)
    last_s = max(met_s for _, met_s in times)
    return (last_s - first_s) * 1_000


_COLD = (
    "from the first call of rallypoint.join() to the last return of next_world(), blocking API, "
    "{}; host:port on 127.0.0.1, min = max; everything is imported, nothing else has begun: "
    "one of them becomes the host, all connect, attach and are ready, the round is formed"
)


def measure_meet(repeats: int, say: Say) -> list[Figure]:
    """Two processes, two threads, 64 threads and 256 threads, each time from nothing."""
    values: dict[str, list[float]] = {}
    for index in range(repeats):
        values.setdefault("meet_2_processes", []).append(_meet_in_processes(2))
        for count in (2, 64, 256):
            values.setdefault(f"meet_{count}_threads", []).append(_meet_in_threads(count))
        say(f"meet {index + 1} of {repeats}")
    threads = "{} threads of one process, which share one thread of Rallypoint's"
    figures = {
        "meet_2_processes": ("two processes that start at one moment", Target(MEET_2_MS)),
        "meet_2_threads": (threads.format(2), Target(MEET_2_MS)),
        "meet_64_threads": (threads.format(64), Target(MEET_64_MS)),
        "meet_256_threads": (threads.format(256), None),
    }
    pause = "the host's first use of its libraries, and the pause of whoever dialled before it"
    handshakes = "HTTP and WebSocket handshakes of both sides in one Python thread"
    return [
        Figure(
            name=name,
            timed=_COLD.format(who),
            unit="ms",
            values=tuple(values[name]),
            target=target,
            limited_by=pause if "_2_" in name else handshakes,
        )
        for name, (who, target) in figures.items()
    ]


GROUPS: Final = (Group("import", 10, measure_import), Group("meet", 10, measure_meet))
