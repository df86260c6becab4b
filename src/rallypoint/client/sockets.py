"""A socket that shows by how it ends whether its process has ended.

When a process dies, its kernel closes its sockets with a FIN. A coordinator takes a FIN without a
goodbye for that (core/endings.py). So a process that lives on must not send one: it closes by a
reset, unless it has said before that it closes.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import warnings
from typing import Any, Final

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class ResettingSocket(socket.socket):
    """Sends a reset when it is closed, unless `ends_in_order` is set.

    That holds for each way to close it: by the event loop, or by the garbage collector after a
    program has dropped a loop with open connections. The socket option is set at that moment and
    not earlier, since it would hold for the kernel's closing too. Before an event loop closes the
    descriptor by itself, as uvloop does, call `choose_how`.
    """

    ends_in_order = False

    def close(self) -> None:
        """Close it."""
        self.choose_how()
        super().close()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        """Warn and close, as socket.socket does."""
        if self.fileno() >= 0:
            _warn(f"unclosed {self!r}", ResourceWarning, source=self)
            self.close()

    def choose_how(self) -> None:
        """Set how the connection ends. The descriptor must be closed at once after this."""
        if not self.ends_in_order and self.fileno() >= 0:
            reset_on_close(self)


def reset_on_close(sock: socket.socket) -> None:
    """Make the close of the descriptor, which must follow at once, send a reset."""
    # In a child made by fork() the descriptor is another file (client/fork_safety.py).
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
