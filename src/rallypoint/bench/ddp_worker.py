"""A small DDP job over gloo, which logs when it has taken its first step.

    python -m rallypoint.bench.ddp_worker FILE

It imports torch like any DDP script. That takes most of the time until a new round's first step.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Final

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from rallypoint.bench.event_log import EventWriter

STEP_S: Final = 0.05


def train(on_first_step: Callable[[], None]) -> None:
    """Train a tiny model for ever, with one collective for each step."""
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
            on_first_step()
            is_first = False
        time.sleep(STEP_S)


def fail(*_: object) -> None:
    """The handler of SIGUSR1."""
    raise ValueError("a bad batch")


def main(path: str) -> None:
    """Train, and log when that began and when the first step was taken. SIGUSR1 makes it fail."""
    log = EventWriter(path)
    signal.signal(signal.SIGUSR1, fail)
    log.write("working", pid=os.getpid())
    train(lambda: log.write("stepped", size=dist.get_world_size()))


if __name__ == "__main__":
    main(sys.argv[1])
