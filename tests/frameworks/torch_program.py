"""A process that trains over several worlds with rallypoint.torch: see test_torch.py.

`torch_program.py ENDPOINT NODE` or `torch_program.py alone`.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist

import rallypoint.torch


def say(*words: object) -> None:
    """In one piece: print writes the end of a line on its own, and another thread comes between."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def train(world: rallypoint.World) -> None:
    """Reduce until the world ends, or until it has two members and has done enough."""
    steps = 0
    while steps < 50 or world.size > 2:
        # Some members learn of the end a step earlier than others.
        state = torch.tensor([1.0, float(world.change is not None)])
        dist.all_reduce(state)
        assert state[0] == world.size
        steps += 1
        if steps == 5:
            say(f"round {world.number}: rank {world.rank} of {world.size} trains")
        if state[1]:
            return


def over_worlds(endpoint: str, node: str) -> None:
    with rallypoint.join(
        "job",
        endpoint,
        node_name=node,
        min_nodes=2,
        max_nodes=3,
        last_call_s=120.0,
        suspect_after_s=4.0,
        lost_after_s=8.0,
    ) as run:
        for world in run.worlds():
            # The test does not wait for so long: what frees a collective is Rallypoint.
            with world, rallypoint.torch.process_group(world, "gloo", timeout=3600):
                train(world)
                if world.change is None:
                    dist.barrier()
            say(f"round {world.number} ended: {world.change.kind if world.change else 'trained'}")
            assert not dist.is_initialized()
            if world.change is None:
                run.close("trained")


def alone() -> None:
    with rallypoint.join(min_nodes=1) as run:
        world = run.next_world()
        assert world is not None
        world.store.set("0", "mine")
        sums = []
        for _ in range(2):
            with rallypoint.torch.process_group(world):
                numbers = torch.ones(1)
                dist.all_reduce(numbers)
                sums.append(numbers.item())
                if len(sums) == 1:
                    refused(world)
        refused(None)
        say(f"sums {sums[0]} {sums[1]}, keys {bytes(world.store.get('0')).decode()}")
        run.close("seen")


def refused(world: object) -> None:
    try:
        with rallypoint.torch.process_group(world):  # type: ignore[arg-type]
            pass
    except rallypoint.UsageError as error:
        say(f"UsageError: {error}")


if __name__ == "__main__":
    alone() if sys.argv[1:] == ["alone"] else over_worlds(*sys.argv[1:])
