"""A worker that counts in its round's store, and writes down every answer that it was given.

    FAILOVER_LOG=file python counting_worker.py [PAUSE_FILE [FAIL_FILE]]

While PAUSE_FILE is there it adds nothing; once FAIL_FILE is, it takes that away and fails.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rallypoint

EVERY_S = float(os.environ.get("FAILOVER_EVERY_S", "0.1"))
_fd = os.open(os.environ["FAILOVER_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)


def note(event: str, **more: Any) -> None:
    """One line of JSON, at once."""
    line = {"event": event, "at_s": time.monotonic(), "pid": os.getpid(), **more}
    os.write(_fd, json.dumps(line).encode() + b"\n")


def count(world: rallypoint.World, pause: Path, fail: Path) -> None:
    is_paused = False
    while world.change is None:
        if took(fail):
            raise ValueError("asked to fail")
        if pause.exists() != is_paused:
            is_paused = not is_paused
            note_pause(world, is_paused)
        if not is_paused:
            note("asked", round=world.number)
            note("added", round=world.number, value=world.store.add("total", 1))
        time.sleep(EVERY_S)


def took(fail: Path) -> bool:
    """Whether the file was there, and it is this worker that took it away."""
    try:
        fail.unlink()
    except FileNotFoundError:
        return False
    return True


def note_pause(world: rallypoint.World, is_paused: bool) -> None:
    """How much has been counted, as a write that changes nothing sees it."""
    asked_s = time.monotonic()
    told = {"round": world.number, "asked_s": asked_s, "total": world.store.add("total", 0)}
    note("paused" if is_paused else "resumed", **told)


Work = Callable[[rallypoint.World, Path, Path], None]


def main(pause: Path, fail: Path, work: Work = count) -> None:
    """In each round, write down which one it is, and `work`."""
    run = rallypoint.join()
    for world in run.worlds():
        told = {"term": world.term, "round": world.number, "restarts": world.restart_count}
        with world:
            members = [member.name for member in world.members]
            note("working", rank=world.rank, size=world.size, members=members, **told)
            work(world, pause, fail)


if __name__ == "__main__":
    paths = [*map(Path, sys.argv[1:]), *[Path("/nonexistent")] * 2]
    main(paths[0], paths[1])
