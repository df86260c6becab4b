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
import math
import os
import sys
from collections.abc import Callable
from typing import Final, Protocol, cast

from rallypoint.coordinator.frames import BINARY, PONG
from rallypoint.coordinator.incoming import PIECE_BYTES, Incoming, Kept, Skipped, apply_mask
from rallypoint.coordinator.turns import SLICE_S, Work
from rallypoint.core.values import ConnectionEnd
from rallypoint.wire.messages import MESSAGE_BYTES_MAX

_log = logging.getLogger("rallypoint.coordinator")

_CONTROL_BYTES_MAX: Final = 125
_MASKED: Final = 0x80
_SIZE_IN_2_BYTES: Final = _MASKED | 126
_KEY_BYTES: Final = 4
_SHORTEST: Final = 2
_OPCODE: Final = 0x0F
_CONTROL: Final = 0x08
_CLOSE: Final = 0x08
_READ_BYTES: Final = 256 * 1024
_PING: Final = 0x89
_PING_PONG: Final = (_PING, PONG)
_FIRST: Final = 0x02  # the first fragment of a binary message
_LAST: Final = 0x80
_FURTHER: Final = (0x00, _LAST)
_COPIED_BYTES_MAX: Final = 16 * 1024

FRAMES_PER_TURN: Final = 16
"""How many frames of one connection are taken before the others have their turn: for store calls a
third of a millisecond."""
ANNOUNCED_FROM_BYTES: Final = 16 * 1024
"""A smaller message that is not whole yet counts with its connection."""
OTHER_BYTES_MAX: Final = 64 * 1024
"""The largest frame that is not a node's message: a text, for which there is a refusal."""
UNMASKED: Final = "a client masks its frames, and one came without a mask"
HALF_A_FRAME: Final = "half a frame came before the answer to the handshake"
IN_A_MESSAGE: Final = "a message began before the one that came in fragments had ended"
TOO_LONG: Final = f"a message in fragments came to more than {MESSAGE_BYTES_MAX} bytes"
NO_ROOM: Final = "there is no room for this message, which came in fragments"

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


class Intake(Protocol):
    """Where a reader's bytes go, as far as they take memory and time. See session.Session."""

    def announced(self, size: int) -> bool:
        """A message of so many bytes begins to come; whether it may. If so, `arrived` follows."""

    def arrived(self, size: int) -> None:
        """What was announced is not kept any more."""

    def skipped(self, start: bytes, size: int) -> None:
        """A message that might not come was thrown away, but for its first bytes."""

    def pinged(self, payload: bytes) -> None:
        """The peer wants this back; of several pings the last will do (RFC 6455, section 5.5.3)."""

    def paused(self) -> None:
        """The peer reads more slowly than is written."""

    def resumed(self) -> None:
        """It has caught up."""

    def keeps(self, size: int) -> None:
        """So many bytes more, or fewer, wait until they are looked at."""

    def later(self, work: Work) -> None:
        """Go on with this when the other connections have had their turn."""

    def had_its_turn(self) -> None:
        """Nothing is put off any more."""

    def slice_s(self) -> float | None:
        """How long may be read now; None: without a limit; 0: not at all, before `later`."""

    def clock_s(self) -> float:
        """The clock that slices are measured on."""

    def spent(self, took_s: float) -> None:
        """So long was read, at one go."""


