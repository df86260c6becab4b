"""Removes a folder when the process that made it has ended.

    python -IS sweeper.py FOLDER

It waits until its stdin ends, which the kernel closes even for a killed process. Processes that
write into the folder are killed at the same moment, so it tries until the folder is gone.
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
