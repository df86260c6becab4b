"""The requests of a node that have no answer yet."""

from __future__ import annotations

from typing import Final, TypeAlias, TypeVar

import msgspec

from rallypoint.client.actions import Action, CallAnswered, MembersTold, WaitingTold
from rallypoint.core.store import StoreOp
from rallypoint.core.values import Stamp
from rallypoint.wire import messages as wire

STILL_OPEN_MAX: Final = 64
"""With more open calls, a message does not list them: it acknowledges up to the oldest one."""

Request: TypeAlias = wire.StoreCall | wire.AskMembers | wire.AskWaiting
_Question = TypeVar("_Question", wire.AskMembers, wire.AskWaiting)


class OpenRequests:
    """Calls of the round's store, and questions, until they are answered (R11).

    Each has an id, which is unique for its node. It must not send them, and must not depend on the
    connection or the round: the machine says when to send all again, and when the round has ended.
    """

    def __init__(self) -> None:
        self.open: dict[int, Request] = {}
        """By their ids, the oldest first."""
        self._last_id = 0
        self._ends_s: dict[int, float] = {}
        """When each open call with a timeout ends."""

    def call(
        self, stamp: Stamp, op: StoreOp, timeout_s: float | None, now_s: float | None
    ) -> wire.StoreCall:
        """A new call of the store, with what the coordinator may forget.

        Without `now_s`, a call that is sent again has its whole timeout again.
        """
        self._last_id += 1
        request_id = self._last_id
        # All calls up to this id are answered, except the listed ones.
        acknowledged, still_open = request_id - 1, tuple(self.open)
        if len(still_open) > STILL_OPEN_MAX:
            acknowledged, still_open = still_open[0] - 1, ()
        call = wire.StoreCall(stamp, request_id, op, timeout_s, acknowledged, still_open)
        self.open[request_id] = call
        if timeout_s is not None and now_s is not None:
            self._ends_s[request_id] = now_s + timeout_s
        return call

    def ask(self, kind: type[_Question], stamp: Stamp) -> _Question:
        """A new question."""
        self._last_id += 1
        question = kind(stamp, self._last_id)
        self.open[self._last_id] = question
        return question

    def answered(self, message: wire.StoreAnswer) -> list[Action]:
        """The answer to a call. Any later one is ignored."""
        if not isinstance(self.open.get(message.request_id), wire.StoreCall):
            return []
        self._ends_s.pop(message.request_id, None)
        del self.open[message.request_id]
        return [CallAnswered(message.request_id, message.result)]

    def told(self, message: wire.Members | wire.WaitingIs) -> list[Action]:
        """The answer to a question. Any later one is ignored."""
        asked = wire.AskWaiting if isinstance(message, wire.WaitingIs) else wire.AskMembers
        if not isinstance(self.open.get(message.request_id), asked):
            return []
        del self.open[message.request_id]
        if isinstance(message, wire.WaitingIs):
            return [WaitingTold(message.request_id, message.waiting)]
        return [MembersTold(message.request_id, message.round, message.digest, message.members)]

    def drop(self, request_id: int) -> bool:
        """Nobody waits for this request any more. Whether it was an open call of the store."""
        self._ends_s.pop(request_id, None)
        return isinstance(self.open.pop(request_id, None), wire.StoreCall)

    def drop_calls(self) -> None:
        """The round has ended, and its store with it."""
        self._ends_s.clear()
        self.open = {k: v for k, v in self.open.items() if not isinstance(v, wire.StoreCall)}

    def to_send_again(self, now_s: float) -> list[wire.Message]:
        """All of them. A call has what is left of its timeout: another coordinator used a part."""
        again: list[wire.Message] = []
        for request_id, asked in self.open.items():
            ends_s = self._ends_s.get(request_id)
            if ends_s is not None and isinstance(asked, wire.StoreCall):
                # R9: a duration, as the coordinator's clock is another one.
                asked = msgspec.structs.replace(asked, timeout_s=max(0.0, ends_s - now_s))
            again.append(asked)
        return again
