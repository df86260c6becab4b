"""A store of three nodes, for tests that send it one call after the other.

What must not be here: a test, or what a single test checks.
"""

from collections.abc import Sequence

from rallypoint.core.store import (
    Answer,
    Barrier,
    StoreFailure,
    StoreLimits,
    StoreOp,
    StoreResult,
    StoreValue,
)
from rallypoint.core.store.store import RoundStore


class StoreClient:
    """A store for the nodes a (ranks 0, 1), b (2) and c (3). It numbers the requests."""

    def __init__(self, **limits: int) -> None:
        self.store = RoundStore([("a", 0, 2), ("b", 2, 1), ("c", 3, 1)], StoreLimits(**limits))
        self.now_s = 100.0
        self.last_id = 0

    def send(self, op: StoreOp, node: str = "a", timeout_s: float | None = None) -> list[Answer]:
        self.last_id += 1
        return self.store.apply(node, self.last_id, op, timeout_s, self.now_s)

    def call(self, op: StoreOp, node: str = "a") -> StoreResult:
        """The result of a call that is answered at once, without another answer."""
        (answer,) = self.send(op, node)
        assert (answer.node, answer.request_id) == (node, self.last_id)
        return answer.result

    def value(self, op: StoreOp) -> object:
        result = self.call(op)
        assert isinstance(result, StoreValue), result
        return result.value

    def failure(self, op: StoreOp, node: str = "a") -> StoreFailure:
        result = self.call(op, node)
        assert isinstance(result, StoreFailure), result
        return result

    def waits(self, op: StoreOp, node: str = "a", timeout_s: float | None = None) -> int:
        """Send a call that is not answered yet. Returns its request id."""
        assert self.send(op, node, timeout_s) == []
        return self.last_id

    def arrive(self, rank: int, timeout_s: float | None = None) -> list[Answer]:
        return self.send(Barrier("step", rank), "aabc"[rank], timeout_s)

    def later(self, seconds: float) -> list[Answer]:
        self.now_s += seconds
        return self.store.expire(self.now_s)


def ids(answers: Sequence[Answer]) -> list[int]:
    return [answer.request_id for answer in answers]


def failed(answer: Answer) -> StoreFailure:
    assert isinstance(answer.result, StoreFailure), answer
    return answer.result
