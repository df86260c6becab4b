"""The round's bootstrap port: bound before it is offered, and nobody else's until rank 0 takes it.

Asking the kernel for a free port and closing it again leaves a gap in which another process can get
it (pytorch #73320, #126510). On Linux a bound socket keeps the port, in two stages:

* From `reserve_port` on, nobody else can bind it, whatever options or user they have.
* From `hand_over` on, SO_REUSEADDR is set. While the socket does not listen, another one with
  SO_REUSEADDR may bind the port and listen (torch's TCPStore, gRPC and Python's ``create_server``
  set it); a bind without it is refused, and the kernel gives the port to nobody who asks for any.
  The kernel does not compare users here, so until rank 0 listens, another user of the machine can
  be first. Once rank 0 listens, nobody else can.

So the second stage begins as late as it can: when the workers of rank 0's node are started. Where
this process serves the store itself, it listens on the reserved socket (`detach`), and there is no
second stage. Elsewhere than on Linux the port is only known to have been free.
"""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass, field

from rallypoint import net
from rallypoint.client import fork_safety

_HOLDS = sys.platform == "linux"


@dataclass(slots=True)
class Reservation:
    """A port that this process holds until close(). Nobody can bind it before `hand_over`, and
    after that only with SO_REUSEADDR. Not inherited by workers."""

    port: int
    _socket: socket.socket | None = field(repr=False)

    def hand_over(self) -> None:
        """Let a server with SO_REUSEADDR take the port, from now on. Idempotent."""
        if self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def close(self) -> None:
        """Gives the port up; who listens on it by then goes on listening. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def detach(self) -> int | None:
        """The bound socket's descriptor, now the caller's; None where the port is not held."""
        sock, self._socket = self._socket, None
        return None if sock is None else sock.detach()

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def reserve_port(port: int = 0) -> Reservation:
    """Binds a port, 0 for any free one, on all addresses of both families, and holds it.

    Does not wait. Raises OSError: EADDRINUSE if the port asked for is somebody's.
    """
    sock = net.reserve(port)
    fork_safety.close_in_children(sock)
    reservation = Reservation(sock.getsockname()[1], sock)
    if not _HOLDS:  # a second bind would be refused there, rank 0's too
        reservation.close()
    return reservation
