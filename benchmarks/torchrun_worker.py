"""A worker for torchrun: a small DDP job, or nothing at all. It writes an event log.

    torchrun ... benchmarks/torchrun_worker.py train|idle

It imports torch like any DDP script. That takes most of the time until a new round's first step.
"""

from __future__ import annotations

import os
import signal
import sys

from rallypoint.bench.event_log import EventWriter

_log = EventWriter(os.environ["BENCHMARK_LOG"])


def train() -> None:
    """The job of `rallypoint bench recover --ddp`: steps of a tiny model for ever."""
    import torch.distributed as dist

    from rallypoint.bench import ddp_worker

    _log.write("worker_imported")
    ddp_worker.train(
        lambda: _log.write("stepped", size=dist.get_world_size(), rank=dist.get_rank())
    )


if __name__ == "__main__":
    _log.write("worker_began", pid=os.getpid())
    if sys.argv[1] == "idle":
        while True:
            signal.pause()
    try:
        train()
    except Exception as error:
        _log.write("worker_failed", error=str(error)[:200])
        raise
