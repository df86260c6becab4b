"""The stacks of this process: written by faulthandler on a signal, or read by Rallypoint's thread.

faulthandler writes them from the signal's handler in C, so they come also while the program holds
the GIL or hangs in a library. The file is opened before, because a handler can open none.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from types import FrameType
from typing import Final

FRAMES_MAX: Final = 200
FILE_PREFIX: Final = "stacks-"
"""How the name of a file begins in which an agent gets the stacks of a worker."""
_FROM_THE_FIRST: Final = 12
_kept: list[int] = []
"""The file to which faulthandler writes: it stays open."""


def dump_signal() -> int | None:
    """The signal on which a worker writes its stacks; None if this system has none to spare.

    A real-time signal, as programs use SIGUSR1 and SIGUSR2 themselves, and glibc the first ones.
    """
    first, last = getattr(signal, "SIGRTMIN", None), getattr(signal, "SIGRTMAX", None)
    if first is None or last is None or first + _FROM_THE_FIRST > last:
        return None
    return int(first) + _FROM_THE_FIRST


def dump_on_signal(path: str) -> tuple[int, int] | None:
    """Write the stacks of all threads to the end of this file at each `dump_signal`.

    Returns this process's pid and the signal; None if that is not possible here: the program uses
    the signal itself, or the file cannot be opened. Any thread may call it.
    """
    number = dump_signal()
    # The name comes from a message, so only a file that an agent makes for this is opened.
    is_for_this = path.startswith("/") and path.rpartition("/")[2].startswith(FILE_PREFIX)
    if number is None or not is_for_this or signal.getsignal(number) is not signal.SIG_DFL:
        return None
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except (OSError, ValueError):  # ValueError: a NUL
        return None
    try:
        faulthandler.register(number, file=fd, all_threads=True, chain=False)
    except (OSError, RuntimeError, ValueError):
        os.close(fd)
        return None
    # A worker that is kept has another file in each round.
    earlier, _kept[:] = _kept[:], [fd]
    for each in earlier:
        os.close(each)
    return os.getpid(), number


def own_stacks() -> str:
    """The stacks of all threads of this process but the calling one, in faulthandler's form.

    The main thread is the last one.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    here = threading.get_ident()
    found = sorted(sys._current_frames().items(), key=lambda item: item[0] == main)
    lines: list[str] = []
    for ident, innermost in found:
        if ident == here and ident != main:
            continue
        lines += ["", f'Thread {ident:#x} "{names.get(ident, "?")}" (most recent call first):']
        frame: FrameType | None = innermost
        count = 0
        while frame is not None and count < FRAMES_MAX:
            code = frame.f_code
            lines.append(f'  File "{code.co_filename}", line {frame.f_lineno} in {code.co_name}')
            frame, count = frame.f_back, count + 1
    return "\n".join(lines[1:]) + "\n"
