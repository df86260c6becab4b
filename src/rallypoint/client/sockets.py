"""A socket whose end shows whether its process has ended.

When a process dies, its kernel closes its sockets with a FIN. For a coordinator, a FIN without a
goodbye proves that (core/endings.py). So a living process must not send such a FIN: it closes by a
reset, unless it has announced the close before. Another process may keep a copy of the socket, and
send the FIN if the kernel would not.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import warnings
from collections.abc import Callable
from typing import Any, Final, Protocol

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class SocketKeeper(Protocol):
    """Another process that has a copy of a connection's descriptor, and ends it for a dead process.

    A kernel that closes a dead process's socket with unread data sends a reset. The keeper does not
    close its copy then: it sends the FIN. While this process lives, it leaves the copy alone.
    """

    def keep(self, connection: socket.socket) -> Callable[[], None]:
        """Give it a copy. Returns what makes it close the copy: call that just before the close.

        Neither call waits or fails; without a copy the kernel alone ends the connection. For the
        thread of the event loop.
        """


class ResettingSocket(socket.socket):
    """A socket that sends a reset when it is closed, unless `ends_in_order` is set.

    This applies to each way to close it: by the event loop, or by the garbage collector after a
    program has dropped a loop with open connections. The socket option is set at that moment and
    not earlier, because it would also apply when the kernel closes the socket of a dead process.
    Call `choose_how` before an event loop closes the descriptor by itself, as uvloop does.
    """

    ends_in_order = False
    _drop_copy: Callable[[], None] | None = None

    def keep_with(self, keeper: SocketKeeper) -> None:
        """Give the keeper a copy until this socket is closed. Call it at most once."""
        self._drop_copy = keeper.keep(self)

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
        # After the option, which the copy has too: the last close decides, in either process.
        drop_copy, self._drop_copy = self._drop_copy, None
        if drop_copy is not None:
            drop_copy()


def reset_on_close(sock: socket.socket) -> None:
    """Make the next close of the descriptor send a reset. It must follow at once."""
    # In a child made by fork() the descriptor is a different file (client/fork_safety.py).
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
