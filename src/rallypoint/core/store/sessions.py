"""What a round's store remembers of each node: which calls it has seen, and its answers.

A call that is sent again is answered from here and is not applied again (R11). Nothing here reads
the data.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Final

from rallypoint.core.store.data import Tally
from rallypoint.core.store.operations import (
    READS,
    Answer,
    StoreFailure,
    StoreOp,
    StoreResult,
    StoreValue,
)
from rallypoint.core.store.waits import Call
from rallypoint.core.values import FrozenStruct

# Measured with CPython 3.11 to 3.13, and rounded up.
CALL_BYTES: Final = 220
"""Memory of a call besides its answer, until it is acknowledged."""
OPEN_ID_BYTES: Final = 100
"""Memory of a request id that an acknowledgement leaves open."""
REMEMBERED_READ_BYTES_MAX: Final = 1024
"""The answer of a read is not kept if it has more bytes than this. When its node asks again, the
read is made again. Thousands of such answers would keep alive values that were overwritten since.
"""


class AskAgain(enum.Enum):
    """Stands for the answer of a large read, which is made again when its node asks again."""

    ASK_AGAIN = enum.auto()


class SessionPicture(FrozenStruct, frozen=True):
    """What is remembered of a node: the acknowledged ids, and the answers.

    An answer is None if the call was cancelled, or was a large read.
    """

    node: str
    acknowledged: float
    still_open: tuple[int, ...]
    answered: tuple[tuple[int, Answer | None], ...]


class Session:
    """What is remembered of one incarnation of a node."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        # By request id: a call that waits, an answer in case it is asked for again, or None for
        # a call that was cancelled.
        self.calls: dict[int, Call | Answer | AskAgain | None] = {}
        self._reads: set[int] = set()  # The ids in `calls` of reads that were answered.
        self.answer_bytes = 0
        # Ids up to `_floor` are acknowledged, except those in `_open`. Larger ids are in the heap.
        self._floor: float = -math.inf
        self._open: dict[int, None] = {}
        self._ids: list[int] = []

    def admit(self, call: Call) -> None:
        """A new call is applied from now on."""
        self.calls[call.request_id] = call
        self._tally.kept += CALL_BYTES
        if call.request_id > self._floor:
            heappush(self._ids, call.request_id)

    def has_seen(self, request_id: int) -> bool:
        """Whether the request is a repeat."""
        acknowledged = request_id <= self._floor and request_id not in self._open
        return acknowledged or request_id in self.calls

    def may_ask_again(self, request_id: int) -> bool:
        """Whether the request was a large read, which is made again."""
        return self.calls.get(request_id) is AskAgain.ASK_AGAIN

    def remembered(self, request_id: int) -> list[Answer]:
        """The answer to this request, if it is kept."""
        call = self.calls.get(request_id)
        return [call] if isinstance(call, Answer) else []

    def remember(self, answer: Answer, op: StoreOp | None = None) -> None:
        """Keep the answer to a call that was admitted. `op` None: it was no read."""
        size = result_bytes(answer.result)
        if size > REMEMBERED_READ_BYTES_MAX and type(op) in READS:
            self.calls[answer.request_id] = AskAgain.ASK_AGAIN
            return
        if self._tally.tells_reads and type(op) in READS:
            self._reads.add(answer.request_id)
        self.calls[answer.request_id] = answer
        if size:
            self.answer_bytes += size
            self._tally.kept += size

    def close(self, up_to: int, still_open: Iterable[int]) -> list[int]:
        """Acknowledge ids up to `up_to`. Returns those that are known here and now acknowledged."""
        if up_to < self._floor:
            return []  # a later acknowledgement has come before this one
        stays = {i: None for i in still_open if i in self._open or self._floor < i <= up_to}
        closed = [i for i in self._open if i not in stays]
        while self._ids and self._ids[0] <= up_to:
            closed.append(heappop(self._ids))
        if len(stays) != len(self._open):
            self._tally.kept += OPEN_ID_BYTES * (len(stays) - len(self._open))
        self._floor, self._open = up_to, stays
        return [i for i in closed if i in self.calls and i not in stays]

    def forget(self, request_id: int) -> None:
        """Drop an acknowledged request, and its answer."""
        call = self.calls.pop(request_id)
        self._tally.kept -= CALL_BYTES
        if isinstance(call, Answer):
            size = result_bytes(call.result)
            if size:
                self.answer_bytes -= size
                self._tally.kept -= size
            if self._reads:
                self._reads.discard(request_id)

    def kept(self) -> int:
        """This session's share of the tally, in bytes, once none of its calls waits."""
        own = CALL_BYTES * len(self.calls) + OPEN_ID_BYTES * len(self._open)
        return own + self.answer_bytes

    # -- for a snapshot, and from one ------------------------------------------------------------

    def acknowledged(self) -> tuple[int, tuple[int, ...]] | None:
        """The last acknowledgement, as `close` was given it; None if there was none."""
        return None if self._floor == -math.inf else (int(self._floor), tuple(self._open))

    def written(self) -> list[Answer]:
        """The remembered answers of calls that were no reads."""
        answers = (each for each in self.calls.values() if isinstance(each, Answer))
        return [each for each in answers if each.request_id not in self._reads]

    def restore_acknowledged(self, up_to: int, still_open: Iterable[int]) -> None:
        """Take what `acknowledged` returned, in one call or several, before any `restore`."""
        self._floor = up_to
        before = len(self._open)
        self._open.update(dict.fromkeys(still_open))
        self._tally.kept += OPEN_ID_BYTES * (len(self._open) - before)

    def restore(self, answer: Answer) -> None:
        """Remember an answer that another coordinator gave."""
        known = self.calls.get(answer.request_id)
        if isinstance(known, Answer):
            size = result_bytes(known.result)
            self.answer_bytes -= size
            self._tally.kept -= size
        else:
            self._tally.kept += CALL_BYTES
            if answer.request_id > self._floor:
                heappush(self._ids, answer.request_id)
        self.remember(answer)

    def lengthen(self, request_id: int, more: bytes) -> None:
        """Add the next bytes of an answer that was restored in part."""
        known = self.calls.get(request_id)
        if isinstance(known, Answer):
            assert isinstance(known.result, StoreValue)
            assert isinstance(known.result.value, bytes)
            whole = StoreValue(known.result.value + more)
            self.restore(Answer(known.node, request_id, whole))

    def picture(self, node: str) -> SessionPicture:
        """This session as a hashable value."""
        known = sorted(
            (i, c if isinstance(c, Answer) else None)
            for i, c in self.calls.items()
            if not isinstance(c, Call)
        )
        return SessionPicture(node, self._floor, tuple(sorted(self._open)), tuple(known))


def result_bytes(result: StoreResult) -> int:
    """Memory of an answer's values or texts, in bytes."""
    if isinstance(result, StoreFailure):
        return len(result.message) + sum(map(len, result.missing))
    if isinstance(result.value, tuple):
        return sum(map(len, result.value))
    return len(result.value) if isinstance(result.value, bytes) else 0
