"""Becomes another program, which ends with the process that started this one.

    python -IS child.py PARENT PROGRAM ARGUMENTS...

On Linux the kernel kills it when the parent ends in any way (prctl(2), PR_SET_PDEATHSIG): to be
exact, when the parent's thread that started it ends. exec keeps that setting, so PROGRAM needs no
code for it. On other systems this has no effect, and a program that reads stdin ends when that
ends.

It is run by its path and imports only the standard library, so that it takes milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1


def end_with(parent: int) -> None:
    """Make the kernel kill this process when its parent ends (Linux), or at once if it has."""
    if sys.platform == "linux":
        with contextlib.suppress(ImportError, OSError):  # Some builds of Python have no ctypes.
            import ctypes

            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # The parent ended before prctl was called.
            sys.exit(128 + signal.SIGKILL)


def main(parent: str, *program: str) -> None:
    """Never returns."""
    end_with(int(parent))
    os.execv(program[0], program)


if __name__ == "__main__":
    main(*sys.argv[1:])
