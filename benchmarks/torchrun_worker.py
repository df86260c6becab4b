"""A worker for torchrun: a small DDP job, or nothing at all. It writes down what happened when.

    torchrun ... benchmarks/torchrun_worker.py train|idle

It imports torch as any DDP script does, which is most of what a new round's first step waits for.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

_fd = os.open(os.environ["BENCHMARK_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)


def note(event: str, **more: Any) -> None:
    """One line of JSON, at once."""
    line = {"event": event, "at_s": time.monotonic(), **more}
    os.write(_fd, json.dumps(line).encode() + b"\n")


def train() -> None:
    """The job of `rallypoint bench recover --ddp`: steps of a tiny model for ever."""
    import torch.distributed as dist

    from rallypoint.bench import ddp_worker

    note("worker_imported")
    ddp_worker.train(lambda: note("stepped", size=dist.get_world_size(), rank=dist.get_rank()))


if __name__ == "__main__":
    note("worker_began", pid=os.getpid())
    if sys.argv[1] == "idle":
        while True:
            signal.pause()
    try:
        train()
    except Exception as error:
        note("worker_failed", error=str(error)[:200])
        raise
