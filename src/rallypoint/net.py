"""Listening sockets, free ports, name look-ups, and the system's data about an address.

Everything here asks the system. core/addresses.py handles addresses by their text alone, and
endpoints.py reads endpoints. This file must not open connections: see client/dialing.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import sys
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from rallypoint.core import addresses
from rallypoint.core.values import Address

LISTEN_BACKLOG: Final = 4_096
"""Thousands of nodes connect at once when a run begins, or after a failover."""
_ABSENT: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)
"""The kernel's errors if it was built without IPv6, or if IPv6 is not configured."""


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
    # A name such as `localhost` may have an address of a family that this machine has disabled.
    for family, _, _, _, where in found[:-1]:
        with ignored_if_absent():
            return _listening(_bound(family, where, reuse=True))
    family, _, _, _, where = found[-1]
    return _listening(_bound(family, where, reuse=True))


def bind_loopback(host: str, port: int) -> list[socket.socket]:
    """Like `bind`, at 127.0.0.1, at ::1 if it exists, and at `host`.

    A client may try either of the first two for `localhost`. The port must be free at all of them,
    because otherwise two nodes that write the endpoint differently could host two coordinators.
    Port 0 needs only one socket, because no other node knows a port that the kernel chooses.
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
    """A socket that holds a port on all addresses and does not listen; 0: any port.

    On Linux no other socket can bind the port, with any options, while SO_REUSEADDR is off here.
    Raises OSError, with EADDRINUSE if another process has the port.
    """
    return _bound_everywhere(port, reuse=False)


def free_port() -> int:
    """A port that was free at every address a moment ago. Another process may take it meanwhile."""
    with reserve() as sock:
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def ignored_if_absent() -> Iterator[None]:
    """Suppress the error if this machine does not have the address to bind."""
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
    """One address of a host's name, with the requested port."""

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
    """The addresses of a name or an address on this machine, each once, in the system's order.

    May block. Raises OSError or UnicodeError.
    """
    # With a port, even 0, glibc resolves "*" to loopback; without one it is an unknown name.
    return _unique(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))


async def look_up(host: str, port: int, limit_s: float) -> list[SocketAddress]:
    """Like `resolve`, for an event loop: a name is looked up in a thread, an address at once.

    Raises TimeoutError after `limit_s`, OSError, UnicodeError, or RuntimeError if the system has no
    thread.
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
    """An address in full, even from a short form (127.1, 0, 0x7f000001); None for a name."""
    try:
        return resolve(host, flags=socket.AI_NUMERICHOST)[0].host
    except (OSError, UnicodeError):
        return None


def resolves_to_loopback(host: str) -> bool:
    """Whether only this machine can reach a host, at any of its addresses.

    May block. Raises OSError or UnicodeError if the name cannot be resolved.
    """
    return all(addresses.is_loopback(each.host) for each in resolve(host))


def is_own_name(host: str) -> bool:
    """Whether this is the machine's own name, with or without its domain."""
    own = socket.gethostname().lower()
    return host.lower() in (own, own.partition(".")[0])


async def refuses(address: Address, limit_s: float) -> bool | None:
    """Whether nothing listens at an address: the machine refuses a connection within `limit_s`.

    For a name, all its addresses refuse. None if it cannot be resolved, or does not answer.
    """
    try:
        async with asyncio.timeout(limit_s):
            for each in await look_up(address.host, address.port, limit_s):
                if not await _refuses(each):
                    return False
    except (OSError, TimeoutError, UnicodeError, RuntimeError):
        return None
    return True


_LIVES: Final = (0, errno.ECONNREFUSED, errno.ECONNRESET)
"""What a kernel that answers makes of a connection: accepted, refused, or reset at once."""
_SILENT: Final = (errno.EINPROGRESS, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EHOSTDOWN)
"""Nobody answers: yet, in time, or not even the neighbour that would have that address."""


async def answers(address: Address, limit_s: float) -> bool | None:
    """Whether the kernel at an address answers a connection within `limit_s`.

    It may accept or refuse it; in both cases its machine lives. The connection is closed at once.
    False: it does not answer. None: this machine cannot tell, as it has no way there.
    """
    try:
        [found] = resolve(address.host, address.port, flags=socket.AI_NUMERICHOST)
        sock = socket.socket(found.family, socket.SOCK_STREAM)
    except (OSError, UnicodeError, ValueError):
        return None
    with sock:
        sock.setblocking(False)
        error = sock.connect_ex(found.sockaddr)
        if error == errno.EINPROGRESS:
            await _writable(sock, limit_s)
            # The kernel is asked, as this process may have stood still at the end of the time.
            if _has_ended(sock):
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error in _LIVES:
        return True
    return False if error in _SILENT else None


def _has_ended(sock: socket.socket) -> bool:
    """Whether the kernel knows how a connection attempt has ended."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))


async def _writable(sock: socket.socket, limit_s: float) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_writer(sock, ended.set)
    try:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), limit_s)
    finally:
        loop.remove_writer(sock)


async def _refuses(address: SocketAddress) -> bool:
    with socket.socket(address.family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, address.sockaddr)
        except ConnectionRefusedError:
            return True
    return False


def bind_name(name: str) -> socket.socket | None:
    """A socket with a name that no other on this machine has; None if another one has it.

    The machine is its network namespace, as for ports. Only Linux has such names (unix(7), abstract
    sockets); elsewhere the socket has none. Raises OSError, for example without a free descriptor.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        if sys.platform == "linux":
            sock.bind(f"\0{name}")
    except OSError as error:
        sock.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return sock


def is_this_host(host: str) -> bool:
    """Whether a name or address is this machine's: it is its own name, or it can be bound.

    Works if a machine cannot resolve its own name. May block for a name look-up, so do not call it
    in an event loop.
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
        # A datagram socket, whose ports are separate, so that a listening server does not
        # interfere.
        with socket.socket(address.family, socket.SOCK_DGRAM) as sock:
            sock.bind(address.sockaddr)
    except OSError:
        return False
    return True


def describe_os_error(error: BaseException) -> str:
    """The system's text of an error, without numbers."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error) or type(error).__name__
    if isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno)  # asyncio replaces the system's text by its own
