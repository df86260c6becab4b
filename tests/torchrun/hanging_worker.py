"""A worker that hangs in gloo, in a collective that no lost peer breaks.

Ranks 1 and 2 have a group of their own. Rank 1 waits in its all_reduce, which rank 2 never enters.
Rank 0 is in no group with a collective under way: it fails once FOLDER/fail-0 exists, and the
others do not notice.

    hanging_worker.py FOLDER
"""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path


def main() -> None:
    folder = Path(sys.argv[1])
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    store = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"

    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(minutes=30))
    group = dist.new_group([1, 2])
    print(f"worker {rank} of {size} store {store} pid {os.getpid()}", flush=True)
    if rank == "1":
        dist.all_reduce(torch.zeros(1), group=group)
        raise AssertionError("nobody else was in it")
    while not (folder / "end").exists():
        if (folder / f"fail-{rank}").exists():
            os._exit(7)
        time.sleep(0.01)


if __name__ == "__main__":
    main()
