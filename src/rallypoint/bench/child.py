"""Becomes another program, which ends with the process that has started this one.

    python -IS child.py PARENT PROGRAM ARGUMENTS...

On Linux the kernel kills it when the parent ends, however that ends (prctl(2), PR_SET_PDEATHSIG):
to be exact, when the parent's thread ends that started it. That is kept over exec, so PROGRAM is as
it would be without this. Elsewhere it does nothing, and who reads stdin ends with that.

Run by its path: what it imports is the standard library's, and it is done in milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1


def end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (Linux); at once if it has ended."""
    if sys.platform == "linux":
        with contextlib.suppress(ImportError, OSError):  # Some Pythons have no ctypes.
            import ctypes

            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # It ended before the kernel knew of this.
            sys.exit(128 + signal.SIGKILL)


def main(parent: str, *program: str) -> None:
    """Never returns."""
    end_with(int(parent))
    os.execv(program[0], program)


if __name__ == "__main__":
    main(*sys.argv[1:])
