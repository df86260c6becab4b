"""The frames that a coordinator sends over a WebSocket: whole, binary and unmasked (RFC 6455).

The frames are written to the transport at once, without a task for each message. aiohttp does the
closing handshake. `outgoing` keeps the messages for a peer that does not read.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Final

from aiohttp import WSCloseCode, web

from rallypoint.core.addresses import is_loopback, plain
from rallypoint.core.quotas import NOBODY, Account
from rallypoint.core.values import Address

CLOSE_TIMEOUT_S: Final = 2.0
"""After this many seconds a closing connection is aborted."""
CLOSE_REASON_BYTES_MAX: Final = 120
"""The most bytes of a close reason: RFC 6455 allows 123."""
BINARY: Final = 0x82
"""The first byte of a whole binary message."""
PONG: Final = 0x8A
_SHORT_HEADERS: Final = tuple(bytes((BINARY, size)) for size in range(126))


class WebSocketOutlet:
    """Sends a session's bytes over one WebSocket. Implements outgoing.Outlet."""

    __slots__ = ("_closing", "_transport", "_ws", "account", "has_closed", "seen", "token")

    def __init__(
        self,
        ws: web.WebSocketResponse,
        transport: asyncio.Transport,
        closing: set[asyncio.Task[bool]],
        token: str | None = None,
        account: Account = NOBODY,
    ) -> None:
        """`token`: the token with which the connection was opened, if the coordinator has one."""
        self._ws = ws
        self._transport = transport
        self._closing = closing
        self.token = token
        self.account = account
        self.has_closed = False
        """Whether this side has begun to end the connection."""
        peer = transport.get_extra_info("peername")
        self.seen = Address(peer[0], peer[1]) if peer else None

    @property
    def is_beside(self) -> bool:
        """Whether the peer is on this machine: both sides have the same address."""
        own = self._transport.get_extra_info("sockname")
        is_same = self.seen is None or own is None or plain(own[0]) == plain(self.seen.host)
        return is_same or is_loopback(own[0])

    @property
    def peer(self) -> str:
        """The peer's address, for people. It is computed only when needed."""
        return str(Address(plain(self.seen.host), self.seen.port)) if self.seen else "a local peer"

    def send(self, payload: bytes) -> None:
        """Write one binary frame."""
        if not self._transport.is_closing():
            self._transport.write(binary_frame(payload))

    def begin(self, size: int) -> None:
        """Write the header of a binary frame."""
        if not self._transport.is_closing():
            self._transport.write(frame_header(size))

    def part(self, piece: bytes | memoryview) -> None:
        """Write a part of the frame's payload."""
        if not self._transport.is_closing():
            self._transport.write(piece)

    def pong(self, payload: bytes) -> None:
        """Answer a ping."""
        if not self._transport.is_closing():
            self._transport.write(pong_frame(payload))

    def backlog_bytes(self) -> int:
        """How many bytes the kernel has not accepted yet."""
        try:
            return self._transport.get_write_buffer_size()
        except AttributeError:  # asyncio's transport for TLS, after it was closed twice
            return 0

    def close(self, reason: str) -> None:
        """Begin the closing handshake; abort the connection if it takes too long.

        aiohttp limits the wait for the peer's answer, but not for a peer that reads nothing.
        """
        self.has_closed = True
        loop = asyncio.get_running_loop()
        message = reason.encode()[:CLOSE_REASON_BYTES_MAX].decode("utf-8", "ignore").encode()
        close = self._ws.close(code=WSCloseCode.POLICY_VIOLATION, message=message)
        task = loop.create_task(close)
        self._closing.add(task)
        loop.call_later(CLOSE_TIMEOUT_S, self._transport.abort)
        task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[bool]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._transport.abort()

    def abort(self) -> None:
        """Close the connection at once."""
        self.has_closed = True
        self._transport.abort()


def frame_header(size: int) -> bytes:
    """The header of a whole frame with a payload of `size` bytes, as a server sends it."""
    if size < 126:
        return _SHORT_HEADERS[size]
    if size < 65_536:
        return struct.pack("!BBH", BINARY, 126, size)
    return struct.pack("!BBQ", BINARY, 127, size)


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping, which has at most 125 bytes."""
    return bytes((PONG, len(payload))) + payload


def binary_frame(payload: bytes) -> bytes:
    """The payload as one whole frame, as a server sends it."""
    size = len(payload)
    if size < 126:
        return _SHORT_HEADERS[size] + payload
    return frame_header(size) + payload
