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
STEP_S = 0.05


def note(event: str, **more: Any) -> None:
    """One line of JSON, at once."""
    line = {"event": event, "at_s": time.monotonic(), **more}
    os.write(_fd, json.dumps(line).encode() + b"\n")


def train() -> None:
    """Steps of a tiny model for ever, one collective each."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    note("worker_imported")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = DistributedDataParallel(torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    is_first = True
    while True:
        optimizer.zero_grad()
        model(torch.ones(4, 8)).sum().backward()
        optimizer.step()
        if is_first:
            note("stepped", size=dist.get_world_size(), rank=dist.get_rank())
            is_first = False
        time.sleep(STEP_S)


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
