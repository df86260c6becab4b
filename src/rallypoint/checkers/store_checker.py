"""R10 and R11 as checks on the calls and answers of one round's store, across coordinators.

The checker keeps its own account of the calls, like `run_checker` for the steps of a run. Only
tests use it; no coordinator does.
"""

from __future__ import annotations

from collections.abc import Iterable

from rallypoint.checkers.violations import InvariantViolation
from rallypoint.core.store import READS, Answer, StoreOp, StoreValue
from rallypoint.core.store.store import RoundStore


class StoreChecker:
    """Checks the calls of one round's store over all coordinators that serve it."""

    def __init__(self) -> None:
        self._asked: dict[tuple[str, int], StoreOp] = {}
        self._answered: dict[tuple[str, int], StoreValue] = {}

    def asked(self, node: str, request_id: int, op: StoreOp) -> None:
        """A node has made this call, for the first time or again.

        Raises AssertionError if the node has used the id for another call: a fault of the test.
        """
        if self._asked.setdefault((node, request_id), op) != op:
            raise AssertionError(f"{node} has used request {request_id} twice")

    def acknowledged(self, answers: Iterable[Answer]) -> None:
        """These answers were sent. Raises InvariantViolation."""
        for answer in answers:
            call = (answer.node, answer.request_id)
            before = self._answered.get(call)
            # R11: a call is applied once, so it has one answer, however often it is sent.
            if before is not None and answer.result != before:
                self._fail("R11", call, f"was answered {before}, and then {answer.result}")
            if isinstance(answer.result, StoreValue):
                self._answered[call] = answer.result

    def let_go(self, node: str, up_to_request_id: int) -> None:
        """The node has acknowledged these answers: the store may forget them."""
        for call in list(self._answered):
            if call[0] == node and call[1] <= up_to_request_id:
                del self._answered[call]

    def taken_over(self, store: RoundStore) -> None:
        """Another coordinator goes on with this store. Raises InvariantViolation.

        Reads are forgotten: a read that is made again may see later writes.
        """
        for call, result in list(self._answered.items()):
            node, request_id = call
            op = self._asked[call]
            if type(op) in READS:
                del self._answered[call]
            elif not store.has_seen(node, request_id):
                self._fail(
                    "R10",
                    call,
                    f"was answered {result}, and is missing after the takeover",
                )
            else:
                # The store has seen this call, so it is not applied: the remembered answer is
                # returned.
                self.acknowledged(store.apply(node, request_id, op, None, 0.0))

    def _fail(self, rule: str, call: tuple[str, int], problem: str) -> None:
        node, request_id = call
        what = self._asked.get(call)
        raise InvariantViolation(rule, f"request {request_id} of {node} ({what!r}) {problem}")
