"""What a simulator replaces is reached through few files.

It is chance, clocks, threads, tasks, the names of host and process, and the disk.

The event loop is a seam, too: its clock, timers and tasks are the simulated process's own. But a
task that nobody waits for hides its error. So tasks are started with `runtime.spawn`, which says
what an error ends, and files that start a task in another way are named here, with the reason.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "rallypoint"

# -- chance, clocks, threads, tasks and names ----------------------------------------------------

MODULES = frozenset({"random", "secrets", "threading", "uuid"})
CLOCKS = frozenset(
    f"{name}{unit}" for name in ("time", "monotonic", "perf_counter") for unit in ("", "_ns")
) | {"sleep"}
TASKS = frozenset({"create_task", "ensure_future", "to_thread", "run_in_executor"})
NAMES = frozenset({"socket.gethostname", "os.getpid", "os.uname", "platform.node"})
"""What tells one host or process from another: a history must not depend on it."""

_WAITS = "waits for all its tasks before it returns"
_SOCKETS = "works on sockets, which are not simulated"
_PROCESSES = "works on processes, which are not simulated"
ALLOWED: dict[str, str] = {
    "runtime.py": "the seam",
    "threads.py": "the seam",
    "bench/": "measures real processes in real time",
    "cli/": "runs in a terminal, or in the main thread of `serve`",
    "rendezvous/": "torch's API blocks its caller's threads, and its servers work on sockets",
    "simulation/": "is the simulator: its chance is the seed's",
    "testing/": "is for tests",
    "clock.py": "the clock is an argument, and this its default",
    "coordinator/turns.py": "measures the work of one turn, and how long it took really",
    "settings/node.py": "draws the id of a run of one process, before it has a loop",
    "net.py": "compares a name with the machine's own; a simulated network has its own names",
    "line_limits.py": "limits the log lines of all threads of a process, in real time",
    "tokens.py": "reads and writes the token's file, which is not simulated",
    "security/state.py": "names a file of the state directory, which is not simulated",
    "security/authority.py": "makes keys, in a thread or a command; a simulator uses none",
    "client/blocking.py": "the loop's thread, for callers that block",
    "client/peer_sockets.py": "frees callers that a library blocks",
    "client/kept_service.py": "waits for the clients of a library's service, in real time",
    "client/dialing.py": _WAITS,
    "client/fixed.py": _WAITS,
    "coordinator/event_streams.py": _WAITS,
    "coordinator/ledger_view.py": _WAITS,
    "coordinator/replicas.py": _WAITS,
    "coordinator/tables.py": _WAITS,
    "launch/worker_stacks.py": _PROCESSES,
    "launch/hang_watch.py": "looks at a file that the user names, which is not simulated",
    "client/step_gate.py": "a lock, for the program's threads and the loop's",
    "client/stack_dump.py": "reads the stacks of this process's threads",
    "coordinator/frames.py": _SOCKETS,
    "coordinator/hosts.py": "reads the Host header of HTTP, which is not simulated",
    "coordinator/listener.py": _SOCKETS,
    "coordinator/server.py": _SOCKETS,
    "doctor/": "looks at this real machine and its network",
    "launch/agent.py": "keeps its tasks, and cancels them when it ends",
    "launch/channel.py": _SOCKETS,
    "launch/guard.py": _PROCESSES,
    "launch/guard_process.py": _PROCESSES,
    "launch/logs.py": _PROCESSES,
    "launch/orphans.py": _PROCESSES,
    "launch/output_streams.py": _PROCESSES,
    "launch/preload_process.py": _PROCESSES,
    "launch/preloader.py": _PROCESSES,
    "launch/system.py": "what an agent uses of its machine: a simulator has its own",
    "launch/worker_processes.py": _PROCESSES,
    "ledger/torch_backend.py": "calls foreign code in threads, one call at a time",
}


def uses(source: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, what) of each use of chance, of a clock, of a thread or of a task."""
    for node in ast.walk(source):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, each.name) for each in names if each.name in MODULES)
            case ast.ImportFrom(module="time", names=names):
                yield from ((node.lineno, each.name) for each in names if each.name in CLOCKS)
            case ast.ImportFrom(module="asyncio", names=names):
                yield from ((node.lineno, each.name) for each in names if each.name in TASKS)
            case ast.ImportFrom(module=str(module)) if module in MODULES:
                yield node.lineno, module
            case ast.Attribute(value=ast.Name(id="time"), attr=name) if name in CLOCKS:
                yield node.lineno, f"time.{name}"
            case ast.Attribute(value=ast.Name(id="os"), attr="urandom"):
                yield node.lineno, "os.urandom"
            case ast.Attribute(value=ast.Name(id=module), attr=name) if f"{module}.{name}" in NAMES:
                yield node.lineno, f"{module}.{name}"
            case ast.Attribute(attr=name) if name in TASKS:
                yield node.lineno, name


