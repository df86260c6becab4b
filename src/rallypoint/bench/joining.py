"""Nodes that call `rallypoint.join()`, as threads of a process that has imported everything before.

    python -m rallypoint.bench.joining THREADS NODES PORT

It prints a line when it has imported everything, and reads from stdin the `time.monotonic()` at
which all threads are to call. Then it prints a `Met` in JSON, and stays until it is killed: one of
its nodes may host the coordinator that the other processes still need.
"""

from __future__ import annotations

import os
import sys
import threading
import time

import msgspec

import rallypoint
import rallypoint.client.blocking
import rallypoint.client.hosting
import rallypoint.client.join_plan


class Met(msgspec.Struct, frozen=True):
    """When the first thread called, and when the last one had its World: `time.monotonic()`."""

    called_s: float
    met_s: float


def main(threads: int, nodes: int, port: int) -> None:
    """See above. Never returns."""
    calls: list[tuple[float, float, rallypoint.Run]] = []
    start_s = 0.0
    gate = threading.Barrier(threads + 1)

    def node() -> None:
        gate.wait()
        time.sleep(max(0.0, start_s - time.monotonic()))
        called_s = time.monotonic()
        run = rallypoint.join("meeting", f"127.0.0.1:{port}", min_nodes=nodes, max_nodes=nodes)
        world = run.next_world()
        met_s = time.monotonic()
        assert world is not None
        assert world.size == nodes
        calls.append((called_s, met_s, run))

    all_ = [threading.Thread(target=node, daemon=True) for _ in range(threads)]
    for each in all_:
        each.start()
    print("imported", flush=True)
    start_s = float(sys.stdin.readline())
    gate.wait()
    for each in all_:
        each.join()
    if len(calls) == threads:  # Otherwise a thread has shown its error on stderr.
        met = Met(min(called for called, _, _ in calls), max(met for _, met, _ in calls))
        print(msgspec.json.encode(met).decode(), flush=True)
        sys.stdin.read()
    os._exit(0 if len(calls) == threads else 1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
