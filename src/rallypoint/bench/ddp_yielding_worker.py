"""A small DDP job over gloo that leaves at a step on which all agree.

python -m rallypoint.bench.ddp_yielding_worker FILE
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from rallypoint.bench import yielding_worker
from rallypoint.client.blocking import World


def begin(world: World) -> yielding_worker.Train:
    """Start a tiny model. Each step has one collective."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = DistributedDataParallel(torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train(step: int) -> None:
        optimizer.zero_grad()
        model(torch.ones(4, 8)).sum().backward()
        optimizer.step()

    return train


if __name__ == "__main__":
    yielding_worker.main(sys.argv[1], begin, dist.destroy_process_group)
