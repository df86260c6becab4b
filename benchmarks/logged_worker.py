"""A worker that does nothing, and writes down when it started and when it heard of a change.

It hears by Rallypoint's callback or by the agent's SIGTERM, whichever comes first; SIGUSR1 makes it
fail as a program does whose peer is gone.
"""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import rallypoint

_fd = os.open(os.environ["BENCHMARK_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)


def note(event: str, **more: Any) -> None:
    """One line of JSON, at once."""
    line = {"event": event, "at_s": time.monotonic(), **more}
    os.write(_fd, json.dumps(line).encode() + b"\n")


def _fail(*_: object) -> None:
    raise ConnectionResetError("Connection reset by peer")


def _terminated(*_: object) -> None:
    note("worker_told", by="SIGTERM")
    os._exit(0)


def main() -> None:
    """Join, and wait for a signal for ever."""
    signal.signal(signal.SIGUSR1, _fail)
    signal.signal(signal.SIGTERM, _terminated)
    run = rallypoint.join()
    world = run.next_world()
    assert world is not None
    world.on_change(lambda change: note("worker_told", by="callback"))
    note("working", pid=os.getpid(), round=world.number)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
