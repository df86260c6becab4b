"""A small DDP job over gloo whose processes stay: with each world it begins a process group.

    python -m rallypoint.bench.kept_ddp_worker FILE

As ddp_worker.py, but for `rallypoint run --keep-workers`: it joins, and asks for the next world.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
from torch.nn.parallel import DistributedDataParallel

import rallypoint
import rallypoint.torch
from rallypoint.bench.ddp_worker import STEP_S, fail
from rallypoint.bench.event_log import EventWriter


def train(world: rallypoint.World, model: torch.nn.Module, log: EventWriter) -> None:
    """Train until the world ends, with one collective for each step."""
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    is_first = True
    while not world.change:
        optimizer.zero_grad()
        wrapped(torch.ones(4, 8)).sum().backward()
        optimizer.step()
        if is_first:
            log.write("stepped", size=world.size)
            is_first = False
        time.sleep(STEP_S)


def main(path: str) -> None:
    """Train, and log when that began and when each world's first step was taken."""
    log = EventWriter(path)
    signal.signal(signal.SIGUSR1, fail)
    torch.set_num_threads(1)
    model = torch.nn.Linear(8, 1)
    log.write("working", pid=os.getpid())
    with rallypoint.join() as run:
        for world in run.worlds():
            with world, rallypoint.torch.process_group(world):
                train(world, model, log)


if __name__ == "__main__":
    main(sys.argv[1])
