"""The memory for a large message that arrives in parts, and the unmasking of its bytes. No I/O.

Each piece is read directly into the message's memory and unmasked at once. To join and unmask a
message of megabytes at its end would block the event loop for milliseconds.
"""

from __future__ import annotations

import mmap
from typing import Final

try:
    from websockets.speedups import apply_mask as apply_mask
except ImportError:  # if the library has no C extension
    from websockets.utils import apply_mask

PIECE_BYTES: Final = 64 * 1024
"""How many bytes to read at a time."""
SKIPPED_START_BYTES: Final = 1024
"""How many bytes to keep of a message without room: enough to answer it."""
_MAPPED_FROM_BYTES: Final = 256 * 1024
_KEY_BYTES: Final = 4

_nowhere = memoryview(bytearray(PIECE_BYTES))  # for bytes that are read and dropped


class Incoming:
    """A message of `size` bytes, masked with `key` (RFC 6455, 5.3).

    `first`: the first byte of its frame.

    `left`: how many bytes are still to come. Read them into `room` and then call `filled`, or pass
    them to `take`, which copies them.
    """

    def __init__(self, first: int, size: int, key: bytes) -> None:
        self.first = first
        self.size = self.left = size
        self._key = key

    def room(self) -> memoryview:
        """The memory for the next bytes. It ends with the message."""
        raise NotImplementedError

    def filled(self, size: int) -> None:
        """`size` bytes have been read into `room`."""
        raise NotImplementedError

    def take(self, data: bytes | bytearray | memoryview) -> bytes:
        """Copy the bytes that belong to the message. Returns the bytes after them."""
        view = memoryview(data)
        while self.left and view:
            room = self.room()
            size = min(len(room), len(view))
            room[:size] = view[:size]
            self.filled(size)
            view = view[size:]
        return bytes(view)

    def _unmasked(self, data: memoryview, at: int) -> bytes:
        shift = at % _KEY_BYTES
        return apply_mask(data, self._key[shift:] + self._key[:shift])


class Kept(Incoming):
    """A message that is kept. `message`: its bytes, valid when all have arrived.

    Raises OSError or MemoryError if there is no memory for it.
    """

    def __init__(self, first: int, size: int, key: bytes) -> None:
        super().__init__(first, size, key)
        # A mapped page takes no memory before it is written. A bytearray would write zeros to all
        # of its pages at once.
        is_large = size >= _MAPPED_FROM_BYTES
        self.message = memoryview(_mapped(size) if is_large else bytearray(size))

    def room(self) -> memoryview:
        """See Incoming."""
        done = self.size - self.left
        return self.message[done : done + PIECE_BYTES]

    def filled(self, size: int) -> None:
        """See Incoming."""
        done = self.size - self.left
        piece = self.message[done : done + size]
        piece[:] = self._unmasked(piece, done)
        self.left -= size


def _mapped(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class Skipped(Incoming):
    """A message for which there is no room: only its first bytes are kept."""

    def __init__(self, first: int, size: int, key: bytes) -> None:
        super().__init__(first, size, key)
        self._start = bytearray()

    def room(self) -> memoryview:
        """See Incoming."""
        return _nowhere[: self.left]

    def filled(self, size: int) -> None:
        """See Incoming."""
        self._start += _nowhere[: min(size, SKIPPED_START_BYTES - len(self._start))]
        self.left -= size

    def start(self) -> bytes:
        """The first bytes."""
        return self._unmasked(memoryview(self._start), 0)
