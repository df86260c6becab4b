"""One connection between two nodes of a tournament: the side that listens, and the side that dials.

The two show each other a secret of their run, so that an answer of another program counts as none,
and pass as many bytes in each direction as fill several of the largest packets.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import socket
from collections.abc import Sequence
from typing import Final

import msgspec

from rallypoint.client.port_range import reserve_in
from rallypoint.doctor.tournament import Failure, Problem
from rallypoint.net import bind, describe_os_error, look_up
from rallypoint.runtime import now_s
from rallypoint.settings import PortRange

DIAL_S: Final = 3.0
"""How long one address may take to connect, and again to pass the bytes, in seconds."""
SECRET_BYTES: Final = 16
BULK_BYTES: Final = 64 << 10
_LISTENER_S: Final = 10.0


class Reached(msgspec.Struct, frozen=True):
    """A node answered. `connect_s`: how long the connection took, in seconds."""

    connect_s: float


class PairListener:
    """Answers the dials of the other nodes, until it is closed."""

    def __init__(self, secret: bytes, ports: PortRange | None) -> None:
        """Raises OSError if no port is free."""
        self._secret = secret
        self._sock = bind(None, 0) if ports is None else reserve_in(ports, _bound, None)
        self.port: int = self._sock.getsockname()[1]
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> PairListener:
        self._server = await asyncio.start_server(self._answer, sock=self._sock)
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(_LISTENER_S):
                shown = await reader.readexactly(SECRET_BYTES)
                if hmac.compare_digest(shown, self._secret):
                    writer.write(self._secret[::-1])
                    await writer.drain()
                    writer.write(await reader.readexactly(BULK_BYTES))
                    await writer.drain()
        writer.close()


def _bound(port: int) -> socket.socket:
    return bind(None, port)


async def dial(
    source: int, target: int, addresses: Sequence[str], port: int, secret: bytes
) -> tuple[Reached | None, Failure | None]:
    """Try the addresses of a node in order, until one answers.

    Both are returned if only another address than the first one answers.
    """
    first: Failure | None = None
    for address in addresses:
        found = await _one(address, port, secret)
        if isinstance(found, Reached):
            if first is not None:
                text = f"{first.detail}; but it answers at {address}"
                first = Failure(source, target, first.address, Problem.SECOND, text)
            return found, first
        problem, detail = found
        if first is None:
            first = Failure(source, target, f"{_shown(address)}:{port}", problem, detail)
    return None, first


def _shown(address: str) -> str:
    return f"[{address}]" if ":" in address else address


async def _one(address: str, port: int, secret: bytes) -> Reached | tuple[str, str]:
    """The answer of one address, or the problem and its details."""
    began_s = now_s()
    try:
        async with asyncio.timeout(DIAL_S):
            found = await look_up(address, port, DIAL_S)
            sock = socket.socket(found[0].family, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(sock, found[0].sockaddr)
                reader, writer = await asyncio.open_connection(sock=sock)
            except BaseException:
                sock.close()
                raise
    except TimeoutError:
        return Problem.SILENT, f"no answer within {DIAL_S:g} s"
    except (OSError, UnicodeError, RuntimeError) as error:
        is_refusal = isinstance(error, OSError) and error.errno == errno.ECONNREFUSED
        return Problem.REFUSED if is_refusal else Problem.UNREACHABLE, describe_os_error(error)
    connect_s = now_s() - began_s
    try:
        problem = await _exchange(reader, writer, secret)
    finally:
        writer.transport.abort()
    return Reached(connect_s) if problem is None else problem


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes
) -> tuple[str, str] | None:
    is_known = False
    try:
        async with asyncio.timeout(DIAL_S):
            writer.write(secret)
            answer = await reader.readexactly(SECRET_BYTES)
            if not hmac.compare_digest(answer, secret[::-1]):
                return Problem.STRANGER, "another program answers there"
            is_known = True
            writer.write(bytes(BULK_BYTES))
            await writer.drain()
            await reader.readexactly(BULK_BYTES)
    except TimeoutError:
        if is_known:
            return Problem.CUT, f"connected, but {BULK_BYTES >> 10} KiB do not pass in {DIAL_S:g} s"
        return Problem.STRANGER, f"connected, but nothing answers within {DIAL_S:g} s"
    except asyncio.IncompleteReadError:
        return Problem.STRANGER, "the connection was closed without an answer"
    except OSError as error:
        return Problem.CUT if is_known else Problem.STRANGER, describe_os_error(error)
    return None
