"""Frames of a WebSocket (RFC 6455, section 5), as far as nearly all of them go: whole and binary.

A node's message comes as one such frame, and is handed on in the call in which it arrives. aiohttp
would wake a task for each, which costs as much as all that the message means. What is not this
plain case is aiohttp's to judge and to answer: this stands in front of it, not in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import struct
import sys
from collections.abc import Callable
from typing import Final, cast

from rallypoint.core.values import ConnectionEnd
from rallypoint.wire.messages import MESSAGE_BYTES_MAX

try:
    from websockets.speedups import apply_mask
except ImportError:  # where the library has no C extension
    from websockets.utils import apply_mask

_log = logging.getLogger("rallypoint.coordinator")

_BINARY: Final = 0x82
_PING_PONG: Final = (0x89, 0x8A)
_CONTROL_BYTES_MAX: Final = 125
_MASKED: Final = 0x80
_SIZE_IN_2_BYTES: Final = _MASKED | 126
_KEY_BYTES: Final = 4
_SHORTEST: Final = 2
_OPCODE: Final = 0x0F
_CONTROL: Final = 0x08
_CLOSE: Final = 0x08
_READ_BYTES: Final = 256 * 1024

UNMASKED: Final = "a client masks its frames, and one came without a mask"
HALF_A_FRAME: Final = "half a frame came before the answer to the handshake"

_END_OF_ERRNO: Final = {
    errno.ECONNRESET: ConnectionEnd.RESET,
    # A peer that died answers what is sent to it afterwards with a reset, and the next write may
    # fail before the FIN is read. Linux says EPIPE only where a FIN came before the reset, and
    # ECONNRESET where none did (tcp_reset in net/ipv4/tcp_input.c).
    errno.EPIPE: ConnectionEnd.FIN if sys.platform == "linux" else ConnectionEnd.RESET,
    errno.ETIMEDOUT: ConnectionEnd.TIMEOUT,
    errno.EHOSTUNREACH: ConnectionEnd.TIMEOUT,
    errno.ENETUNREACH: ConnectionEnd.TIMEOUT,
}


_SHORT_HEADERS: Final = tuple(bytes((_BINARY, size)) for size in range(126))


def binary_frame(payload: bytes) -> bytes:
    """The payload as one whole frame, as a server sends it: without a mask."""
    size = len(payload)
    if size < 126:
        return _SHORT_HEADERS[size] + payload
    if size < 65_536:
        return struct.pack("!BBH", _BINARY, 126, size) + payload
    return struct.pack("!BBQ", _BINARY, 127, size) + payload


class FrameReader(asyncio.Protocol):
    """Reads what a client sends on a connection, in front of the protocol that owns it.

    `received` is called with the payload of each whole binary frame. Pings and pongs are passed on.
    At anything else (a closing handshake, an error, a text, a message in fragments, which nothing
    may overtake) it steps aside for good: it hands every later frame on to the owner.

    `ended` is called once, with how the connection ended, after all input was given to `received`;
    not after the reader has stepped aside. `end` tells the same, and what is known until then.

    `refused` is called once, with the reason, for a client that breaks the protocol in a way that
    the owner would accept. Nothing more of it is read. `early` is what the client sent before it
    was answered; it is read when `begin` is called.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        received: Callable[[bytes], None],
        ended: Callable[[ConnectionEnd], None] = lambda end: None,
        refused: Callable[[str], None] = lambda why: None,
        early: bytes = b"",
    ) -> None:
        self.end = ConnectionEnd.UNKNOWN
        self.is_aside = False
        self._ended = ended
        self._refused = refused
        self._is_refused = False
        self._has_ended = False
        self._transport = transport
        self._owner = cast(asyncio.Protocol, transport.get_protocol())
        self._received = received
        self._rest = bytearray(early)
        self._needed = sys.maxsize  # nothing is read before `begin`
        transport.set_protocol(self)

    def begin(self) -> None:
        """The client has its answer: read what it sent before.

        A client waits for that answer (RFC 6455, section 4.1). Whole messages that came sooner are
        taken. Part of one is not: who sends it means to have it read in two ways.
        """
        early, self._rest = bytes(self._rest), bytearray()
        if early:
            self.data_received(early)
            if self._rest:
                self._refuse(HALF_A_FRAME)

    def data_received(self, data: bytes) -> None:
        """Hand on what is whole by now, and keep the rest."""
        if self._is_refused:
            return
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
        begin, end, needed = 0, len(data), _SHORTEST
        while end - begin >= needed:
            first, length, head = data[begin], data[begin + 1], 2 + _KEY_BYTES
            if length < _MASKED:
                # RFC 6455, section 5.1: a server must close at a frame without a mask. aiohttp
                # would read it, and with it what a proxy was made to send.
                self._refuse(UNMASKED)
                return
            if length < _SIZE_IN_2_BYTES:
                size = length - _MASKED  # at most 125, which every kind of frame may have
            else:
                head += 2 if length == _SIZE_IN_2_BYTES else 8
                if end - begin < head:
                    needed = head
                    break
                size = int.from_bytes(data[begin + 2 : begin + head - _KEY_BYTES])
                is_data = first & _CONTROL == 0
                if size > (MESSAGE_BYTES_MAX if is_data else _CONTROL_BYTES_MAX):
                    self._leave_to_owner(data[begin:])
                    return
            is_binary = first == _BINARY and not self.is_aside
            if not is_binary and first not in _PING_PONG:
                self._step_aside(first)
            body = begin + head
            stop = body + size
            if stop > end:
                needed = stop - begin
                break
            if is_binary:
                message = apply_mask(data[body:stop], data[body - _KEY_BYTES : body])
                try:
                    self._received(message)
                except Exception:  # noqa: BLE001 - event loops keep some of them to themselves
                    _log.exception("a message could not be taken; its connection is cut")
                    self._transport.abort()
                    return
            else:
                self._owner.data_received(data[begin:stop])
            begin = stop
        if begin < end or self._rest:
            self._rest, self._needed = bytearray(data[begin:]), needed

    def _step_aside(self, first: int) -> None:
        if first & _OPCODE == _CLOSE and not self.is_aside:
            self.end = ConnectionEnd.CLOSE
        self.is_aside = True

    def _leave_to_owner(self, data: bytes) -> None:
        """The owner ends the connection for a frame that is too large, whatever follows."""
        self.is_aside = True
        self._rest = bytearray()
        self._transport.set_protocol(self._owner)
        self._owner.data_received(data)

    def _refuse(self, why: str) -> None:
        self._is_refused = True
        self._rest = bytearray()
        self._refused(why)

    # -- the owner's: the transport is its own as before -------------------------------------------

    def eof_received(self) -> bool | None:
        """The peer sends no more: event loops say so once all that came before has been read."""
        self._has_come_to_an_end(ConnectionEnd.FIN)
        return self._owner.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        if not self._has_ended:
            self._has_come_to_an_end(self._how(error))
        self._owner.connection_lost(error)

    def pause_writing(self) -> None:
        """The peer reads more slowly than is written."""
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._owner.resume_writing()

    # -- the end -------------------------------------------------------------------------------

    def _has_come_to_an_end(self, end: ConnectionEnd) -> None:
        self._has_ended = True
        if not self.is_aside:
            self.end = end
            self._ended(end)

    def _how(self, error: Exception | None) -> ConnectionEnd:
        if error is None:
            # Event loops give no error where this side closed; nor does uvloop for the end of a
            # TLS connection, of which it says nothing else either. Neither is proof of anything.
            return ConnectionEnd.OURS
        if self._transport.get_extra_info("ssl_object") is None:
            self._read_the_rest()
        return _END_OF_ERRNO.get(getattr(error, "errno", None) or 0, ConnectionEnd.UNKNOWN)

    def _read_the_rest(self) -> None:
        """Take what came before a write failed: event loops leave the peer's last words unread."""
        sock = self._transport.get_extra_info("socket")
        with contextlib.suppress(AttributeError, OSError):
            while not self.is_aside and (data := os.read(sock.fileno(), _READ_BYTES)):
                self.data_received(data)
