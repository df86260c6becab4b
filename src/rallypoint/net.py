"""Listening sockets, free ports, name look-ups, and what the system says of an address.

Everything here asks the system. What an address means by its text alone is in core/addresses.py,
and an endpoint is read in endpoints.py. No connection is made here: see client/dialing.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from rallypoint.core import addresses

LISTEN_BACKLOG: Final = 4_096
"""Thousands of nodes connect at once when a run begins, or after a failover."""
_ABSENT: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)
"""What the kernel answers where it was built with IPv6 and none is configured, or without it."""


# -- listening -----------------------------------------------------------------------------------


def bind(host: str | None, port: int) -> socket.socket:
    """A listening, non-blocking socket. `host` None: every address, IPv4 and IPv6 in one socket.

    `port` 0: any. Raises OSError, with EADDRINUSE if another process has the port.
    """
    if host is None:
        return _listening(_bound_everywhere(port, reuse=True))
    found = socket.getaddrinfo(
        host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    # A name may have an address of a family that this machine has switched off: `localhost` has.
    for family, _, _, _, where in found[:-1]:
        with ignored_if_absent():
            return _listening(_bound(family, where, reuse=True))
    family, _, _, _, where = found[-1]
    return _listening(_bound(family, where, reuse=True))


def bind_loopback(host: str, port: int) -> list[socket.socket]:
    """As `bind`, at 127.0.0.1, at ::1 where there is one, and at `host`.

    A client may try either of the first two for `localhost`. The port must be free at all of them,
    or two nodes that write the endpoint differently could become two coordinators. Port 0 needs
    one socket only: nobody else knows a port that the kernel chooses.
    """
    if not port:
        return [bind("127.0.0.1", 0)]
    sockets: list[socket.socket] = []
    try:
        for address in dict.fromkeys(("127.0.0.1", "::1", host)):
            if address != "localhost":
                with ignored_if_absent():
                    sockets.append(bind(address, port))
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def reserve(port: int = 0) -> socket.socket:
    """A socket that holds a port of every address and does not listen; 0: any port.

    On Linux nobody else can bind the port, whatever options they set, while SO_REUSEADDR is off
    here. Raises OSError, with EADDRINUSE if another process has the port.
    """
    return _bound_everywhere(port, reuse=False)


def free_port() -> int:
    """A port that was free at every address a moment ago. Another process may take it meanwhile."""
    with reserve() as sock:
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def ignored_if_absent() -> Iterator[None]:
    """Go on where this machine does not have the address that was to be bound."""
    try:
        yield
    except socket.gaierror:
        return
    except OSError as error:
        if error.errno not in _ABSENT:
            raise


def _bound_everywhere(port: int, *, reuse: bool) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with ignored_if_absent():
            return _bound(socket.AF_INET6, ("::", port), reuse=reuse)
    return _bound(socket.AF_INET, ("0.0.0.0", port), reuse=reuse)


def _bound(family: int, where: tuple[Any, ...], *, reuse: bool) -> socket.socket:
    with contextlib.ExitStack() as on_error:
        sock = on_error.enter_context(socket.socket(family, socket.SOCK_STREAM))
        if where[0] == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        on_error.pop_all()
        return sock


def _listening(sock: socket.socket) -> socket.socket:
    try:
        sock.listen(LISTEN_BACKLOG)
    except OSError:  # another socket with SO_REUSEADDR listens there
        sock.close()
        raise
    sock.setblocking(False)
    return sock


# -- names ---------------------------------------------------------------------------------------


class SocketAddress(msgspec.Struct, frozen=True):
    """One address that a host's name stands for, with the port that was asked for."""

    family: int
    sockaddr: tuple[Any, ...]

    @property
    def host(self) -> str:
        """The address as text."""
        return str(self.sockaddr[0])

    @property
    def scope(self) -> int:
        """The number of the interface that is an IPv6 address's zone; 0 for none."""
        return int(self.sockaddr[3]) if self.family == socket.AF_INET6 else 0


def resolve(host: str, port: int | None = None, *, flags: int = 0) -> list[SocketAddress]:
    """What a name or an address means on this machine, each address once, in the system's order.

    May block. Raises OSError or UnicodeError.
    """
    # With a port, even 0, glibc takes "*" for loopback; without one it is an unknown name.
    return _unique(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))


async def look_up(host: str, port: int, limit_s: float) -> list[SocketAddress]:
    """As `resolve`, for an event loop: a name is looked up in a thread, an address at once.

    Raises TimeoutError after `limit_s`, OSError, UnicodeError, or RuntimeError if the system grants
    no thread.
    """
    with contextlib.suppress(socket.gaierror):
        return resolve(host, port, flags=socket.AI_NUMERICHOST)
    async with asyncio.timeout(limit_s):
        loop = asyncio.get_running_loop()
        return _unique(await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))


def _unique(found: list[tuple[Any, ...]]) -> list[SocketAddress]:
    unique = dict.fromkeys((int(family), sockaddr) for family, _, _, _, sockaddr in found)
    return [SocketAddress(family, sockaddr) for family, sockaddr in unique]


def numeric(host: str) -> str | None:
    """An address in full, also from a short form (127.1, 0, 0x7f000001); None for a name."""
    try:
        return resolve(host, flags=socket.AI_NUMERICHOST)[0].host
    except (OSError, UnicodeError):
        return None


def resolves_to_loopback(host: str) -> bool:
    """Whether only this machine can reach a host, whichever of its addresses is used.

    May block. Raises OSError or UnicodeError if the name cannot be resolved.
    """
    return all(addresses.is_loopback(each.host) for each in resolve(host))


def is_own_name(host: str) -> bool:
    """Whether this is what this machine calls itself, with or without its domain."""
    own = socket.gethostname().lower()
    return host.lower() in (own, own.partition(".")[0])


def is_this_host(host: str) -> bool:
    """Whether a name or address is this machine's: by its own name, or because it can be bound.

    Works where a machine cannot resolve its own name. May block for a name look-up: not for an
    event loop.
    """
    if host.lower() == "localhost" or is_own_name(host):
        return True
    try:
        found = resolve(host)
    except (OSError, UnicodeError):
        return False
    return any(_can_bind(each) for each in found)


def _can_bind(address: SocketAddress) -> bool:
    try:
        # A datagram socket: its ports are others, so no listening server is in the way.
        with socket.socket(address.family, socket.SOCK_DGRAM) as sock:
            sock.bind(address.sockaddr)
    except OSError:
        return False
    return True


def describe_os_error(error: BaseException) -> str:
    """The system's own words, without the numbers around them."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error) or type(error).__name__
    if isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno)  # asyncio puts words of its own in the place of the system's
