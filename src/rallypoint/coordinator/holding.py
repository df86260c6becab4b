"""Holds answers of a round's store until the coordinator's lease is renewed.

While the last renewal is too old, another coordinator may own the run, and may have acknowledged
writes that this one has not seen (R5, R10). So an answer is held until a renewal succeeds. If this
coordinator is deposed, the answer is dropped with its connection. The node then asks the next
coordinator, and the request is applied once (R11).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rallypoint.coordinator.session import Session

HELD_BYTES_MAX: Final = 64 * 1024**2
"""The most bytes that are held for one run. A node whose answers do not fit asks again.
"""


class HeldAnswers:
    """The answers for one run's nodes, in order for each node.

    `count` is called with each change of their memory, in bytes.
    """

    def __init__(
        self, bytes_max: int = HELD_BYTES_MAX, count: Callable[[int], None] = lambda size: None
    ) -> None:
        self.bytes = 0
        self._bytes_max = bytes_max
        self._count = count
        self._answers: dict[Session, list[bytes]] = {}
        self._dropped: dict[Session, None] = {}

    def put(self, session: Session, payload: bytes) -> None:
        """Hold an answer. If there is no room for it, drop all answers for the session."""
        if session in self._dropped:
            return
        if self.bytes + len(payload) > self._bytes_max:
            self._drop(session)
            self._dropped[session] = None
            return
        self._answers.setdefault(session, []).append(payload)
        self.bytes += len(payload)
        self._count(len(payload))

    def forget(self, session: Session) -> None:
        """The connection has ended."""
        self._drop(session)
        self._dropped.pop(session, None)

    def release(self) -> None:
        """The lease was renewed: send the answers. A node with dropped answers has to resume."""
        self._count(-self.bytes)
        answers, self._answers, self.bytes = self._answers, {}, 0
        dropped, self._dropped = self._dropped, {}
        for session, payloads in answers.items():
            for payload in payloads:
                session.send(payload)
        for session in dropped:
            session.outlet.abort()

    def _drop(self, session: Session) -> None:
        size = sum(map(len, self._answers.pop(session, [])))
        self.bytes -= size
        self._count(-size)
