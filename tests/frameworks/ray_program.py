"""A driver of Ray whose actors train together: see test_ray.py. Ray starts a lost actor again.

`ray_program.py ENDPOINT FOLDER`: the folder is for Ray's own files.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import ray

import rallypoint

STEPS = 50


@ray.remote(max_restarts=1, max_task_retries=1)
class Trainer:
    def __init__(self) -> None:
        self.step = 0

    def train(self, endpoint: str) -> int:
        """Train until a round has had enough steps. Returns the last step."""
        with rallypoint.join(
            "job", endpoint, min_nodes=2, max_nodes=2, suspect_after_s=4.0, lost_after_s=8.0
        ) as run:
            for world in run.worlds():
                with world:
                    self._agree(world)
                    self._train(world)
                if world.change is None:
                    run.close("trained")
        return self.step

    def _agree(self, world: rallypoint.World) -> None:
        """All go on from the last step: a new actor is at 0, and another may be a step behind."""
        world.store.set(f"step/{world.rank}", str(self.step))
        steps = world.store.multi_get([f"step/{rank}" for rank in range(world.size)])
        self.step = max(map(int, steps))

    def _train(self, world: rallypoint.World) -> None:
        begun = self.step
        # The first round goes on until it is broken.
        while self.step < begun + STEPS or world.number == 1:
            world.barrier(f"step {self.step}", 120)
            self.step += 1
            if self.step == begun + 5:
                print(
                    f"round {world.number}: rank {world.rank} of {world.size} has begun at "
                    f"step {begun}, pid {os.getpid()}",
                    flush=True,
                )


def main(endpoint: str, folder: str) -> None:
    ray.init(
        "local", num_cpus=2, include_dashboard=False, object_store_memory=10**8, _temp_dir=folder
    )
    trainers: list[Any] = [Trainer.remote() for _ in range(2)]  # type: ignore[attr-defined]
    steps = ray.get([each.train.remote(endpoint) for each in trainers])
    print(f"trained to step {max(steps)}", flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
