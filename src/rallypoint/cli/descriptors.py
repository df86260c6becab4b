"""The standard descriptors of a command, which may be absent, closed or full.

A daemon, `nohup`, cron or a script's `>&-` starts a command without some of them. The next opened
file or socket would get the free number, and output for the terminal would be written into it.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Final

UNWRITABLE: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF, errno.EFBIG, errno.ENXIO}
)
"""Errors of a write to a standard stream that cannot succeed, besides EPIPE."""


def fill() -> None:
    """Open /dev/null for each closed standard descriptor.

    Call it before any file is opened.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # open() returns the lowest free number, and those below this one are open.
            opened = os.open(os.devnull, os.O_RDWR)
            assert opened == number, (opened, number)
            os.set_inheritable(number, True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:  # Python has found it closed
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


def abandon(number: int) -> None:
    """Discard all output that is still to be written to a standard descriptor."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, number)
    os.close(null)
