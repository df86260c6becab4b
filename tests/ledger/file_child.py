"""A process that writes to a ledger in files: `python file_child.py FOLDER ACTION ...`."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

from rallypoint.errors import LedgerError
from rallypoint.ledger.contract import Conflict, Created, Swapped, Unknown
from rallypoint.ledger.file.chain import SEGMENT
from rallypoint.ledger.file.ledger import FileLedger

# -- crash: the same action on copies of a ledger, killed one step later each time ----------------


async def _prepare(folder: Path, action: str) -> dict[str, object]:
    """Prepare the ledger before the action. Returns what the test has to know."""
    if action == "open":
        return {"ledger_id": "", "versions": [], "keys": []}
    async with FileLedger(folder) as ledger:
        versions: list[int] = []
        await ledger.swap("another", None, b"stays")
        times = {"create": 0, "cross": SEGMENT}.get(action, 2)
        for _ in range(times):
            outcome = await ledger.swap("register", versions[-1] if versions else None, b"before")
            assert isinstance(outcome, Swapped)
            versions.append(outcome.version)
        if action != "create":
            for index in range(2):
                assert await ledger.append("log", index, b"%d" % index) == Created()
        return {"ledger_id": ledger.ledger_id, "versions": versions, "keys": ["another"]}


async def _act(folder: Path, action: str, step: int) -> None:
    left = [step if action == "open" else -1]

    def on_step(_name: str) -> None:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    async with FileLedger(folder, on_step=on_step) as ledger:
        now = await ledger.read("register")
        left[0] = -1 if action == "open" else step
        if action == "create":
            assert isinstance(await ledger.swap("register", None, b"new"), Swapped)
        elif action in ("swap", "cross"):
            assert now is not None
            assert isinstance(await ledger.swap("register", now.version, b"new"), Swapped)
        elif action == "delete":
            await ledger.delete("register")
        elif action == "append":
            assert await ledger.append("log", 2, b"new") == Created()
        elif action == "drop":
            await ledger.drop_log("log")


def crash(parent: Path, action: str) -> None:
    before = parent / "before"
    told = asyncio.run(_prepare(before, action))
    (parent / "before.json").write_text(json.dumps(told))
    step = 0
    while True:
        folder = parent / f"step-{step}"
        if before.exists():
            shutil.copytree(before, folder)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            asyncio.run(_act(folder, action, step))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(json.dumps({"step": step, "killed": killed}))
        if not killed:
            sys.exit(os.waitstatus_to_exitcode(status))
        step += 1


# -- the others ---------------------------------------------------------------------------------


async def freeze(folder: Path, version: int, step: str) -> None:
    """One swap, stopped before the first step of this name. Prints its outcome."""
    armed = [False]

    def on_step(name: str) -> None:
        if armed[0] and name.split()[0] == step:
            armed[0] = False
            # To this very thread, which then stops at once: one sent to the process may be taken by
            # another thread, and this one get as far as its link before it stops.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    async with FileLedger(folder, on_step=on_step, timeout_s=60) as ledger:
        await ledger.read("run")
        armed[0] = True
        outcome = await ledger.swap("run", version, b"late")
        current = outcome.current if isinstance(outcome, Conflict) else None
        print(json.dumps([type(outcome).__name__, current.version if current else None]))


async def write(folder: Path, writer: int, rounds: int) -> None:
    """Write marks into one register and records into one log. Print the indexes of the records."""
    async with FileLedger(folder, timeout_s=30) as ledger:
        for number in range(rounds):
            mark = f"{writer}.{number}".encode()
            while True:
                now = await ledger.read("list")
                if now is not None and mark in now.value.split():
                    break  # an outcome that was unknown, and done
                value = now.value + b" " + mark if now else mark
                outcome = await ledger.swap("list", now.version if now else None, value)
                if isinstance(outcome, Swapped):
                    break
        mine: list[int] = []
        index = 0
        while len(mine) < rounds:
            created = await ledger.append("log", index, f"{writer}.{len(mine)}".encode())
            assert not isinstance(created, Unknown), created
            if isinstance(created, Created):
                mine.append(index)
            index += 1
        print(json.dumps(mine))


async def real(folder: Path, kind: str) -> None:
    """Prints the error that a really full or read-only disk gives."""
    try:
        async with FileLedger(folder) as ledger:
            assert kind == "full later", "it was opened"
            version, outcome = None, None
            for _ in range(100):
                outcome = await ledger.swap("run", version, bytes(600_000))
                if not isinstance(outcome, Swapped):
                    break
                version = outcome.version
            assert isinstance(outcome, Unknown), outcome
            assert type(outcome.error).__name__ == "LedgerFullError", outcome
            now = await ledger.read("run")
            assert now is not None
            assert now.version == version
            print(kind)
    except LedgerError as error:
        print(type(error).__name__)


def main() -> None:
    folder, action, *rest = Path(sys.argv[1]), *sys.argv[2:]
    if action == "crash":
        crash(folder, rest[0])
    elif action == "freeze":
        asyncio.run(freeze(folder, int(rest[0]), rest[1]))
    elif action == "write":
        asyncio.run(write(folder, int(rest[0]), int(rest[1])))
    else:
        asyncio.run(real(folder, rest[0]))


if __name__ == "__main__":
    main()
