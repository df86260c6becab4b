"""The round's bootstrap port: bound before it is offered, and nobody else's until rank 0 takes it.

Asking the kernel for a free port and closing it again leaves a gap in which another process can get
it (pytorch #73320, #126510). On Linux the gap closes: while a socket with SO_REUSEADDR is bound but
not listening, a second socket with SO_REUSEADDR may bind the same port and listen (torch's
TCPStore, gRPC and Python's ``create_server`` set it), while a bind without it is refused, and the
kernel hands the port to nobody who asks for any. Elsewhere it is only known to have been free.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from dataclasses import dataclass, field

from rallypoint.client import forking

_HOLDS = sys.platform == "linux"
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


@dataclass(slots=True)
class Reservation:
    """A port that this process holds until close(). A program that binds without SO_REUSEADDR
    cannot take it over. Not inherited by workers."""

    port: int
    _socket: socket.socket | None = field(repr=False)

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
    sock = _bind_dual_stack(port) or _bind_ipv4(port)
    forking.close_in_children(sock)
    reservation = Reservation(sock.getsockname()[1], sock)
    if not _HOLDS:  # a second bind would be refused there, rank 0's too
        reservation.close()
    return reservation


def _bind_dual_stack(port: int) -> socket.socket | None:
    """None where there is no IPv6, or not both in one socket."""
    if not socket.has_dualstack_ipv6():
        return None
    with contextlib.ExitStack() as on_error:
        sock = on_error.enter_context(socket.socket(socket.AF_INET6))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("::", port))
        except OSError as error:
            if error.errno in _NO_IPV6:  # compiled in, but switched off
                return None
            raise
        on_error.pop_all()
        return sock


def _bind_ipv4(port: int) -> socket.socket:
    with contextlib.ExitStack() as on_error:
        sock = on_error.enter_context(socket.socket(socket.AF_INET))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", port))
        on_error.pop_all()
        return sock
