"""Many nodes in this process. Prints a line of JSON for each repeat, or keeps step on stdin.

regroup COUNT ENDPOINT REPEATS            one node leaves, each time
store COUNT ENDPOINT REPEATS OPS          one node, blocking API
store_together COUNT ENDPOINT REPEATS OPS many at once
barrier COUNT ENDPOINT REPEATS
rounds COUNT ENDPOINT ROUNDS              so many rounds between two lines on stdin
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import rallypoint
import rallypoint.aio as aio
from rallypoint.core.values import Change


def show(**values: Any) -> None:
    """One repeat's result."""
    print(json.dumps(values), flush=True)


async def meet(
    run_id: str, count: int, endpoint: str, spare: int = 0
) -> tuple[list[aio.Run], list[aio.World]]:
    """So many nodes in one round, `spare` of which may go. The first is the host, if one is."""
    least = count - spare
    host = await aio.join(run_id, endpoint, min_nodes=least, max_nodes=count)
    joins = (aio.join(run_id, endpoint, min_nodes=least, max_nodes=count) for _ in range(count - 1))
    runs = [host, *await asyncio.gather(*joins)]
    return runs, await next_worlds(runs)


async def next_worlds(runs: Sequence[aio.Run]) -> list[aio.World]:
    """All ask at once."""
    worlds = await asyncio.gather(*(run.next_world() for run in runs))
    found = [world for world in worlds if world is not None]
    assert len(found) == len(runs)
    return found


async def regroup(count: int, endpoint: str, repeats: int) -> None:
    """The host of the coordinator stays; another one leaves each time."""
    runs, worlds = await meet("regroup", count, endpoint, spare=repeats)
    for _ in range(repeats):
        leaver = runs.pop()
        staying = list(zip(runs, worlds[: len(runs)], strict=True))
        began_s = time.monotonic()
        waits = [asyncio.create_task(_next_when_told(run, world)) for run, world in staying]
        await leaver.leave("to be measured")
        worlds = await asyncio.gather(*waits)
        show(ms=(time.monotonic() - began_s) * 1_000)
        assert {world.size for world in worlds} == {len(staying)}


async def _next_when_told(run: aio.Run, world: aio.World) -> aio.World:
    told: asyncio.Future[Change] = asyncio.get_running_loop().create_future()
    world.on_change(told.set_result)
    await told
    found = await run.next_world()
    assert found is not None
    return found


async def store_together(count: int, endpoint: str, repeats: int, ops: int) -> None:
    """Each node waits for its own answers only."""
    _, worlds = await meet("store-together", count, endpoint)

    async def add(world: aio.World) -> None:
        for _ in range(ops):
            await world.store.add("counter", 1)

    for _ in range(repeats):
        began_s = time.monotonic()
        await asyncio.gather(*map(add, worlds))
        show(ops_per_s=count * ops / (time.monotonic() - began_s))


def store(endpoint: str, repeats: int, ops: int) -> None:
    """One node through the blocking API."""
    world = rallypoint.join("store", endpoint, min_nodes=1).next_world()
    assert world is not None
    for _ in range(repeats):
        began_s = time.monotonic()
        for index in range(ops):
            world.store.set(f"key-{index}", b"12345678")
        show(ops_per_s=ops / (time.monotonic() - began_s))


async def barrier(count: int, endpoint: str, repeats: int) -> None:
    """All at once."""
    _, worlds = await meet("barrier", count, endpoint)
    for index in range(repeats):
        began_s = time.monotonic()
        await asyncio.gather(*(world.barrier(f"barrier-{index}") for world in worlds))
        show(ms=(time.monotonic() - began_s) * 1_000)


async def rounds(count: int, endpoint: str, number: int) -> None:
    """Whoever counts says when."""
    runs, _ = await meet("rounds", count, endpoint)
    print("met", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for _ in range(number):
        await next_worlds(runs)
    print("done", flush=True)
    await asyncio.sleep(60)  # nobody's goodbye is to be counted: it will be killed


def main() -> None:
    """See above. The process ends without goodbyes: they are another matter."""
    what, count, endpoint = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    numbers = [int(each) for each in sys.argv[4:]]
    match what:
        case "store":
            store(endpoint, *numbers)
        case "store_together":
            asyncio.run(store_together(count, endpoint, *numbers))
        case "regroup":
            asyncio.run(regroup(count, endpoint, *numbers))
        case "barrier":
            asyncio.run(barrier(count, endpoint, *numbers))
        case "rounds":
            asyncio.run(rounds(count, endpoint, *numbers))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
