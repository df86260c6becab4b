"""Processes with JAX: see test_jax.py.

`jax_program.py worlds ENDPOINT NODE` goes on over several worlds in one process.
`jax_program.py worker` is a worker of `rallypoint run`.
"""

from __future__ import annotations

import os
import sys
import time

import jax
import numpy as np
from jax._src import xla_bridge
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import rallypoint.jax

STEPS = 50


def say(*words: object) -> None:
    print(*words, flush=True)


def total(number: float) -> float:
    """The sum of the numbers of all processes, each of which has one device."""
    devices = jax.devices()
    mesh = Mesh(devices, ("d",))
    parts = jax.make_array_from_callback(
        (len(devices),),
        NamedSharding(mesh, PartitionSpec("d")),
        lambda place: np.full((1,), number, np.float32),
    )
    summed = jax.shard_map(
        lambda x: jax.lax.psum(x, "d"),
        mesh=mesh,
        in_specs=PartitionSpec("d"),
        out_specs=PartitionSpec(),
    )
    return float(jax.jit(summed)(parts)[0])


def train(world: rallypoint.World, last_size: int) -> bool:
    """Sum up until the world ends; True if it has `last_size` members and has done enough."""
    steps = 0
    while steps < STEPS or world.size != last_size:
        assert total(1.0) == world.size == jax.process_count()
        if total(float(world.change is not None)):
            return False
        steps += 1
        if steps == 5:
            say(
                f"round {world.number}: rank {world.rank} of {world.size} trains, pid {os.getpid()}"
            )
        time.sleep(0.02)
    return True


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
        for world in rallypoint.jax.worlds(run):
            is_trained = False
            with world:
                is_trained = train(world, 2)
            say(f"round {world.number} ended: {world.change.kind if world.change else 'trained'}")
            if is_trained:
                run.close("trained")


def as_worker() -> None:
    with rallypoint.join() as run:
        world = run.next_world()
        assert world is not None
        rallypoint.jax.initialize(world)
        visible = xla_bridge.CUDA_VISIBLE_DEVICES.value
        say(f"round {world.number}: rank {world.rank} of {world.size} sees GPU {visible}")
        # The first round goes on until it is broken.
        assert train(world, 0 if world.number == 1 else 4)
        say("trained")
        jax.distributed.shutdown()


if __name__ == "__main__":
    as_worker() if sys.argv[1] == "worker" else over_worlds(*sys.argv[2:])
