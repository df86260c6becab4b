"""Small nodes that regroup as quickly as they may, several runs in one process: a program.

    python nodes.py ENDPOINT RUNS ROUNDS NAME

It prints a line of JSON for each look at itself: rounds so far, tasks, objects. It ends when each
run has had as many rounds, and one of its two nodes has closed it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time

import rallypoint.aio

LASTS_S = 0.06
"""A run whose rounds end sooner again and again is closed as one that cannot work."""
PAYLOAD = b"x" * 2_000
WRITES = 4
LOOK_EVERY_S = 0.5


class Nodes:
    """The nodes of one process."""

    def __init__(self, endpoint: str, rounds: int, name: str) -> None:
        self.endpoint = endpoint
        self.rounds = rounds
        self.name = name
        self.done = 0

    async def run(self, runs: int) -> None:
        """Until all runs are closed."""
        looking = asyncio.create_task(self.look())
        await asyncio.gather(*(self.node(f"soak-{number}") for number in range(runs)))
        looking.cancel()

    async def node(self, run_id: str) -> None:
        """One node: a round, some writes, and the next round at once."""
        joined = await rallypoint.aio.join(
            run_id, self.endpoint, min_nodes=2, max_nodes=2, node_name=self.name,
            host_coordinator="no",
        )  # fmt: skip
        async with joined as run:
            async for world in run.worlds():
                async with world:
                    began_s = time.monotonic()
                    for number in range(WRITES):
                        await world.store.set(f"{self.name}-{number}", PAYLOAD)
                    total = await world.store.add("total", 1)
                    assert total in (1, 2), f"a write of another round is in this one: {total}"
                    await world.barrier("all have written")
                    self.done += 1
                    if world.number >= self.rounds and world.rank == 0:
                        await run.close("enough rounds")
                    # Not a wait for anything: this is how long the work of a round takes.
                    await asyncio.sleep(max(0.0, LASTS_S - (time.monotonic() - began_s)))

    async def look(self) -> None:
        """Print what this process has."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            gc.collect()
            tasks, objects = len(asyncio.all_tasks()), len(gc.get_objects())
            seen = {"rounds": self.done, "tasks": tasks, "objects": objects}
            print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    endpoint, runs, rounds, name = sys.argv[1:]
    asyncio.run(Nodes(endpoint, int(rounds), name).run(int(runs)))
