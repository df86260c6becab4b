"""Processes with JAX: see test_jax.py.

`jax_program.py worlds ENDPOINT NODE` goes on over several worlds in one process.
`jax_program.py worker` is a worker of `rallypoint run`; `kept` is one that goes on in its process.
`jax_program.py late ENDPOINT NODE FOLDER ROUND WHERE`: rank 0 ends JAX first, in each world. In
this round it fails, "inside" or "outside" of the iteration. In the next the run is closed.
`jax_program.py leaves FILE` is a worker that leaves at a step on which all agree.
`jax_program.py alone ENDPOINT` initializes JAX in a world of two, and the other leaves.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax._src import distributed, xla_bridge
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import rallypoint.jax

STEPS = 50
LATE_S = 0.5
ALONE_S = 6.0
WITHIN_S = 60.0
KEPT: list[object] = []


def say(*words: object) -> None:
    """In one piece: print writes the end of a line on its own, and another thread comes between."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


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


def train(world: rallypoint.World, last_size: int, enough: int = STEPS) -> bool:
    """Sum up until the world ends; True if it has `last_size` members and has done enough."""
    steps = 0
    while steps < enough or world.size != last_size:
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
        train_on(run)


def train_on(run: rallypoint.Run) -> None:
    for world in rallypoint.jax.worlds(run):
        is_trained = False
        with world:
            is_trained = train(world, 2)
        say(f"round {world.number} ended: {world.change.kind if world.change else 'trained'}")
        if is_trained:
            run.close("trained")


def kept() -> None:
    with rallypoint.join() as run:
        train_on(run)


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
        if world.rank == 1:
            time.sleep(ALONE_S)  # as a rank that saves the model
        jax.distributed.shutdown()


def leaves(file: str) -> None:
    path = Path(file)
    with rallypoint.join() as run:
        for world in run.worlds():
            with world:
                rallypoint.jax.initialize(world)
                if world.rank == 0:
                    world.claim(path)
                world.barrier("claimed")
                first = step = int(path.read_text()) if path.exists() else 0
                say(f"round {world.number}: rank {world.rank} goes on from step {step}")
                # The first round goes on until a node leaves.
                while (world.number == 1 or step < first + 5) and not world.change:
                    if world.should_yield(step):
                        say(f"stops at step {step}")
                        if world.rank == 0:
                            with world.fenced(path) as saved:
                                saved.write(str(step).encode())
                        world.barrier("saved")
                        break
                    assert total(1.0) == world.size
                    step += 1
                    time.sleep(0.02)
                jax.distributed.shutdown()
                if world.number > 1:
                    run.close("trained")


def shut_down_late(folder: Path) -> None:
    """Only when rank 0 has ended JAX, and LATE_S more, as a process that is slow or stopped."""
    shut_down = jax.distributed.shutdown

    def late() -> None:
        state = distributed.global_state
        has_ended = folder / f"{state.coordinator_address} has ended"
        if state.process_id > 0:
            deadline_s = time.monotonic() + WITHIN_S
            while not has_ended.exists():
                assert time.monotonic() < deadline_s, has_ended
                time.sleep(0.01)
            time.sleep(LATE_S)
        shut_down()
        has_ended.touch()

    jax.distributed.shutdown = late


def late(endpoint: str, node: str, folder: str, fails_in: str, where: str) -> None:
    shut_down_late(Path(folder))
    run = rallypoint.join(
        "job", endpoint, node_name=node, min_nodes=2, max_nodes=3, last_call_s=0.1
    )
    worlds = rallypoint.jax.worlds(run)
    if where == "inside":
        KEPT.extend([run, worlds])  # so that only the end of the interpreter ends them
    with contextlib.nullcontext() if where == "inside" else run:
        for world in worlds:
            fails = world.rank == 0 and world.number == int(fails_in)
            is_last = world.number > int(fails_in)
            is_trained = False
            # As an object may do that a program keeps. Then JAX keeps its connection to rank 0.
            KEPT.append(distributed.global_state.client)
            with world:
                is_trained = train(
                    world, world.size if fails or is_last else 0, 5 if fails else STEPS
                )
            if fails:
                raise RuntimeError("rank 0 fails")
            say(f"round {world.number} ended")
            if is_trained:
                run.close("trained")
            if where == "inside":
                break


def alone(endpoint: str) -> None:
    with rallypoint.join("job", endpoint, node_name="a", min_nodes=2, last_call_s=0.1) as run:
        world = run.next_world()
        assert world is not None
        try:
            rallypoint.jax.initialize(world)
        except rallypoint.RoundBrokenError as error:
            say(f"not initialized: {error}")


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "worker":
        as_worker()
    elif command == "kept":
        kept()
    elif command == "worlds":
        over_worlds(*arguments)
    elif command == "leaves":
        leaves(*arguments)
    elif command == "late":
        late(*arguments)
    else:
        alone(*arguments)
