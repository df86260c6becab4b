"""Commands to which the system grants too little: one error, and nothing left running."""

from __future__ import annotations

import errno
import os
import resource
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from rallypoint.cli import limits
from tests.waiting import wait_until

from .conftest import COMMAND, Cli

DEADLINE_S = 120.0
WITHOUT_CHECK = (
    "import sys; from rallypoint.cli import limits, main; "
    "limits.check = lambda *_: None; main.main(sys.argv[1:])"
)


def _limited(prelude: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f'{prelude}; exec "$@"', "bash", *command],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip


def _processes(mark: str) -> list[str]:
    """The command lines of all processes that have the mark in them."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = each.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended
        if mark in line:
            found.append(line)
    return found


def test_a_python_without_permission_is_no_fault_of_this_program() -> None:
    found = limits.refusal(PermissionError(errno.EACCES, "Permission denied", sys.executable))
    assert found is not None
    assert f"cannot start {sys.executable!r}" in found.message
    assert found.message.endswith("Permission denied")
    assert limits.refusal(PermissionError(errno.EACCES, "Permission denied", "/a/file")) is None


@pytest.mark.processes
@pytest.mark.parametrize("files", [8, 16, 24])
@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("run --standalone --no-python true", 28),
        ("run --standalone --nproc-per-node 2 --log-dir /nowhere --no-python true", 36),
        ("serve --port 0", 32),
        ("demo", 48),
    ],
)
def test_with_too_few_files_nothing_is_started(command: str, needed: int, files: int) -> None:
    done = _limited(f"ulimit -n {files}", *COMMAND, *command.split())
    first, second = done.stderr.splitlines()
    assert done.returncode == 2
    assert first.startswith(f"error: `rallypoint {command.split()[0]}`")
    assert first.endswith(f" needs {needed} open files, and this process may have {files}")
    assert second.startswith("hint: raise it: `ulimit -n 1024`")


@pytest.mark.processes
def test_inherited_open_files_count() -> None:
    prelude = "ulimit -n 40; for i in $(seq 20); do exec {x}</dev/null; done"
    done = _limited(prelude, *COMMAND, "run", "--standalone", "--no-python", "true")
    assert done.returncode == 2
    assert "this process may have 40, of which it was started with 20" in done.stderr
    spare = prelude.replace("40", "64")
    assert _limited(spare, *COMMAND, "run", "--standalone", "--no-python", "true").returncode == 0


@pytest.mark.processes
@pytest.mark.parametrize("command", ["env", "--version", "close job --endpoint 127.0.0.1:1"])
def test_commands_that_need_few_files_do_with_few(command: str) -> None:
    done = _limited("ulimit -n 8", *COMMAND, *command.split())
    assert done.returncode == (3 if "close" in command else 0)
    assert "Traceback" not in done.stderr


@pytest.mark.processes
@pytest.mark.parametrize("files", [8, 11, 14, 17, 20, 23])
def test_without_a_check_too_few_files_are_an_error_too(files: int) -> None:
    """Files may run out later: the error is reported at any place, and no process stays."""
    mark = f"300.{secrets.randbelow(10**9):09}"
    run = ["run", "--standalone", "--nproc-per-node", "2", "--no-python", "sleep", mark]
    done = _limited(f"ulimit -n {files}", sys.executable, "-c", WITHOUT_CHECK, *run)
    assert done.returncode == 2, done.stderr
    error = next(each for each in done.stderr.splitlines() if each.startswith("error: "))
    assert "open files" in error
    assert done.stderr.splitlines()[-1].startswith("hint: ")
    assert "Traceback" not in done.stderr
    assert "the workers go on" not in done.stderr
    wait_until(lambda: not _processes(mark))  # what the guard ends, it ends after its agent


@pytest.mark.processes
@pytest.mark.parametrize("command", ["run --standalone --no-python true", "serve --port 0", "demo"])
def test_with_too_little_memory_nothing_is_started(command: str) -> None:
    done = _limited("ulimit -v 200000", *COMMAND, *command.split())
    assert done.returncode == 2
    assert "needs 256 MiB of address space, and this process may have 195 MiB" in done.stderr
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("error", "told", "hint"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "open files", "ulimit -n"),
        (OSError(errno.EMFILE, "no", "/a/file"), "open files", "ulimit -n"),
        (ImportError("libx.so: cannot open: Too many open files"), "open files", "ulimit -n"),
        (OSError(errno.ENFILE, "no"), "this machine has too many", "fs.file-max"),
        (RuntimeError("can't start new thread"), "no other process or thread", "ulimit -u"),
        (BlockingIOError(errno.EAGAIN, "no"), "no other process or thread", "ulimit -u"),
        (MemoryError(), "not enough memory", "ulimit -v"),
        (OSError(errno.ENOMEM, "no"), "not enough memory", "ulimit -v"),
        (ImportError("a.so: failed to map segment from shared object"), "not enough", "ulimit -v"),
    ],
)
def test_a_refusal_of_the_system_is_an_error(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str, hint: str
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(limits, "check", fails)
    done = cli("serve", "--port", "0")
    assert (done.code, done.out) == (2, "")
    assert told in done.err.splitlines()[0]
    assert hint in done.err.splitlines()[-1]
    assert len(done.err.splitlines()) == 2


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        RuntimeError("no"),
        ImportError("no"),
        OSError(errno.EPERM, "no"),
        BlockingIOError(errno.EAGAIN, "no", 5),
    ],
)
def test_another_error_is_not_reported_as_a_limit(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(limits, "check", fails)
    with pytest.raises(type(error), match="no"):
        cli("serve", "--port", "0")


def test_an_unlimited_process_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    limits.check("it", 10**9)
