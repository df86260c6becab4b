"""The messages that wait for a peer that reads slowly. No I/O: `Outlet` has the socket.

A large answer waits as references to its values. It is encoded piece by piece, when the connection
accepts more. So a value for which a thousand nodes ask at once is in memory only once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from typing import Final, Protocol

import msgspec

from rallypoint.coordinator.turns import Turns
from rallypoint.core.quotas import Account
from rallypoint.core.values import Address
from rallypoint.wire.parts import Parts

PIECE_BYTES: Final = 64 * 1024
"""How many bytes of a large message to encode at a time."""
TURN_BYTES: Final = 128 * 1024
"""How many bytes of large messages to send on one connection before the turns of the others."""
UNREAD_S: Final = 60.0
"""How long, in seconds, a peer may read nothing while data waits for it."""
ITEM_BYTES: Final = 128
"""The memory of a waiting message besides its bytes."""
_PINNED_FROM_BYTES: Final = 4 * 1024
"""A smaller value counts once for each message that contains it."""


class Outlet(Protocol):
    """Sends a session's bytes: a WebSocket here, a simulated connection in tests."""

    @property
    def peer(self) -> str:
        """The peer's address, for people."""

    @property
    def seen(self) -> Address | None:
        """The peer's address and port; None for a local peer."""

    @property
    def is_beside(self) -> bool:
        """Whether the peer is on this machine."""

    @property
    def account(self) -> Account:
        """The account that the connection counts for."""

    def send(self, payload: bytes) -> None:
        """Queue one message; never blocks."""

    def begin(self, size: int) -> None:
        """Queue the beginning of a message of `size` bytes; `part` queues its bytes."""

    def part(self, piece: bytes | memoryview) -> None:
        """Queue the next bytes of the message that was begun."""

    def pong(self, payload: bytes) -> None:
        """Queue the answer to a ping. Not within a message."""

    def backlog_bytes(self) -> int:
        """How many bytes are queued and have not been sent."""

    def close(self, reason: str) -> None:
        """Close the connection when everything queued has been sent, within a bounded time."""

    def abort(self) -> None:
        """Close the connection now."""


class Begin(msgspec.Struct, frozen=True):
    """The beginning of a message of `size` bytes, whose pieces follow."""

    size: int


class Whole(msgspec.Struct, frozen=True):
    """A whole message."""

    payload: bytes


Piece = Begin | Whole | bytes | memoryview


class Pins:
    """The values that waiting messages of one run keep in memory. Each value counts once."""

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count
        self._held: dict[int, tuple[bytes, int]] = {}  # by id: (value, how many messages)

    def hold(self, values: Iterable[bytes]) -> None:
        """A message with these values waits."""
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
    """The messages that wait on one connection, in order. `count` gets changes of their memory."""

    def __init__(self, count: Callable[[int], None], pins: Pins) -> None:
        self.bytes = 0
        """Their memory, without pinned values."""
        self._count = count
        self._pins = pins
        self._items: deque[bytes | Parts] = deque()
        self._pieces: Iterator[bytes | memoryview] | None = None
        self._under_way: Parts | None = None

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._items) or self._pieces is not None

    def put(self, message: bytes | Parts) -> None:
        """Add a message."""
        self._items.append(message)
        self._add(self._size(message))
        if isinstance(message, Parts):
            self._pins.hold(_pinned(message))

    def next(self) -> Piece | None:
        """The next item to send; None if nothing waits."""
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
        """Drop all messages except one that was sent in part, whose end must follow."""
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
    """What waits on one connection whose peer has not read everything. Other connections have none.

    It is sent in turns with the backlogs of other runs, in the turn of `run`. `count` is called
    with each change of the memory, in bytes. `caught_up` is called when everything has been sent,
    which ends the backlog.
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
        # What to do when everything has been sent.
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
        """The memory of the messages, without pinned values."""
        return self._queue.bytes

    def put(self, message: bytes | Parts) -> None:
        """Add a message."""
        self._queue.put(message)

    def drop(self) -> None:
        """Drop all messages except one that was sent in part."""
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
        """Whether the peer has read nothing for UNREAD_S.

        Call it regularly: it measures at each call.
        """
        if not self.is_paused:
            return False
        unread = self._outlet.backlog_bytes()
        if unread < self._unread:
            self._unread, self._read_s = unread, now_s
            return False
        return now_s - self._read_s > UNREAD_S

    def go_on(self) -> None:
        """Send what the peer accepts: now, or in turn if several runs share the event loop."""
        if not self._has_turn and (self._turns.is_shared or self._take_turn()):
            self._has_turn = True
            self._turns.later(self.run, self._take_turn)

    def _take_turn(self) -> bool:
        """Send as much as the peer accepts and one turn allows. Returns whether more is left."""
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
    """Each large value of a message, once, even if the message contains it several times."""
    return {id(v): v for v in message.values if len(v) >= _PINNED_FROM_BYTES}.values()
