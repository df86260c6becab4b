"""A worker that leaves at a step on which all agree, and logs each step that it has trained.

    python -m rallypoint.bench.yielding_worker FILE

Each step is a barrier of all workers: one that stopped alone would leave the others there. It goes
on from the last checkpoint, a file beside FILE that all workers of the machine use. SIGUSR1 makes
it hang outside the barrier. It reports each step as its progress.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import rallypoint
from rallypoint.bench.event_log import EventWriter
from rallypoint.client.blocking import World

STEP_S: Final = 0.02
Train = Callable[[int], object]
"""Trains one step, with a collective of all workers."""


def _barriers(world: World) -> Train:
    return lambda step: world.barrier(f"step {step}")


def load_data() -> None:
    """Hang, as a dead file server makes a program hang. The name is in the worker's stack."""
    while True:
        time.sleep(60)


def main(
    path: str,
    begin: Callable[[World], Train] = _barriers,
    end: Callable[[], object] = lambda: None,
) -> None:
    """Train in each world until all stop. `begin`, `end`: called at the ends of each world."""
    log = EventWriter(path)
    saved = Path(path).with_name("checkpoint")
    log.write("working", pid=os.getpid())
    signal.signal(signal.SIGUSR1, lambda *_: load_data())
    with rallypoint.join() as run:
        for world in run.worlds():
            with contextlib.suppress(rallypoint.RoundBrokenError), world:
                _train(world, log, saved, begin(world))
                end()


def _train(world: World, log: EventWriter, saved: Path, train: Train) -> None:
    if world.rank == 0:
        world.claim(saved)
    world.barrier("claimed")
    step = int(saved.read_text()) if saved.exists() else 0
    while not world.change:
        if world.should_yield(step):
            if world.rank == 0:
                with world.fenced(saved) as file:
                    file.write(str(step).encode())
            world.barrier("saved")
            return
        log.write("advanced", step=step)
        world.progress(step)
        train(step)
        log.write("trained", step=step, round=world.number, size=world.size)
        step += 1
        time.sleep(STEP_S)


if __name__ == "__main__":
    main(sys.argv[1])
