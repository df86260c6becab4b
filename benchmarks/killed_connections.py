"""How the connections of killed nodes end: `python benchmarks/killed_connections.py [--kills 100]`.

When a process is killed while its receive buffer holds an unread message, its kernel sends a reset,
and the node is lost only after the reconnect grace. The guard of a `rallypoint run` sends a FIN
then. This counts how often each happens: it starts real processes, kills them at random moments,
and counts how the coordinator sees each connection end, and how long after the kill.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.core import events as on
from rallypoint.net import bind

LIVE = """
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
NODE = (
    """
import sys, time, rallypoint
how, run_id, endpoint, name, count = sys.argv[1:]
run = rallypoint.join(run_id, endpoint, node_name=name, min_nodes=1, max_nodes=int(count),
                      expected_nodes=int(count), max_restarts=None)
"""
    + LIVE
)
WORKER = (
    """
import sys, time, rallypoint
how, name = sys.argv[1:]
run = rallypoint.join()
"""
    + LIVE
)
WAVE = 10
"""How many nodes run at a time, few enough for one machine."""
KINDS = {
    "idle": "of idle nodes, one at a time",
    "busy": "of nodes that call the store without a pause, one at a time",
    "together": "of idle nodes, ten at once",
    "idle-agents": "of idle agents, one at a time",
    "busy-agents": "of agents whose workers call the store without a pause, one at a time",
    "together-agents": "of idle agents, ten at once",
}


class Ends:
    """How connections ended, and how many seconds after the kill of their node."""

    def __init__(self) -> None:
        self.killed_s: dict[str, float] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.took_s: list[float] = []

    def took(self) -> str:
        """The median and the longest time, in words."""
        median_ms, longest_ms = statistics.median(self.took_s) * 1e3, max(self.took_s) * 1e3
        return f"seen {median_ms:.1f} ms after the kill, {longest_ms:.1f} ms at most"


async def count(port: int, kind: str, kills: int, chance: random.Random) -> Ends:
    """Kill this many nodes, and count how each connection ended."""
    ends = Ends()
    with noting(ends):
        for wave in range(kills // WAVE):
            nodes = await start(port, kind, f"{kind}-{wave}")
            await asyncio.sleep(chance.uniform(1.0, 3.0))
            for name, node in nodes.items():
                ends.killed_s[name] = time.monotonic()
                os.kill(node.pid, signal.SIGKILL)
                if not kind.startswith("together"):
                    await asyncio.sleep(chance.uniform(0.2, 0.6))
            for node in nodes.values():
                await node.wait()
            await asyncio.sleep(1.0)
    return ends


async def start(port: int, kind: str, run_id: str) -> dict[str, asyncio.subprocess.Process]:
    """Start a wave of nodes, by name, and wait until all have met."""
    arguments = agent if kind.endswith("agents") else node
    nodes = {}
    for n in range(WAVE):
        name = f"n{n}"
        nodes[name] = await asyncio.create_subprocess_exec(
            *(sys.executable, *arguments(kind, run_id, f"http://127.0.0.1:{port}", name)),
            stdout=subprocess.PIPE,
        )
    for each in nodes.values():
        assert each.stdout is not None
        while not (line := await each.stdout.readline()).endswith(b"met\n"):
            assert line, "a node has ended"
    return nodes


def node(kind: str, run_id: str, endpoint: str, name: str) -> tuple[str, ...]:
    """The arguments of a program that is a node."""
    how = "busy" if kind == "busy" else "idle"
    return ("-c", NODE, how, run_id, endpoint, name, str(WAVE))


def agent(kind: str, run_id: str, endpoint: str, name: str) -> tuple[str, ...]:
    """The arguments of an agent with one worker.

    Where they are killed one at a time, each has a run of its own: a round that ends would start
    the workers of all others again.
    """
    together = kind.startswith("together")
    run = ("--run-id", run_id if together else f"{run_id}-{name}")
    nodes = ("--nnodes", str(WAVE) if together else "1", "--node-name", name)
    worker = (sys.executable, "-c", WORKER, "busy" if kind.startswith("busy") else "idle", name)
    return (
        "-m",
        "rallypoint.cli",
        "run",
        *run,
        *nodes,
        "--endpoint",
        endpoint,
        "--no-python",
        *worker,
    )


@contextlib.contextmanager
def noting(ends: Ends) -> Iterator[None]:
    post = HostedRun.post

    def noted(self: HostedRun, event: on.Event) -> None:
        if isinstance(event, on.ConnectionLost):
            ends.counts[event.how] += 1
            ends.took_s.append(time.monotonic() - ends.killed_s[event.node.name])
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
            counts = ", ".join(f"{how}: {times}" for how, times in ends.counts.most_common())
            kills = ends.counts.total()
            print(f"{kills} kills {KINDS[kind]}: {counts}; {ends.took()}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