def allowed_by(path: str) -> str | None:
    """The entry of ALLOWED for this file."""
    return next((each for each in (path, f"{path.partition('/')[0]}/") if each in ALLOWED), None)


def test_chance_clocks_threads_tasks_and_names_come_from_the_runtime() -> None:
    found, needed = [], set()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        for line, what in uses(ast.parse(path.read_text("utf-8"))):
            entry = allowed_by(name)
            if entry is None:
                found.append(f"{name}:{line}: {what}; use rallypoint.runtime")
            else:
                needed.add(entry)
    assert found == []
    assert sorted(ALLOWED.keys() - needed) == [], "no longer needed"


@pytest.mark.parametrize(
    "source",
    [
        "import random",
        "from secrets import token_hex",
        "import threading as t",
        "import time\ntime.monotonic()",
        "from time import sleep",
        "import os\nos.urandom(4)",
        "import socket\nsocket.gethostname()",
        "import os\nfield(default_factory=os.getpid)",
        "asyncio.get_running_loop().create_task(work)",
        "from asyncio import ensure_future",
        "await asyncio.to_thread(work)",
    ],
)
def test_a_use_is_found(source: str) -> None:
    assert [line for line, _ in uses(ast.parse(source))] == [source.count("\n") + 1]


def test_a_shown_cpu_time_is_no_clock() -> None:
    assert list(uses(ast.parse("import time\ntime.thread_time()\nawait asyncio.sleep(1)"))) == []


# -- the disk of the file ledger -----------------------------------------------------------------

FILES = PACKAGE / "ledger" / "file"
SEAM = "file_system.py"
"""The only file there that makes calls of the operating system."""
PURE = frozenset({"os.PathLike", "os.path", "os.stat_result", "os.strerror"})
LOOKS = frozenset(
    {"stat", "lstat", "exists", "is_dir", "is_file", "iterdir", "glob", "rglob", "walk", "resolve"}
    | {"read_bytes", "read_text", "write_bytes", "write_text", "open", "mkdir", "rmdir", "unlink"}
    | {"hardlink_to", "symlink_to", "chmod", "touch", "owner", "samefile", "replace"}
)
"""Methods of pathlib.Path that look at the disk or change it."""
BY = frozenset({"self", "disk", "_disk", "system", "registers"})
"""The objects that offer operations of such a name: the seam, and others."""


def disk_uses(source: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, what) of each call of the operating system."""
    for node in ast.walk(source):
        match node:
            case ast.Import(names=names):
                barred = MODULES | {"tempfile", "time", "shutil", "fcntl", "grp", "pwd", "io"}
                yield from ((node.lineno, each.name) for each in names if each.name in barred)
            case ast.ImportFrom(module="os" | "tempfile" | "shutil" | "time"):
                yield node.lineno, f"{node.module}"
            case ast.Attribute(value=ast.Name(id="os"), attr=name) if f"os.{name}" not in PURE:
                yield node.lineno, f"os.{name}"
            case ast.Call(func=ast.Name(id="open")):
                yield node.lineno, "open"
            case ast.Call(func=ast.Attribute(value=of, attr=name)) if name in LOOKS:
                if ast.unparse(of).rpartition(".")[2] not in BY:
                    yield node.lineno, f".{name}()"


def test_the_file_ledger_reaches_its_disk_by_one_file() -> None:
    found = [
        f"{path.name}:{line}: {what}"
        for path in sorted(FILES.glob("*.py"))
        if path.name != SEAM
        for line, what in disk_uses(ast.parse(path.read_text("utf-8")))
    ]
    assert found == []
    assert list(disk_uses(ast.parse((FILES / SEAM).read_text("utf-8"))))


@pytest.mark.parametrize(
    "source",
    [
        "import tempfile",
        "import time",
        "from os import link",
        "os.link(one, other)",
        "open(path)",
        "path.stat()",
        "(folder / name).is_dir()",
        "path.with_name('a').unlink()",
    ],
)
def test_a_look_at_the_disk_is_found(source: str) -> None:
    assert len(list(disk_uses(ast.parse(source)))) == 1
