"""Reads the frames of a WebSocket (RFC 6455, section 5) that nodes send: whole and binary.

A node's message is one such frame, and is passed on in the call in which it arrives. aiohttp would
wake a task for each, which costs as much as all other work for the message. All other frames are
left to aiohttp: this reader is in front of aiohttp's, and does not replace it.
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
from rallypoint.coordinator.turns import SLICE_S, InputTurns
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
"""How many frames of one connection to read before the turns of the others. With store calls this
takes a third of a millisecond.
"""
ANNOUNCED_FROM_BYTES: Final = 16 * 1024
"""A smaller incomplete message counts as part of its connection's memory."""
OTHER_BYTES_MAX: Final = 64 * 1024
"""The largest frame that is not a message of a node, such as a text, which is refused."""
UNMASKED: Final = "a client must mask its frames, and this one has no mask"
HALF_A_FRAME: Final = "part of a frame arrived before the handshake was answered"
IN_A_MESSAGE: Final = "a new message began before the last fragment of another one"
TOO_LONG: Final = f"a fragmented message has more than {MESSAGE_BYTES_MAX} bytes"
NO_ROOM: Final = "there is no memory for this fragmented message"

_END_OF_ERRNO: Final = {
    errno.ECONNRESET: ConnectionEnd.RESET,
    # The kernel of a dead peer answers later bytes with a reset, and the next write may fail before
    # the FIN is read. Linux reports EPIPE only if a FIN came before the reset, and ECONNRESET if
    # none did (tcp_reset in net/ipv4/tcp_input.c).
    errno.EPIPE: ConnectionEnd.FIN if sys.platform == "linux" else ConnectionEnd.RESET,
    errno.ETIMEDOUT: ConnectionEnd.TIMEOUT,
    errno.EHOSTUNREACH: ConnectionEnd.TIMEOUT,
    errno.ENETUNREACH: ConnectionEnd.TIMEOUT,
}


class Intake(Protocol):
    """What a reader needs from its session: memory and time for its bytes."""

    @property
    def input_turns(self) -> InputTurns:
        """When this connection is read."""

    def announced(self, size: int) -> bool:
        """A message of `size` bytes begins. True if it is accepted; then `arrived` follows."""

    def arrived(self, size: int) -> None:
        """The message that was announced does not need its memory any more."""

    def skipped(self, start: bytes, size: int) -> None:
        """A message that was not accepted has passed. `start`: its first bytes."""

    def pinged(self, payload: bytes) -> None:
        """Answer a ping. Only the last of several needs an answer (RFC 6455, section 5.5.3)."""

    def paused(self) -> None:
        """The transport's buffer is full."""

    def resumed(self) -> None:
        """The transport's buffer has room again."""

    def keeps(self, size: int) -> None:
        """`size` more bytes of input wait to be read, or fewer if negative."""


