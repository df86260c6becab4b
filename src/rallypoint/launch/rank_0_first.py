"""Workers that start warm wait until rank 0 listens at its port, if it usually does so soon.

torch connects to the store of rank 0 as soon as a worker begins. If nothing listens there yet, it
tries again after half a second. Workers that start cold import for seconds, so that this is rare.
Workers that start warm come to it at the same time, within hundredths of a second, and one of many
is nearly always too early.

So rank 0 starts first. Its agent looks until the port listens, and tells the other agents by a key
of the round's store. Nobody waits for a program that does not listen soon: an agent remembers
that, and does not wait again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
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
_TRIES: Final = int(LISTENS_S / _PAUSE_S)
_HOSTS: Final = ("127.0.0.1", "::1")


class StoreCaller(Protocol):
    """Calls the store of the present round: see Node.call."""

    def __call__(self, op: StoreOp, timeout_s: float | None) -> Awaitable[StoreResult]: ...


class Rank0First:
    """What one agent knows of this. `listens`: whether a port of this machine listens."""

    def __init__(self, call: StoreCaller, listens: Callable[[int], Awaitable[bool]]) -> None:
        self._call = call
        self._listens = listens
        self._is_slow = False
        """Whether rank 0, on this node, has not listened in time."""
        self._silent: set[str] = set()
        """The hosts whose agents have not told in time."""

    def holds(self, found: Round, *, is_warm: bool) -> bool:
        """Whether the other workers of this node wait for the first one, which is rank 0."""
        return is_warm and found.seat.node_rank == 0 and found.head.size > 1 and not self._is_slow

    async def lead(self, found: Round, release: Callable[[], None], *, is_held: bool) -> None:
        """Rank 0 starts on this node: let the other workers start as soon as it listens."""
        try:
            if is_held:
                self._is_slow = not await self._listens_soon(found.head.bootstrap.port)
        finally:
            release()
        if found.head.nodes > 1:
            await self._call(Set(KEY, b"1"), TOLD_S)

    async def follow(self, found: Round) -> None:
        """Wait until the workers of this node, which has not rank 0, may start."""
        host = found.head.bootstrap.host
        if host in self._silent:
            return
        told = await self._call(Get(KEY), TOLD_S)
        if not isinstance(told, StoreValue):
            self._silent.add(host)

    async def _listens_soon(self, port: int) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LISTENS_S):
                for _ in range(_TRIES):
                    if await self._listens(port):
                        return True
                    await asyncio.sleep(_PAUSE_S)
        return False


async def listens(port: int) -> bool:
    """Whether a server listens at this port of this machine, at any address of the loopback."""
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
