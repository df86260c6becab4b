"""What waits for a peer that does not read, or reads more slowly than is answered. No I/O.

A large answer waits as references to the values that it is made of: its bytes are made piece by
piece, as the connection takes them. So a value that a thousand nodes ask for at once is in memory
once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final

import msgspec

from rallypoint.wire.parts import Parts

PIECE_BYTES: Final = 64 * 1024
"""How much of a large message is made at a time."""
ITEM_BYTES: Final = 128
"""What a message that waits takes besides its bytes."""
_PINNED_FROM_BYTES: Final = 4 * 1024
"""Smaller values count for each message that they are in."""


class Begin(msgspec.Struct, frozen=True):
    """A message of so many bytes begins: pieces of it follow."""

    size: int


class Whole(msgspec.Struct, frozen=True):
    """A whole message."""

    payload: bytes


Piece = Begin | Whole | bytes | memoryview


class Pins:
    """The values that messages of one run keep alive, each counted once for all of them."""

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
        """It does not wait any more."""
        for value in values:
            _, messages = self._held.pop(id(value))
            if messages > 1:
                self._held[id(value)] = (value, messages - 1)
            else:
                self._count(-len(value))


class Outgoing:
    """The messages that wait on one connection, in order. `count` is told what they take."""

    def __init__(self, count: Callable[[int], None], pins: Pins) -> None:
        self.bytes = 0
        """What they take, but for values that are pinned."""
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
        """Let only that wait of which a part has been sent: what follows must find its end."""
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


def _pinned(message: Parts) -> Collection[bytes]:
    """Each large value of a message once, however often it is in it."""
    return {id(v): v for v in message.values if len(v) >= _PINNED_FROM_BYTES}.values()
