"""How the connections of killed nodes end: `python benchmarks/killed_connections.py [--kills 100]`.

When a process is killed while its receive buffer holds an unread message, its kernel sends a reset,
and the node is lost only after the reconnect grace. This counts how often that happens: it starts
real processes, kills them at random moments, and counts how the coordinator sees each connection
end.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator

from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.core import events as on
from rallypoint.net import bind

NODE = """
import sys, time, rallypoint
how, run_id, endpoint, name, count = sys.argv[1:]
run = rallypoint.join(run_id, endpoint, node_name=name, min_nodes=1, max_nodes=int(count),
                      expected_nodes=int(count), max_restarts=None)
for world in run.worlds():
    print("met", flush=True)
    while not world.change:
        if how == "busy":
            try:
                world.store.set(name, b"x")
            except rallypoint.RallypointError:
                break
        else:
            time.sleep(0.05)
"""
WAVE = 10
"""How many nodes run at a time, few enough for one machine."""
KINDS = {
    "idle": "of idle nodes, one at a time",
    "busy": "of nodes that call the store without a pause, one at a time",
    "together": "of idle nodes, ten at once",
}


async def count(
    port: int, kind: str, kills: int, chance: random.Random
) -> collections.Counter[str]:
    """Kill this many nodes, and count how each connection ended."""
    ends: collections.Counter[str] = collections.Counter()
    with noting(ends):
        for wave in range(kills // WAVE):
            nodes = await start(port, kind, f"{kind}-{wave}")
            await asyncio.sleep(chance.uniform(1.0, 3.0))
            for node in nodes:
                os.kill(node.pid, signal.SIGKILL)
                if kind != "together":
                    await asyncio.sleep(chance.uniform(0.2, 0.6))
            for node in nodes:
                await node.wait()
            await asyncio.sleep(1.0)
    return ends


async def start(port: int, kind: str, run_id: str) -> list[asyncio.subprocess.Process]:
    how = "busy" if kind == "busy" else "idle"
    nodes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", NODE, how, run_id),
            *(f"http://127.0.0.1:{port}", f"n{n}", str(WAVE)),
            stdout=subprocess.PIPE,
        )
        for n in range(WAVE)
    ]
    for node in nodes:
        assert node.stdout is not None
        await node.stdout.readline()
    return nodes


@contextlib.contextmanager
def noting(ends: collections.Counter[str]) -> Iterator[None]:
    post = HostedRun.post

    def noted(self: HostedRun, event: on.Event) -> None:
        if isinstance(event, on.ConnectionLost):
            ends[event.how] += 1
        post(self, event)

    HostedRun.post = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        HostedRun.post = post  # type: ignore[method-assign]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    chosen = parser.parse_args()
    sock = bind("127.0.0.1", 0)
    async with CoordinatorServer() as server:
        await server.start([sock])
        for kind in chosen.kinds:
            chance = random.Random(chosen.seed)
            ends = await count(sock.getsockname()[1], kind, chosen.kills, chance)
            counts = ", ".join(f"{how}: {times}" for how, times in ends.most_common())
            print(f"{sum(ends.values())} kills {KINDS[kind]}: {counts}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
