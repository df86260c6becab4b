"""Workers that start warm wait until rank 0 listens at its port, if it usually does so soon.

torch connects to the store of rank 0 as soon as a worker begins. If nothing listens there yet, it
tries again after half a second. Workers that start cold import for seconds, so that this is rare.
Workers that start warm come to it at the same time, within hundredths of a second, and one of many
is nearly always too early.

So rank 0 starts first. Its agent looks until the port listens, and tells the other agents by a key
of the round's store. Nobody waits long, and after a wait in vain the next 1, 3, 7, ... rounds start
without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, Protocol

from rallypoint.client.node import Round
from rallypoint.core.store import Get, Set, StoreOp, StoreResult, StoreValue

KEY: Final = "rallypoint/rank_0_listens"
"""It has a value as soon as the other workers may start."""
LISTENS_S: Final = 0.3
"""How many seconds rank 0 has to listen."""
TOLD_S: Final = 0.5
"""How many seconds the other agents wait to be told."""
_PAUSE_S: Final = 0.005
_IN_VAIN_MAX: Final = 6
_TRIES: Final = int(LISTENS_S / _PAUSE_S)
_ASKS: Final[int] = getattr(socket, "AF_NETLINK", 0)
"""The family of sockets by which Linux is asked. 0: this is another system."""
_KERNEL_S: Final = 1.0
_ANSWER_BYTES_MAX: Final = 65_536
_HEADER: Final = struct.Struct("=IHHII")
"""nlmsghdr: length, type, flags, number, port. Source: Linux, netlink(7)."""
_REQUEST: Final = struct.Struct("=BB2xI2s46x")
"""inet_diag_req_v2: family, protocol, states, and the port (big endian) of a socket's id."""
_SOCK_DIAG, _BY_FAMILY, _ERROR, _DUMP = 4, 20, 2, 0x301
_LISTENS: Final = 10
"""TCP_LISTEN. Source: Linux, include/net/tcp_states.h."""
_HOSTS: Final = ("127.0.0.1", "::1")


class StoreCaller(Protocol):
    """Calls the store of the present round: see Node.call."""

    def __call__(self, op: StoreOp, timeout_s: float | None) -> Awaitable[StoreResult]: ...


class _Patience:
    """Whether to wait once more."""

    def __init__(self) -> None:
        self._in_vain = 0
        self._left_out = 0

    def is_left(self) -> bool:
        """Whether to wait this time."""
        self._left_out -= 1
        return self._left_out < 0

    def has_waited(self, *, in_vain: bool) -> None:
        """What has come of it."""
        self._in_vain = min(self._in_vain + 1, _IN_VAIN_MAX) if in_vain else 0
        self._left_out = 2**self._in_vain - 1


class Rank0First:
    """What one agent knows of this. `listens`: whether a port of this machine listens."""

    def __init__(self, call: StoreCaller, listens: Callable[[int], Awaitable[bool]]) -> None:
        self._call = call
        self._listens = listens
        self._for_rank_0 = _Patience()
        self._for_word = _Patience()

    def holds(self, found: Round, *, is_warm: bool) -> bool:
        """Whether the other workers of this node wait for the first one, which is rank 0."""
        is_wanted = is_warm and found.seat.node_rank == 0 and found.head.size > 1
        return is_wanted and self._for_rank_0.is_left()

    async def lead(self, found: Round, release: Callable[[], None], *, is_held: bool) -> None:
        """Rank 0 starts on this node: let the other workers start as soon as it listens."""
        try:
            if is_held:
                has_come = await self._listens_soon(found.head.bootstrap.port)
                self._for_rank_0.has_waited(in_vain=not has_come)
        finally:
            release()
        if found.head.nodes > 1:
            await self._call(Set(KEY, b"1"), TOLD_S)

    async def follow(self) -> None:
        """Wait until the workers of this node, which has not rank 0, may start."""
        if self._for_word.is_left():
            told = None
            # A coordinator that is being replaced answers late.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TOLD_S):
                    told = await self._call(Get(KEY), TOLD_S)
            self._for_word.has_waited(in_vain=not isinstance(told, StoreValue))

    async def _listens_soon(self, port: int) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LISTENS_S):
                for _ in range(_TRIES):
                    if await self._listens(port):
                        return True
                    await asyncio.sleep(_PAUSE_S)
        return False


async def listens(port: int) -> bool:
    """Whether a server listens at this port of this machine.

    Linux's kernel says so when it is asked. Elsewhere a connection finds out, over loopback, which
    that server accepts.
    """
    try:
        return any(_is_listed(port, family) for family in (socket.AF_INET, socket.AF_INET6))
    except OSError:
        return await _accepts(port)


def _is_listed(port: int, family: int) -> bool:
    """Ask for the sockets that listen at the port. Source: Linux, sock_diag(7).

    /proc/net/tcp says the same, but takes milliseconds: it goes through the table of connections.
    """
    if not _ASKS:
        raise OSError(errno.EOPNOTSUPP, "this system has no netlink")
    question = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << _LISTENS, port.to_bytes(2))
    header = _HEADER.pack(_HEADER.size + len(question), _BY_FAMILY, _DUMP, 1, 0)
    with socket.socket(_ASKS, socket.SOCK_DGRAM, _SOCK_DIAG) as kernel:
        kernel.settimeout(_KERNEL_S)
        kernel.send(header + question)
        _, kind, *_ = _HEADER.unpack_from(kernel.recv(_ANSWER_BYTES_MAX))
    if kind == _ERROR:
        raise OSError(errno.EOPNOTSUPP, "the kernel does not list sockets")
    return bool(kind == _BY_FAMILY)  # else: the end of an empty list


async def _accepts(port: int) -> bool:
    loop = asyncio.get_running_loop()
    for sock, host in _sockets():
        with sock, contextlib.suppress(OSError):
            await loop.sock_connect(sock, (host, port))
            return True
    return False


def _sockets() -> Iterator[tuple[socket.socket, str]]:
    for host in _HOSTS:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with contextlib.suppress(OSError):  # a system without this family
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            yield sock, host