class FrameReader(asyncio.Protocol):
    """Reads what a client sends on a connection, in front of the protocol that owns it.

    `received` is called with the payload of each message: a whole binary frame, or several. At
    anything else (a closing handshake, an error, a text) it steps aside for good: it hands every
    later frame on to the owner.

    `ended` is called once, with how the connection ended, after all input was given to `received`;
    not after the reader has stepped aside. `end` tells the same, and what is known until then.

    `refused` is called once, with the reason, for a client that breaks the protocol in a way that
    the owner would accept. Nothing more of it is read. `early` is what the client sent before it
    was answered; it is read when `begin` is called.

    `intake` bounds what is kept of messages that are not whole yet, and the time that is spent on
    whole ones: after FRAMES_PER_TURN the other connections come first. Without it there is no bound
    but MESSAGE_BYTES_MAX; pings are passed on, and messages in fragments are left to the owner.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        received: Callable[[bytes], None],
        ended: Callable[[ConnectionEnd], None] = lambda end: None,
        refused: Callable[[str], None] = lambda why: None,
        early: bytes = b"",
        intake: Intake | None = None,
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
        self._intake = intake
        self._rest = bytearray(early)
        self._needed = 0
        self._has_begun = False
        self._incoming: Incoming | None = None
        self._arrived_whole: Kept | None = None
        self._fragments: bytearray | None = None
        self._put_off: tuple[bytes | bytearray, int] | None = None
        self._is_clear = False
        """Whether nothing waits: what comes next begins a frame, and may be read."""
        self._until_s = math.inf
        self._frames_max = FRAMES_PER_TURN if intake is not None else sys.maxsize
        transport.set_protocol(self)

    def begin(self) -> None:
        """The client has its answer: read what it sent before.

        A client waits for that answer (RFC 6455, section 4.1). Whole messages that came sooner are
        taken. Part of one is not: who sends it means to have it read in two ways.
        """
        early, self._rest = bytes(self._rest), bytearray()
        self._has_begun = True
        if early:
            self._read(early, 0, sys.maxsize)
            if self._rest or self._incoming is not None:
                self._refuse(HALF_A_FRAME)
        self._look()

    def data_received(self, data: bytes) -> None:
        """Hand on what is whole by now, and keep the rest."""
        size = len(data) - _SHORTEST - _KEY_BYTES
        if (
            self._is_clear
            and 0 <= size <= _CONTROL_BYTES_MAX
            and data[0] == BINARY
            and data[1] == size + _MASKED
            and (self._intake is None or self._intake.slice_s() is None)
        ):
            # One short message, and nothing that waits: all that a node sends in a quiet run, and
            # nearly all that thousands send when they meet. As `_read` does it.
            try:
                self._received(apply_mask(data[6:], data[2:6]))
            except Exception:  # noqa: BLE001 - event loops keep some of them to themselves
                self._cut()
        elif not self._has_begun:
            self._rest += data
        elif not self._is_refused:
            self._take(data)
            self._look()

    def _look(self) -> None:
        """To be called after anything else than one short message was read."""
        self._is_clear = not (
            self._rest
            or self._is_refused
            or self.is_aside
            or self._put_off is not None
            or self._incoming is not None
            or self._fragments is not None
        )

    def _take(self, data: bytes) -> None:
        """Read what comes, after what waits."""
        if self._put_off is not None:  # An event loop may have read before it was told to pause.
            kept, begin = self._put_off
            self._put_off = (kept[begin:] + data, 0)
            if self._intake is not None:
                self._intake.keeps(len(data) - begin)
            return
        gathered = self._gather(data)
        if gathered is None:
            self._let_others_go(len(data))
        else:
            self._read_on(gathered)

    def _gather(self, data: bytes | bytearray) -> bytes | bytearray | None:
        """What can be read with these bytes, behind a large message if one is whole with them."""
        if self._incoming is not None:
            data = self._incoming.take(data)
            if self._incoming.left:
                return None
            self._has_come(self._incoming)
        elif self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return None
            data, self._rest = self._rest, bytearray()  # both have what is needed
        return data

    def _read_on(self, data: bytes | bytearray) -> None:
        """Read these, as far as it is this connection's turn."""
        intake = self._intake
        slice_s = intake.slice_s() if intake is not None else None
        if slice_s is None:
            is_all = self._read(data, 0, self._frames_max)
        else:
            is_all = self._read_a_slice(data, slice_s)
        if not is_all:
            self._wait_for_a_turn()
        elif self._rest or self._incoming is not None:
            self._let_others_go(len(data))

    def _read_a_slice(self, data: bytes | bytearray, slice_s: float) -> bool:
        """Take as many frames as that time allows. False if others are put off."""
        intake = self._intake
        assert intake is not None
        if not slice_s:
            self._put_off = (data, 0)
            return False
        began_s = intake.clock_s()
        self._until_s = began_s + slice_s
        is_all = self._read(data, 0, self._frames_max)
        self._until_s = math.inf
        intake.spent(intake.clock_s() - began_s)
        return is_all

    def _read(self, data: bytes | bytearray, begin: int, frames_max: int) -> bool:
        """Take the frames that begin there; what is not whole is kept.

        At most `frames_max`, and none more after `_until_s`: False if others are put off.
        """
        end, needed = len(data), _SHORTEST
        until_s, has_taken = self._until_s, False
        if self._arrived_whole is not None:
            has_taken = True
            if not self._hand_on_large():
                return True
        while end - begin >= needed:
            first, length, head = data[begin], data[begin + 1], 2 + _KEY_BYTES
            if length < _MASKED:
                # RFC 6455, section 5.1: a server must close at a frame without a mask. aiohttp
                # would read it, and with it what a proxy was made to send.
                self._refuse(UNMASKED)
                return True
            is_message = (first == BINARY or self._is_fragment(first)) and not self.is_aside
            if length < _SIZE_IN_2_BYTES:
                size = length - _MASKED  # at most 125, which every kind of frame may have
            else:
                head += 2 if length == _SIZE_IN_2_BYTES else 8
                if end - begin < head:
                    needed = head
                    break
                size = int.from_bytes(data[begin + 2 : begin + head - _KEY_BYTES])
                if size > self._size_max(first, is_message):
                    self._leave_to_owner(bytes(data[begin:]))
                    return True
            if not is_message and first not in _PING_PONG:
                self._step_aside(first)
            body = begin + head
            stop = body + size
            if stop > end:
                needed = stop - begin
                if is_message and size > ANNOUNCED_FROM_BYTES:
                    self._begin_large(first, size, data[body - _KEY_BYTES :])
                    return True
                break
            if not frames_max or (has_taken and until_s < math.inf and self._is_past(until_s)):
                self._put_off = (data, begin)
                return False
            frames_max -= 1
            has_taken = True
            key = data[body - _KEY_BYTES : body]
            if is_message:
                # A copy that is not needed would take long for a large one.
                view = data[body:stop] if size < _COPIED_BYTES_MAX else memoryview(data)[body:stop]
                if not self._hand_on(first, apply_mask(view, key)):
                    return True
            elif self._intake is not None and not self.is_aside:
                if first == _PING:
                    self._intake.pinged(apply_mask(data[body:stop], key))
            else:
                self._owner.data_received(bytes(data[begin:stop]))
            begin = stop
        if begin < end:
            self._rest, self._needed = bytearray(data[begin:]), needed
        return True

    def _is_past(self, until_s: float) -> bool:
        return self._intake is not None and self._intake.clock_s() >= until_s

    def _size_max(self, first: int, is_message: bool) -> int:
        if is_message:
            return MESSAGE_BYTES_MAX
        return _CONTROL_BYTES_MAX if first & _CONTROL else OTHER_BYTES_MAX

    # -- messages ------------------------------------------------------------------------------

    def _is_fragment(self, first: int) -> bool:
        """Whether this is a part of a message where one can be."""
        if self._intake is None:
            return False
        return first == _FIRST or (first in _FURTHER and self._fragments is not None)

    def _cut(self) -> None:
        """From where an error is handled."""
        _log.exception("a message could not be taken; its connection is cut")
        self._transport.abort()

    def _whole(self, first: int, payload: bytes) -> bytes | None:
        """The message that is whole with this fragment; None if there is none."""
        gathered = self._fragments
        assert self._intake is not None
        if first not in _FURTHER:
            if gathered is not None:
                self._refuse(IN_A_MESSAGE)
                return None
            gathered = self._fragments = bytearray()
        assert gathered is not None
        if len(gathered) + len(payload) > MESSAGE_BYTES_MAX:
            self._refuse(TOO_LONG)
        elif payload and not self._intake.announced(len(payload)):
            self._refuse(NO_ROOM)
        else:
            gathered += payload
            if first == _LAST:
                self._fragments = None
                self._intake.arrived(len(gathered))
                return bytes(gathered)
        return None

    # -- large messages that are not whole yet -------------------------------------------------

    def _begin_large(self, first: int, size: int, data: bytes | bytearray) -> None:
        """`data`: the key, and what has come of the message."""
        key, begun = bytes(data[:_KEY_BYTES]), data[_KEY_BYTES:]
        if self._may_come(size) and (kept := self._space_for(first, size, key)):
            self._incoming = kept
        elif first == BINARY:  # Let it pass, and answer it if it can be answered.
            self._incoming = Skipped(first, size, key)
        else:
            self._refuse(NO_ROOM)
            return
        self._incoming.take(begun)
        if self._incoming.left > PIECE_BYTES:
            self._transport.set_protocol(_LargeReader(self))

    def _may_come(self, size: int) -> bool:
        return self._intake is None or self._intake.announced(size)

    def _space_for(self, first: int, size: int, key: bytes) -> Kept | None:
        try:
            return Kept(first, size, key)
        except (OSError, MemoryError) as error:
            _log.error("there is no memory for a message of %d bytes: %s", size, error)
            if self._intake is not None:
                self._intake.arrived(size)
            return None

    def room(self) -> memoryview:
        """Where the next bytes of the large message go."""
        assert self._incoming is not None
        return self._incoming.room()

    def filled(self, size: int) -> None:
        """So many bytes of it have been read to there."""
        incoming = self._incoming
        assert incoming is not None
        incoming.filled(size)
        if not incoming.left:
            self._has_come(incoming)
        if self._put_off is not None:
            return  # An event loop may have read before it was told to pause.
        if incoming.left:
            self._let_others_go(size)
        else:
            self._read_on(b"")
        self._look()

    def _has_come(self, incoming: Incoming) -> None:
        self._read_here()
        if isinstance(incoming, Kept):
            self._arrived_whole = incoming
        elif isinstance(incoming, Skipped) and self._intake is not None:
            self._intake.skipped(incoming.start(), incoming.size)

    def _read_here(self) -> None:
        """No large message is under way any more."""
        self._incoming = None
        if isinstance(self._transport.get_protocol(), _LargeReader):
            self._transport.set_protocol(self)

    def _hand_on_large(self) -> bool:
        large, self._arrived_whole = self._arrived_whole, None
        assert large is not None
        if self._intake is not None:
            self._intake.arrived(large.size)
        return self._hand_on(large.first, cast(bytes, large.message))

    def _hand_on(self, first: int, message: bytes) -> bool:
        """Hand on the payload of a frame, or keep it if it is a fragment. Whether to go on."""
        whole: bytes | None = message
        if first != BINARY or self._fragments is not None:
            whole = self._whole(first, message)
        if whole is not None:
            try:
                self._received(whole)
            except Exception:  # noqa: BLE001 - event loops keep some of them to themselves
                self._cut()
                return False
        return not self._is_refused

    # -- turns ---------------------------------------------------------------------------------

    def _wait_for_a_turn(self) -> None:
        assert self._intake is not None
        assert self._put_off is not None
        self._intake.keeps(len(self._put_off[0]))
        if not self._transport.is_closing():
            self._transport.pause_reading()
        self._intake.later(self._go_on)

    def _let_others_go(self, size: int) -> None:
        """Part of a large message has come: read no more of it before the others had their turn."""
        intake = self._intake
        if size >= _COPIED_BYTES_MAX and intake is not None and intake.slice_s() is not None:
            self._put_off = (b"", 0)
            self._wait_for_a_turn()

    def _go_on(self) -> bool:
        """Take some of what was put off. Whether there is more."""
        if self._put_off is None:
            return False
        try:
            return self._take_put_off(self._put_off)
        except Exception:  # noqa: BLE001 - else the connection would be paused for ever
            self._cut()
            return False

    def _take_put_off(self, put_off: tuple[bytes | bytearray, int]) -> bool:
        (data, begin), self._put_off = put_off, None
        if self._intake is not None and self._frames_max < sys.maxsize:
            self._until_s = self._intake.clock_s() + SLICE_S
        is_all = True
        if self._incoming is not None or self._rest:
            gathered = self._gather(data[begin:])
            if self._intake is not None:
                self._intake.keeps(len(gathered or b"") - len(data))
            data, begin = gathered or b"", 0
        if self._incoming is None and not self._rest:
            is_all = self._read(data, begin, self._frames_max)
        self._until_s = math.inf
        self._look()
        if not is_all:
            return True
        if self._intake is not None:
            self._intake.keeps(-len(data))
            self._intake.had_its_turn()
        if not self._transport.is_closing():
            self._transport.resume_reading()
        return False

    def _take_all(self) -> None:
        """The connection is gone: what came before counts, and nothing comes after it."""
        self._frames_max = sys.maxsize
        self._go_on()

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
        self._read_here()
        self._refused(why)

    # -- the owner's: the transport is its own as before -------------------------------------------

    def eof_received(self) -> bool | None:
        """The peer sends no more: event loops say so once all that came before has been read."""
        self._has_come_to_an_end(ConnectionEnd.FIN)
        return self._owner.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        if not self._has_ended:
            self._take_all()
            self._has_come_to_an_end(self._how(error))
        self._owner.connection_lost(error)

    def pause_writing(self) -> None:
        """The peer reads more slowly than is written."""
        self._owner.pause_writing()
        if self._intake is not None:
            self._intake.paused()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._owner.resume_writing()
        if self._intake is not None:
            self._intake.resumed()

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
            self._go_on()
        return _END_OF_ERRNO.get(getattr(error, "errno", None) or 0, ConnectionEnd.UNKNOWN)

    def _read_the_rest(self) -> None:
        """Take what came before a write failed: event loops leave the peer's last words unread."""
        sock = self._transport.get_extra_info("socket")
        with contextlib.suppress(AttributeError, OSError):
            while not self.is_aside and (data := os.read(sock.fileno(), _READ_BYTES)):
                self.data_received(data)


class _LargeReader(asyncio.BufferedProtocol):
    """In a reader's place while most of a large message is still to come: reads it in place."""

    def __init__(self, reader: FrameReader) -> None:
        # No message: uvloop keeps the methods of this until the connection ends.
        self._reader = reader

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.room()

    def buffer_updated(self, nbytes: int) -> None:
        self._reader.filled(nbytes)

    def eof_received(self) -> bool | None:
        return self._reader.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self._reader.connection_lost(error)

    def pause_writing(self) -> None:
        self._reader.pause_writing()

    def resume_writing(self) -> None:
        self._reader.resume_writing()
