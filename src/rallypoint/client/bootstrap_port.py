"""The round's bootstrap port: it is bound before it is announced, and held until rank 0 takes it.

A program that asks the kernel for a free port and closes it again leaves a gap in which another
process can get the port (pytorch #73320, #126510). On Linux a bound socket holds the port, in two
stages:

* From `reserve_port` on, no other socket can bind the port, with any options, under any user.
* From `hand_over` on, SO_REUSEADDR is set. As this socket does not listen, another one with
  SO_REUSEADDR may bind the port and listen: torch's TCPStore, gRPC and Python's ``create_server``
  set it. The kernel refuses a bind without it, and never chooses the port for a bind to port 0. The
  kernel does not compare users here: until rank 0 listens, another user of the machine could bind
  the port first. While rank 0 listens, no other socket can.

So the second stage begins as late as possible: when the workers of rank 0's node start. A process
that serves the store itself listens on the reserved socket (`detach`), without a second stage. On
systems other than Linux no port is held: it was only free when it was chosen.
"""

from __future__ import annotations

import socket
import sys

from rallypoint import net
from rallypoint.client import fork_safety
from rallypoint.client.port_range import HINT, PortsTakenError, reserve_in
from rallypoint.errors import LaunchError
from rallypoint.settings import PortRange

_HOLDS = sys.platform == "linux"


class Reservation:
    """A port that this process holds until close().

    No other socket can bind it before `hand_over`, and after that only with SO_REUSEADDR. Workers
    do not inherit it.
    """

    def __init__(self, port: int, sock: socket.socket | None) -> None:
        self.port = port
        self._socket = sock

    def hand_over(self) -> None:
        """Let a server with SO_REUSEADDR take the port. Idempotent."""
        if self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def close(self) -> None:
        """Release the port. A server that listens on it is not affected. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def detach(self) -> int | None:
        """The bound socket's descriptor, which the caller then owns; None if no port is held."""
        sock, self._socket = self._socket, None
        return None if sock is None else sock.detach()

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def reserve_for_rank_0(ports: PortRange | None, last: int | None) -> Reservation:
    """Reserve a port for rank 0: any free one, or one of a range. Raises LaunchError.

    `last`: the port of the round before, None for none.
    """
    try:
        return reserve_port() if ports is None else reserve_in(ports, reserve_port, last)
    except OSError as error:
        is_range = isinstance(error, PortsTakenError)
        raise LaunchError(
            f"cannot reserve a port for rank 0: {error.strerror or error}",
            hint=HINT
            if is_range
            else "check this machine's limits on ports and open files (ulimit -n)",
        ) from error


def reserve_port(port: int = 0) -> Reservation:
    """Bind a port on all addresses of both families, and hold it. Port 0: any free port.

    Does not wait. Raises OSError: EADDRINUSE if the port is taken.
    """
    sock = net.reserve(port)
    fork_safety.close_in_children(sock)
    reservation = Reservation(sock.getsockname()[1], sock)
    if not _HOLDS:  # there, every second bind is refused, even that of rank 0
        reservation.close()
    return reservation