class FrameReader(asyncio.Protocol):
    """Reads the input of a connection, in front of the protocol that owns it (aiohttp's).

    `received` is called with the payload of each message: of a whole binary frame, or of several
    fragments. At any other frame (a closing handshake, an error, a text) the reader stops for good,
    and passes every later frame on to the owner.

    `ended` is called once, with the way in which the connection ended, after all input was given to
    `received`. It is not called if the reader has stopped before. `end` has the same value when it
    is known.

    `refused` is called once, with the reason, if a client breaks the protocol in a way that the
    owner would accept. Then nothing more is read. `early`: bytes that the client sent before it got
    the answer to its request; `begin` reads them.

    `intake` limits the memory for incomplete messages and the time for complete ones: after
    FRAMES_PER_TURN frames, the other connections have their turn. Without `intake`,
    MESSAGE_BYTES_MAX is the only limit, and pings and fragments are left to the owner. `is_ours`
    returns whether this side has ended the connection.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        received: Callable[[bytes], None],
        ended: Callable[[ConnectionEnd], None] = lambda end: None,
        refused: Callable[[str], None] = lambda why: None,
        early: bytes = b"",
        intake: Intake | None = None,
        is_ours: Callable[[], bool] = lambda: True,
    ) -> None:
        self.end = ConnectionEnd.UNKNOWN
        self._is_ours = is_ours
        self._has_cut = False
        self.is_aside = False
        self._ended = ended
        self._refused = refused
        self._is_refused = False
        self._has_ended = False
        self._transport = transport
        # Now, because asyncio's transport for TLS cannot be asked any more once it is closed.
        self._is_tls = transport.get_extra_info("ssl_object") is not None
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
        """Whether no input waits, so that the next byte begins a frame and may be read."""
        self._until_s = math.inf
        self._frames_max = FRAMES_PER_TURN if intake is not None else sys.maxsize
        transport.set_protocol(self)

    def begin(self) -> None:
        """The client has been answered: read the bytes that it sent before that.

        A client has to wait for that answer (RFC 6455, section 4.1). Whole messages that came
        earlier are accepted. An incomplete frame is refused, because two readers could read it
        differently.
        """
        early, self._rest = bytes(self._rest), bytearray()
        self._has_begun = True
        if early:
            self._read(early, 0, sys.maxsize)
            if self._rest or self._incoming is not None:
                self._refuse(HALF_A_FRAME)
        self._look()

    def data_received(self, data: bytes) -> None:
        """Pass on the complete messages, and keep the rest."""
        size = len(data) - _SHORTEST - _KEY_BYTES
        if (
            self._is_clear
            and 0 <= size <= _CONTROL_BYTES_MAX
            and data[0] == BINARY
            and data[1] == size + _MASKED
            and (self._intake is None or self._intake.input_turns.slice_s() is None)
        ):
            # The fast path of `_read`, for one short message while no input waits. This is all
            # input in a quiet run, and nearly all input when thousands of nodes meet.
            try:
                self._received(apply_mask(data[6:], data[2:6]))
            except Exception:  # noqa: BLE001 - event loops swallow some errors
                self._cut()
        elif not self._has_begun:
            self._rest += data
        elif not self._is_refused:
            self._take(data)
            self._look()

    def _look(self) -> None:
        """Call this after any input except one short message."""
        self._is_clear = not (
            self._rest
            or self._is_refused
            or self.is_aside
            or self._put_off is not None
            or self._incoming is not None
            or self._fragments is not None
        )

    def _take(self, data: bytes) -> None:
        """Read the bytes, after waiting ones."""
        # An event loop may have read these bytes before it was told to pause.
        if self._put_off is not None:
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
        """The bytes that can be read now. If they complete a large message, those after it."""
        if self._incoming is not None:
            data = self._incoming.take(data)
            if self._incoming.left:
                return None
            self._has_come(self._incoming)
        elif self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return None
            data, self._rest = self._rest, bytearray()  # so that a frame is complete
        return data

    def _read_on(self, data: bytes | bytearray) -> None:
        """Read the bytes, as far as this connection's turn allows."""
        intake = self._intake
        slice_s = intake.input_turns.slice_s() if intake is not None else None
        if slice_s is None:
            is_all = self._read(data, 0, self._frames_max)
        else:
            is_all = self._read_a_slice(data, slice_s)
        if not is_all:
            self._wait_for_a_turn()
        elif self._rest or self._incoming is not None:
            self._let_others_go(len(data))

    def _read_a_slice(self, data: bytes | bytearray, slice_s: float) -> bool:
        """Read frames for the given time. False if some are put off."""
        intake = self._intake
        assert intake is not None
        if not slice_s:
            self._put_off = (data, 0)
            return False
        began_s = intake.input_turns.clock_s()
        self._until_s = began_s + slice_s
        is_all = self._read(data, 0, self._frames_max)
        self._until_s = math.inf
        intake.input_turns.spent(intake.input_turns.clock_s() - began_s)
        return is_all

    def _read(self, data: bytes | bytearray, begin: int, frames_max: int) -> bool:
        """Read the frames from `begin` on, and keep an incomplete one.

        It reads at most `frames_max` frames, and none after `_until_s`. False if some are put off.
        """
        end, needed, intake = len(data), _SHORTEST, self._intake
        until_s, has_taken = self._until_s, False
        if self._arrived_whole is not None:
            has_taken = True
            if not self._hand_on_large():
                return True
        while end - begin >= needed:
            first, length, head = data[begin], data[begin + 1], 2 + _KEY_BYTES
            if length < _MASKED:
                # RFC 6455, section 5.1: a server must close the connection at a frame without a
                # mask. aiohttp would read it, and with it bytes that an attacker made a proxy send.
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
            if not frames_max or (
                has_taken
                and until_s < math.inf
                and intake is not None
                and intake.input_turns.clock_s() >= until_s
            ):
                self._put_off = (data, begin)
                return False
            frames_max -= 1
            has_taken = True
            key = data[body - _KEY_BYTES : body]
            if is_message:
                # A large message is not copied, because that takes long.
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

    def _size_max(self, first: int, is_message: bool) -> int:
        if is_message:
            return MESSAGE_BYTES_MAX
        return _CONTROL_BYTES_MAX if first & _CONTROL else OTHER_BYTES_MAX

    # -- messages ------------------------------------------------------------------------------

    def _is_fragment(self, first: int) -> bool:
        """Whether the frame is a fragment of a message, where a fragment is allowed."""
        if self._intake is None:
            return False
        return first == _FIRST or (first in _FURTHER and self._fragments is not None)

    def _cut(self) -> None:
        """Log the present exception, and close the connection at once."""
        _log.exception("a message could not be handled; its connection is closed")
        self._has_cut = True
        self._transport.abort()

    def _whole(self, first: int, payload: bytes) -> bytes | None:
        """The message that this fragment completes; None if it completes none."""
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

    # -- incomplete large messages -------------------------------------------------------------

    def _begin_large(self, first: int, size: int, data: bytes | bytearray) -> None:
        """Begin a large message. `data`: the mask key, and the first bytes of the message."""
        key, begun = bytes(data[:_KEY_BYTES]), data[_KEY_BYTES:]
        is_accepted = self._intake is None or self._intake.announced(size)
        if is_accepted and (kept := self._space_for(first, size, key)):
            self._incoming = kept
        elif first == BINARY:  # Skip it, and answer it if possible.
            self._incoming = Skipped(first, size, key)
        else:
            self._refuse(NO_ROOM)
            return
        self._incoming.take(begun)
        if self._incoming.left > PIECE_BYTES:
            self._transport.set_protocol(_LargeReader(self))

    def _space_for(self, first: int, size: int, key: bytes) -> Kept | None:
        try:
            return Kept(first, size, key)
        except (OSError, MemoryError) as error:
            _log.error("there is no memory for a message of %d bytes: %s", size, error)
            if self._intake is not None:
                self._intake.arrived(size)
            return None

    def room(self) -> memoryview:
        """The memory for the next bytes of the large message."""
        assert self._incoming is not None
        return self._incoming.room()

    def filled(self, size: int) -> None:
        """`size` bytes of the large message have been read into `room`."""
        incoming = self._incoming
        assert incoming is not None
        incoming.filled(size)
        if not incoming.left:
            self._has_come(incoming)
        if self._put_off is not None:
            return  # An event loop may have read these bytes before it was told to pause.
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
        """The large message is complete: read with this reader again."""
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
        """Pass on the payload of a frame, or keep a fragment. Returns whether to go on."""
        whole: bytes | None = message
        if first != BINARY or self._fragments is not None:
            whole = self._whole(first, message)
        if whole is not None:
            try:
                self._received(whole)
            except Exception:  # noqa: BLE001 - event loops swallow some errors
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
        self._intake.input_turns.later(self._go_on)

    def _let_others_go(self, size: int) -> None:
        """A part of a large message has arrived: read on after the turns of the others."""
        intake = self._intake
        if (
            size >= _COPIED_BYTES_MAX
            and intake is not None
            and intake.input_turns.slice_s() is not None
        ):
            self._put_off = (b"", 0)
            self._wait_for_a_turn()

    def _go_on(self) -> bool:
        """Read some of the input that was put off. Returns whether there is more."""
        if self._put_off is None:
            return False
        try:
            return self._take_put_off(self._put_off)
        except Exception:  # noqa: BLE001 - else the connection stays paused for ever
            self._cut()
            return False

    def _take_put_off(self, put_off: tuple[bytes | bytearray, int]) -> bool:
        (data, begin), self._put_off = put_off, None
        if self._intake is not None and self._frames_max < sys.maxsize:
            self._until_s = self._intake.input_turns.clock_s() + SLICE_S
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
            self._intake.input_turns.had_all()
        if not self._transport.is_closing():
            self._transport.resume_reading()
        return False

    def _take_all(self) -> None:
        """The connection has ended: read all input that was put off."""
        self._frames_max = sys.maxsize
        self._go_on()

    def _step_aside(self, first: int) -> None:
        if first & _OPCODE == _CLOSE and not self.is_aside:
            self.end = ConnectionEnd.CLOSE
        self.is_aside = True

    def _leave_to_owner(self, data: bytes) -> None:
        """Give the owner a frame that is too large: it closes the connection."""
        self.is_aside = True
        self._rest = bytearray()
        self._transport.set_protocol(self._owner)
        self._owner.data_received(data)

    def _refuse(self, why: str) -> None:
        self._is_refused = True
        self._rest = bytearray()
        self._read_here()
        self._refused(why)

    # -- calls of the transport, also passed on to the owner -------------------------------------

    def eof_received(self) -> bool | None:
        """The peer has closed its side. Event loops call this after they have read all input."""
        self._has_come_to_an_end(ConnectionEnd.FIN)
        return self._owner.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        if not self._has_ended:
            self._take_all()
            self._has_come_to_an_end(self._how(error))
        self._owner.connection_lost(error)

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self._owner.pause_writing()
        if self._intake is not None:
            self._intake.paused()

    def resume_writing(self) -> None:
        """The transport's buffer has room again."""
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
            # Event loops give no error if this side has closed. Neither does uvloop for the FIN of
            # a TLS connection, and it does not call `eof_received` before: that FIN is known by
            # this alone, that nobody here has ended it. For a reset or a timeout there is an error.
            is_fin = self._is_tls and not (self._has_cut or self._is_ours())
            return ConnectionEnd.FIN if is_fin else ConnectionEnd.OURS
        end = _END_OF_ERRNO.get(getattr(error, "errno", None) or 0, ConnectionEnd.UNKNOWN)
        if not self._is_tls:
            self._read_the_rest()
            self._go_on()
        elif end is ConnectionEnd.FIN:
            # What the peer said before it cannot be read any more, so its end proves nothing.
            return ConnectionEnd.RESET
        return end

    def _read_the_rest(self) -> None:
        """Read the input before a failed write: event loops leave the peer's last bytes unread."""
        sock = self._transport.get_extra_info("socket")
        with contextlib.suppress(AttributeError, OSError):
            while not self.is_aside and (data := os.read(sock.fileno(), _READ_BYTES)):
                self.data_received(data)


class _LargeReader(asyncio.BufferedProtocol):
    """Replaces a reader during a large message: reads directly into the message's memory."""

    def __init__(self, reader: FrameReader) -> None:
        # It does not refer to the message, because uvloop keeps its methods until the connection
        # ends.
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
