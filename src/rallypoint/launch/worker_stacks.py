"""Where the workers of this machine stand: by their own dump, by py-spy, or by /proc.

A worker that has joined writes its stacks when it gets a signal. For another one py-spy is asked,
if it is installed. What /proc says is known of each: whether the process is frozen, and where in
the kernel. Everything here is bounded in time and in size; nothing disturbs a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import Final

import msgspec

from rallypoint.core.stacks import UNKNOWN, Place, WorkerStack, place_of, stack

DUMP_WITHIN_S: Final = 0.6
"""How long a worker may take to write its stacks."""
PY_SPY_WITHIN_S: Final = 1.2
LOOK_S: Final = 0.01
QUIET_LOOKS: Final = 3
"""A dump is complete if its file has not grown for so many looks."""
TEXT_BYTES_MIN: Final = 1_024
DESCENDANTS_MAX: Final = 8
STOPPED: Final = "stopped by a signal"
TRACED: Final = "stopped by a debugger"
BLOCKED: Final = "blocked in the kernel"
_STATES: Final = {"T": STOPPED, "t": TRACED, "D": BLOCKED, "Z": "ended", "X": "ended"}
DUMP: Final = "faulthandler"
PY_SPY: Final = "py-spy"
PROC: Final = "/proc"
WAITS_IN: Final = "/proc: it waits in "


class Dump(msgspec.Struct, frozen=True):
    """How a worker writes its stacks: at this signal to this pid, to the end of this file."""

    pid: int
    signal: int
    path: Path


class Asked(msgspec.Struct, frozen=True):
    """A worker whose stacks are wanted. `pid`: of the process that the agent has started."""

    rank: int
    local_rank: int
    pid: int
    dump: Dump | None = None
    step: int | None = None


async def stacks_of(workers: list[Asked], bytes_max: int) -> tuple[WorkerStack, ...]:
    """Where these workers stand, within about 1.5 s. The texts have at most `bytes_max` in all."""
    share = max(TEXT_BYTES_MIN, bytes_max // max(1, len(workers)))
    return tuple(await asyncio.gather(*(_stack_of(each, share) for each in workers)))


async def _stack_of(worker: Asked, bytes_max: int) -> WorkerStack:
    dump = worker.dump
    pid = dump.pid if dump is not None else await asyncio.to_thread(program, worker.pid)
    state, kernel = await asyncio.to_thread(kernel_says, pid)
    text, source = "", PROC
    if state in ("", BLOCKED) and dump is not None:
        text, source = await _dumped(dump), DUMP
    if not text and not state:
        text, source = await _by_py_spy(pid), PY_SPY
    if not text:
        source = PROC
    whole = f"{text.rstrip()}\n{kernel}" if text else kernel
    cut = whole.encode(errors="replace")[:bytes_max].decode(errors="ignore")
    found = stack(worker.rank, worker.local_rank, cut, state=state, step=worker.step, source=source)
    # The whole text says where it stands, whatever was cut.
    place = place_of(text) if text else Place(kernel_place(kernel))
    return msgspec.structs.replace(found, place=str(place), is_waiting=place.is_waiting)


def kernel_place(kernel: str) -> str:
    """Where a process stands, if only /proc says it."""
    _, found, where = kernel.partition(WAITS_IN)
    return f"the kernel, {where.splitlines()[0]}" if found else UNKNOWN


# -- the worker's own dump -------------------------------------------------------------------------


async def _dumped(dump: Dump) -> str:
    """What the worker writes at the signal; "" if it writes nothing in time."""
    before = _size(dump.path)
    try:
        # The pid may be another process by now, which the signal would end.
        if not await asyncio.to_thread(catches, dump.pid, dump.signal):
            return ""
        os.kill(dump.pid, dump.signal)
    except OSError:
        return ""
    size, quiet = before, 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DUMP_WITHIN_S):
            while size == before or quiet < QUIET_LOOKS:
                await asyncio.sleep(LOOK_S)
                now = _size(dump.path)
                size, quiet = now, quiet + 1 if now == size else 0
    return await asyncio.to_thread(_read_from, dump.path, before)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read_from(path: Path, offset: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(1024 * 1024).decode(errors="replace")
    except OSError:
        return ""


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for this signal, as the kernel says."""
    caught = status_of(pid).get("SigCgt", "")
    with contextlib.suppress(ValueError):
        return bool(int(caught, 16) >> (number - 1) & 1)
    return False


# -- py-spy ----------------------------------------------------------------------------------------


def py_spy() -> str | None:
    """The path of py-spy, from PATH or of this environment; None if there is none."""
    return shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))


async def _by_py_spy(pid: int) -> str:
    """What py-spy says; "" if it is not installed, may not look, or takes too long."""
    path = py_spy()
    if path is None:
        return ""
    process = None
    try:
        process = await asyncio.create_subprocess_exec(
            *(path, "dump", "--nonblocking", "--pid", str(pid)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(PY_SPY_WITHIN_S):
            text, _ = await process.communicate()
    except (OSError, TimeoutError):
        return ""
    finally:
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    return text.decode(errors="replace") if process.returncode == 0 else ""


# -- /proc -----------------------------------------------------------------------------------------


def program(pid: int) -> int:
    """The process in which the program runs: a shell script starts it as its only child."""
    for _ in range(DESCENDANTS_MAX):
        if "python" in _read(pid, "comm"):
            return pid
        children = _read(pid, f"task/{pid}/children").split()
        if len(children) != 1:
            return pid
        pid = int(children[0])
    return pid


def kernel_says(pid: int) -> tuple[str, str]:
    """The state of a frozen process in words, "" for any other; and what /proc has of it."""
    known = status_of(pid)
    letter = known.get("State", "?")[:1]
    state = _STATES.get(letter, "")
    if not known:
        return "ended", f"/proc: there is no process {pid}"
    wchan = _read(pid, "wchan").strip()
    lines = [f"/proc: process {pid} ({known.get('Name', '?')}): {known.get('State', '?')}"]
    if wchan not in ("", "0"):
        lines.append(f"{WAITS_IN}{wchan}")
        if letter == "D":
            state = f"{BLOCKED} ({wchan})"
    lines.append(f"/proc: {known.get('Threads', '?')} threads")
    inner = _read(pid, "stack").splitlines()[:16]
    lines += [f"/proc: kernel stack: {line}" for line in inner]
    return state, "\n".join(lines)


def status_of(pid: int) -> dict[str, str]:
    """The lines of /proc/PID/status by name; empty if there is no such process."""
    lines = (line.partition(":") for line in _read(pid, "status").splitlines())
    return {name: value.strip() for name, _, value in lines}


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except (OSError, ValueError):
        return ""
