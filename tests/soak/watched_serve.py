"""`rallypoint serve` that also says how many tasks and objects it has: a program.

    python watched_serve.py FILE [LEAK] serve --ledger ...

LEAK plants a fault, to see that it is found: `logs` are never dropped, `tasks` never end.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from pathlib import Path
from typing import Any

from rallypoint.cli import serving
from rallypoint.cli.main import main
from rallypoint.coordinator.session import Session
from rallypoint.ledger.etcd.ledger import EtcdLedger
from rallypoint.ledger.file import FileLedger

LOOK_EVERY_S = 0.5


def watch(file: Path) -> None:
    """Write the newest numbers into the file, from the loop of the coordinator.

    Not from a thread: another one might just be making an object that is not whole yet.
    """
    factory = serving._loop_factory() or asyncio.new_event_loop

    def look(loop: asyncio.AbstractEventLoop) -> None:
        gc.collect()
        seen = {"tasks": len(asyncio.all_tasks(loop)), "objects": len(gc.get_objects())}
        file.with_suffix(".new").write_text(json.dumps(seen))
        file.with_suffix(".new").replace(file)
        loop.call_later(LOOK_EVERY_S, look, loop)

    def watched() -> asyncio.AbstractEventLoop:
        loop = factory()
        loop.call_later(LOOK_EVERY_S, look, loop)
        return loop

    vars(serving)["_loop_factory"] = lambda: watched


def leak_logs() -> None:
    """The log of a round is never dropped."""

    async def drop_log(self: Any, log: str) -> None:
        pass

    for ledger in (EtcdLedger, FileLedger):
        vars_of: Any = ledger
        vars_of.drop_log = drop_log


def leak_tasks() -> None:
    """Each message of a node leaves a task that never ends."""
    received: Any = Session.received
    kept: list[object] = []

    def leaking(self: Session, *arguments: Any) -> Any:
        kept.append(asyncio.get_running_loop().create_task(asyncio.sleep(1e6)))
        return received(self, *arguments)

    patched: Any = Session
    patched.received = leaking


LEAKS = {"logs": leak_logs, "tasks": leak_tasks}

if __name__ == "__main__":
    watch(Path(sys.argv[1]))
    if sys.argv[2] in LEAKS:
        LEAKS[sys.argv[2]]()
        del sys.argv[2]
    del sys.argv[1]
    main()
