"""What waits for a peer that reads more slowly than it is sent to. No I/O: `Outlet` has the socket.

A large answer waits as references to the values that it consists of. Its bytes are made piece by
piece, as the connection takes them. So a value that a thousand nodes ask for at once is in memory
once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from typing import Final, Protocol

import msgspec

from rallypoint.coordinator.turns import Turns
from rallypoint.core.quotas import Account
from rallypoint.wire.parts import Parts

PIECE_BYTES: Final = 64 * 1024
"""How much of a large message is made at a time."""
TURN_BYTES: Final = 128 * 1024
"""How much of large messages is sent on one connection before the turns of the others."""
UNREAD_S: Final = 60.0
"""How long a peer may read nothing of what waits for it."""
ITEM_BYTES: Final = 128
"""The memory of a message that waits, besides its bytes."""
_PINNED_FROM_BYTES: Final = 4 * 1024
"""A smaller value counts once for each message that it is in."""


class Outlet(Protocol):
    """How a session's bytes leave: a WebSocket here, a simulated connection in tests."""

    @property
    def peer(self) -> str:
        """The peer, in words for people."""

    @property
    def account(self) -> Account:
        """The account that the connection counts for."""

    def send(self, payload: bytes) -> None:
        """Queue one message; never blocks."""

    def begin(self, size: int) -> None:
        """Queue the beginning of a message of so many bytes; `part` brings them."""

    def part(self, piece: bytes | memoryview) -> None:
        """Queue more of the message that was begun."""

    def pong(self, payload: bytes) -> None:
        """Queue the answer to a ping. Not within a message."""

    def backlog_bytes(self) -> int:
        """How much is queued and has not left."""

    def close(self, reason: str) -> None:
        """Close the connection once everything queued has left, within a bounded time."""

    def abort(self) -> None:
        """Close the connection now."""


class Begin(msgspec.Struct, frozen=True):
    """A message of so many bytes begins: pieces of it follow."""

    size: int


class Whole(msgspec.Struct, frozen=True):
    """A whole message."""

    payload: bytes


Piece = Begin | Whole | bytes | memoryview


class Pins:
    """The values that waiting messages of one run keep alive. Each counts once for all of them."""

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count
        self._held: dict[int, tuple[bytes, int]] = {}  # by id: (value, how many messages)

    def hold(self, values: Iterable[bytes]) -> None:
        """A message that waits has these values."""
        for value in values:
            known = self._held.get(id(value))
            if known is None:
                self._count(len(value))
            self._held[id(value)] = (value, known[1] + 1 if known is not None else 1)

    def let_go(self, values: Iterable[bytes]) -> None:
        """A message with these values does not wait any more."""
        for value in values:
            _, messages = self._held.pop(id(value))
            if messages > 1:
                self._held[id(value)] = (value, messages - 1)
            else:
                self._count(-len(value))


class Outgoing:
    """The messages that wait on one connection, in order. `count` is told of their memory."""

    def __init__(self, count: Callable[[int], None], pins: Pins) -> None:
        self.bytes = 0
        """Their memory, without values that are pinned."""
        self._count = count
        self._pins = pins
        self._items: deque[bytes | Parts] = deque()
        self._pieces: Iterator[bytes | memoryview] | None = None
        self._under_way: Parts | None = None

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._items) or self._pieces is not None

    def put(self, message: bytes | Parts) -> None:
        """Let a message wait."""
        self._items.append(message)
        self._add(self._size(message))
        if isinstance(message, Parts):
            self._pins.hold(_pinned(message))

    def next(self) -> Piece | None:
        """What is to be sent next; None if nothing waits."""
        if self._pieces is not None:
            piece = next(self._pieces, None)
            if piece is not None:
                return piece
            self._finish()
        if not self._items:
            return None
        message = self._items.popleft()
        if isinstance(message, Parts):
            self._under_way, self._pieces = message, message.pieces(PIECE_BYTES)
            return Begin(message.size)
        self._add(-self._size(message))
        return Whole(message)

    def drop(self) -> None:
        """Drop all messages but the one of which a part has been sent: it needs an end."""
        while self._items:
            message = self._items.popleft()
            self._add(-self._size(message))
            if isinstance(message, Parts):
                self._pins.let_go(_pinned(message))

    def close(self) -> None:
        """Nothing is sent any more."""
        self.drop()
        self._finish()

    def _finish(self) -> None:
        message, self._under_way, self._pieces = self._under_way, None, None
        if message is not None:
            self._add(-self._size(message))
            self._pins.let_go(_pinned(message))

    def _add(self, size: int) -> None:
        self.bytes += size
        self._count(size)

    def _size(self, message: bytes | Parts) -> int:
        if not isinstance(message, Parts):
            return ITEM_BYTES + len(message)
        small = sum(len(value) for value in message.values if len(value) < _PINNED_FROM_BYTES)
        return ITEM_BYTES + len(message.head) + 8 * len(message.values) + small


