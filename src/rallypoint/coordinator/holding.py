"""What waits until the coordinator's lease stands again: answers of the store, and seats.

While the last renewal is not fresh another coordinator may have the run, and what that one has
acknowledged is not seen here (R5, R10). So an answer is kept until a renewal succeeds. After a
deposition it is dropped with its connection: the node asks the next coordinator again, and the
request is applied once (R11).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rallypoint.coordinator.session import Session

HELD_BYTES_MAX: Final = 64 * 1024**2
"""What is kept for all nodes of one run. A node whose answers do not fit asks again later."""


class Held:
    """What one run's nodes are to be sent when the lease stands again, in order for each node.

    `count` is told what is kept, and what is not kept any more.
    """

    def __init__(
        self, bytes_max: int = HELD_BYTES_MAX, count: Callable[[int], None] = lambda size: None
    ) -> None:
        self._bytes_max = bytes_max
        self._count = count
        self._bytes = 0
        self._answers: dict[Session, list[bytes]] = {}
        self._seats: dict[Session, None] = {}
        self._dropped: dict[Session, None] = {}

    def answer(self, session: Session, payload: bytes) -> None:
        """Keep an answer; without room for it the session's answers are dropped."""
        if session in self._dropped:
            return
        if self._bytes + len(payload) > self._bytes_max:
            self._forget_answers(session)
            self._dropped[session] = None
            return
        self._answers.setdefault(session, []).append(payload)
        self._bytes += len(payload)
        self._count(len(payload))

    def seat(self, session: Session) -> None:
        """The session's node has a seat that it has yet to be told."""
        self._seats[session] = None

    def take_seats(self) -> list[Session]:
        """The sessions that wait for a seat; they wait no longer."""
        seats, self._seats = self._seats, {}
        return list(seats)

    def forget(self, session: Session) -> None:
        """The session is over."""
        self._forget_answers(session)
        self._seats.pop(session, None)
        self._dropped.pop(session, None)

    def release_answers(self) -> None:
        """The lease stands: send what was kept. A node whose answers were dropped has to resume."""
        self._count(-self._bytes)
        answers, self._answers, self._bytes = self._answers, {}, 0
        dropped, self._dropped = self._dropped, {}
        for session, payloads in answers.items():
            for payload in payloads:
                session.send(payload)
        for session in dropped:
            session.outlet.abort()

    def _forget_answers(self, session: Session) -> None:
        size = sum(map(len, self._answers.pop(session, [])))
        self._bytes -= size
        self._count(-size)
