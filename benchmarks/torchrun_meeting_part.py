"""Handlers from torch's registry that meet, each in a process of its own. Prints the times.

    python -m benchmarks.torchrun_meeting_part BACKEND COUNT PORT

Everything is imported once, and the processes are forked after that, so that the time is that of
the rendezvous alone. All processes exist before any of them calls. Each prints a line of JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from typing import Any, NoReturn

from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

import rallypoint.client.hosting
import rallypoint.rendezvous.rallypoint_rendezvous  # noqa: F401

HEAD_START_S = 0.5
PR_SET_PDEATHSIG = 1


def meet(backend: str, count: int, port: int, start_s: float) -> dict[str, Any]:
    """Make a handler and meet: when the handler was asked for, was called, and returned."""
    params = RendezvousParameters(
        backend, f"127.0.0.1:{port}", "meeting", count, count, local_addr="127.0.0.1"
    )
    time.sleep(max(0.0, start_s - time.monotonic()))
    asked_s = time.monotonic()
    handler = get_rendezvous_handler(params)
    called_s = time.monotonic()
    info = handler.next_rendezvous()
    met_s = time.monotonic()
    assert info.world_size == count
    _kept.append(handler)
    return {"asked_s": asked_s, "called_s": called_s, "met_s": met_s, "rank": info.rank}


_kept: list[Any] = []
"""The host's handler must stay until the others have met."""


def one(backend: str, count: int, port: int, start_s: float, write_fd: int) -> NoReturn:
    """Run a forked process until it is killed, by its parent or with it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        found = meet(backend, count, port, start_s)
    except Exception as error:  # noqa: BLE001  (it is reported, and ends the measurement)
        found = {"error": f"{type(error).__name__}: {error}"}
    os.write(write_fd, json.dumps(found).encode() + b"\n")
    while True:
        signal.pause()


def main() -> None:
    """Fork, print a line from each, and kill them: goodbyes are not measured."""
    backend, count, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    start_s = time.monotonic() + HEAD_START_S + 0.02 * count
    read_fd, write_fd = os.pipe()
    children = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            one(backend, count, port, start_s, write_fd)
        children.append(pid)
    os.close(write_fd)
    try:
        with os.fdopen(read_fd, encoding="ascii") as lines:
            for _ in range(count):
                print(lines.readline(), end="", flush=True)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
