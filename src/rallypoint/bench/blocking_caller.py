"""A program that makes calls of the store one after another, through the blocking API.

    python -m rallypoint.bench.blocking_caller ENDPOINT RUN_ID REPEATS CALLS

For each repeat it prints a line with the number of calls a second.
"""

from __future__ import annotations

import sys
import time

import rallypoint


def main(endpoint: str, run_id: str, repeats: int, calls: int) -> None:
    """Join a run of one node, and call."""
    with rallypoint.join(run_id, endpoint, min_nodes=1, max_nodes=1) as run:
        world = run.next_world()
        assert world is not None
        for _ in range(repeats):
            began_s = time.monotonic()
            for number in range(calls):
                world.store.set(f"key-{number}", b"12345678")
            print(calls / (time.monotonic() - began_s), flush=True)
        run.close("the benchmark is over")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