class Backlog:
    """What waits on one connection whose peer has not read everything. Others have no backlog.

    It is sent in turns with those of other runs, in the turn of `run`. `count` is
    told how the memory changes. `caught_up` is called once everything has been sent; then the
    backlog has ended.
    """

    __slots__ = (
        "_buffered",
        "_caught_up",
        "_count",
        "_has_turn",
        "_is_over",
        "_outlet",
        "_queue",
        "_read_s",
        "_turns",
        "_unread",
        "closing",
        "is_paused",
        "owes_beat",
        "owes_pong",
        "run",
    )

    def __init__(
        self,
        outlet: Outlet,
        turns: Turns,
        run: Hashable,
        count: Callable[[int], None],
        pins: Pins,
        caught_up: Callable[[], None],
    ) -> None:
        self.run = run
        self.is_paused = False
        """Whether the transport's buffer is full."""
        # To be done once everything has been sent.
        self.closing: str | None = None
        self.owes_beat = False
        self.owes_pong: bytes | None = None
        self._outlet = outlet
        self._turns = turns
        self._count = count
        self._caught_up = caught_up
        self._queue = Outgoing(count, pins)
        self._buffered = 0
        self._unread = 0
        self._read_s = 0.0
        self._has_turn = False
        self._is_over = False

    def __bool__(self) -> bool:
        """Whether any message waits."""
        return bool(self._queue)

    @property
    def waiting_bytes(self) -> int:
        """The memory of the messages, without values that are pinned."""
        return self._queue.bytes

    def put(self, message: bytes | Parts) -> None:
        """Let a message wait."""
        self._queue.put(message)

    def drop(self) -> None:
        """Drop all messages but the one of which a part has been sent."""
        self._queue.drop()

    def close(self) -> None:
        """The connection has ended."""
        self._is_over = True
        self._queue.close()

    def paused(self, now_s: float) -> None:
        """The transport's buffer is full."""
        self.is_paused = True
        self._buffered = self._unread = self._outlet.backlog_bytes()
        self._read_s = now_s
        self._count(self._buffered)

    def resumed(self) -> None:
        """The transport's buffer has room again."""
        self.is_paused = False
        self._count(-self._buffered)
        self._buffered = 0
        self.go_on()

    def is_stuck(self, now_s: float) -> bool:
        """Whether the peer has read nothing for UNREAD_S. Looks now, so ask now and then."""
        if not self.is_paused:
            return False
        unread = self._outlet.backlog_bytes()
        if unread < self._unread:
            self._unread, self._read_s = unread, now_s
            return False
        return now_s - self._read_s > UNREAD_S

    def go_on(self) -> None:
        """Send what the peer takes: now, or in turn where several runs share the event loop."""
        if not self._has_turn and (self._turns.is_shared or self._take_turn()):
            self._has_turn = True
            self._turns.later(self.run, self._take_turn)

    def _take_turn(self) -> bool:
        """Send as much as the peer takes and one turn allows. Whether there is more to send."""
        self._has_turn = self._send_more()
        return self._has_turn

    def _send_more(self) -> bool:
        left = TURN_BYTES
        while not (self.is_paused or self._is_over):
            if left <= 0:
                return True
            match self._queue.next():
                case None:
                    self._is_over = True
                    self._caught_up()
                case Begin(size):
                    self._outlet.begin(size)
                case Whole(payload):
                    left -= len(payload)
                    self._outlet.send(payload)
                case piece:
                    left -= len(piece)
                    self._outlet.part(piece)
        return False


def _pinned(message: Parts) -> Collection[bytes]:
    """Each large value of a message once, however often it is in it."""
    return {id(v): v for v in message.values if len(v) >= _PINNED_FROM_BYTES}.values()
