"""Nodes that meet, in a process that has imported everything before. Prints when.

threads COUNT PORT: so many threads; a line of JSON for each.
one COUNT PORT: one node; starts at the monotonic time that it reads, and prints two times.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

import rallypoint
import rallypoint.client.blocking
import rallypoint.client.hosting
import rallypoint.client.join_plan


def meet(count: int, port: int) -> tuple[float, float, rallypoint.Run]:
    """Join and get a world: when it was called, and when it had it."""
    called_s = time.monotonic()
    run = rallypoint.join("meeting", f"127.0.0.1:{port}", min_nodes=count, max_nodes=count)
    world = run.next_world()
    met_s = time.monotonic()
    assert world is not None
    assert world.size == count
    return called_s, met_s, run


def in_threads(count: int, port: int) -> list[tuple[float, float, rallypoint.Run]]:
    """All threads are there before any of them calls."""
    gate = threading.Barrier(count)
    found: list[tuple[float, float, rallypoint.Run]] = []

    def node() -> None:
        gate.wait()
        found.append(meet(count, port))

    threads = [threading.Thread(target=node) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == count
    return found


def main() -> None:
    """See above. The process ends without goodbyes: they are another matter."""
    how, count, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if how == "threads":
        for called_s, met_s, _ in in_threads(count, port):
            print(json.dumps({"called_s": called_s, "met_s": met_s}))
    else:
        print("imported", flush=True)
        start_s = float(sys.stdin.readline())
        time.sleep(max(0.0, start_s - time.monotonic()))
        called_s, met_s, _run = meet(count, port)
        print(called_s, met_s, flush=True)
        sys.stdin.read()  # the host stays until the other has met it, too
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
