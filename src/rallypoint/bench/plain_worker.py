"""A worker that does nothing, and logs when it started and when it was notified of a change.

    python -m rallypoint.bench.plain_worker FILE

Its one step is a barrier of all workers. Rallypoint's callback or the agent's SIGTERM
notifies it of a change. SIGUSR1 makes it fail like a program whose peer is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

import rallypoint
from rallypoint.bench.event_log import EventWriter


def _fail(*_: object) -> None:
    raise ConnectionResetError("Connection reset by peer")


def main(path: str) -> None:
    """Join, take the step, and wait for a signal for ever."""
    log = EventWriter(path)

    def terminated(*_: object) -> None:
        log.write("worker_told", by="SIGTERM")
        os._exit(0)

    signal.signal(signal.SIGUSR1, _fail)
    signal.signal(signal.SIGTERM, terminated)
    run = rallypoint.join()
    world = run.next_world()
    assert world is not None
    world.on_change(lambda change: log.write("worker_told", by="callback"))
    log.write("working", pid=os.getpid(), round=world.number)
    with contextlib.suppress(rallypoint.RoundBrokenError):
        world.barrier("the first step")
        log.write("stepped", round=world.number, size=world.size)
    while True:
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1])
