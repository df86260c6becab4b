"""A socket whose end says whether its process ended.

A process that dies has its sockets closed by its kernel, with a FIN. A coordinator takes a FIN
that no other word explains for that (core/endings.py). So a process that lives on must not send
one: it closes by a reset, unless it has said before that it is closing.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import warnings
from typing import Any, Final

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class ResettingSocket(socket.socket):
    """Sends a reset when it is closed, whoever closes it, unless `ends_in_order` is set.

    Whoever closes it: the event loop, or the garbage collector where a program dropped an event
    loop with open connections. The option is set at that moment and not before, since it holds for
    the kernel's closing too. An event loop that closes the descriptor by itself, as uvloop does,
    needs `choose_how` before.
    """

    ends_in_order = False

    def close(self) -> None:
        """Close it."""
        self.choose_how()
        super().close()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        """As socket.socket does: warn, and close."""
        if self.fileno() >= 0:
            _warn(f"unclosed {self!r}", ResourceWarning, source=self)
            self.close()

    def choose_how(self) -> None:
        """Set how it ends when its descriptor is closed, which must follow at once."""
        if not self.ends_in_order and self.fileno() >= 0:
            reset_on_close(self)


def reset_on_close(sock: socket.socket) -> None:
    """Have the descriptor's closing, which must follow at once, send a reset."""
    # A child made by fork() has another file at that number (client/fork_safety.py).
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
