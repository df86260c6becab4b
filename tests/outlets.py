"""For fakes of a connection: messages that come in parts are sent whole."""

from __future__ import annotations

from rallypoint.core.quotas import NOBODY, Account
from rallypoint.core.values import Address


class WholeMessages:
    """The part of an Outlet that puts a large message together, and gives it to `send`."""

    _parts = bytearray()
    _size = 0
    account: Account = NOBODY
    seen: Address | None = None
    is_beside = False

    def send(self, payload: bytes) -> None:
        raise NotImplementedError

    def begin(self, size: int) -> None:
        self._parts, self._size = bytearray(), size

    def part(self, piece: bytes | memoryview) -> None:
        self._parts += piece
        if len(self._parts) == self._size:
            self.send(bytes(self._parts))

    def pong(self, payload: bytes) -> None:
        raise AssertionError("nobody pings here")
