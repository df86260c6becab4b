"""Removes a folder once whoever made it is gone.

    python -IS sweeper.py FOLDER

That is when stdin ends: the kernel closes it even for a process that was killed. Those that write
into the folder are killed at that moment too, so it is tried until nothing is left.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Final

TRIES: Final = 100
PAUSE_S: Final = 0.1


def main(folder: str) -> None:
    """Wait, and remove it."""
    sys.stdin.buffer.read()
    for _ in range(TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not Path(folder).exists():
            return
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(sys.argv[1])
