"""A worker without collectives: it prints its rank, and waits until it may end.

While it waits there is no collective that a lost peer could break, as while a real one loads data
or writes a checkpoint. It ends once FOLDER/end or FOLDER/end-RANK exists, and fails once
FOLDER/fail-RANK does. It does not import torch, so it costs little.

    quiet_worker.py FOLDER
"""

import os
import sys
import time
from pathlib import Path


def main() -> None:
    folder = Path(sys.argv[1])
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    store = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    print(f"worker {rank} of {size} store {store} pid {os.getpid()}", flush=True)
    ends = (folder / "end", folder / f"end-{rank}")
    while not any(end.exists() for end in ends):
        if (folder / f"fail-{rank}").exists():
            sys.exit(7)
        time.sleep(0.01)


if __name__ == "__main__":
    main()
