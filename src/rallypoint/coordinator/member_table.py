"""The member table of a run's last round, encoded once for all nodes that ask for it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from rallypoint.coordinator.session import Session
from rallypoint.core.values import RoundRecord, Stamp, told_rows
from rallypoint.wire import messages as wire
from rallypoint.wire import parts


class MemberTable:
    """The last table that was sent. `count` is called with its size in bytes."""

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count
        self._number = 0
        self._rows = msgspec.Raw()

    def send(self, session: Session, stamp: Stamp, request_id: int, record: RoundRecord) -> None:
        """Answer with the table of this round."""
        head = record.head
        if self._number != head.number:
            self._number = head.number
            self._rows = msgspec.Raw(msgspec.msgpack.encode(told_rows(record.members)))
            self._count(len(self._rows))
        message = wire.EncodedMembers(stamp, request_id, head.number, head.digest, self._rows)
        if len(self._rows) < parts.LARGE_FROM_BYTES:
            session.send(wire.encode(message))
        else:
            session.send_parts(parts.members_parts(message))
