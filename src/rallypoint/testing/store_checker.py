"""What the store of one round was asked and what it answered, and whether that was allowed.

The rules that span calls and coordinators: R10 and R11. As `run_checker` for a run's steps, it
keeps an account of its own and is used by tests and by the simulator, never by a coordinator.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rallypoint.core.store import Answer, Check, Get, MultiGet, NumKeys, StoreOp, StoreValue, Wait
from rallypoint.core.store.store import RoundStore
from rallypoint.testing.violations import InvariantViolation

READS: Final = (Get, MultiGet, Wait, Check, NumKeys)


class StoreChecker:
    """Checks R10 and R11 over the calls of one round's store, whoever coordinates."""

    def __init__(self) -> None:
        self._asked: dict[tuple[str, int], StoreOp] = {}
        self._answered: dict[tuple[str, int], StoreValue] = {}

    def asked(self, node: str, request_id: int, op: StoreOp) -> None:
        """A node has made this call, for the first time or again."""
        if self._asked.setdefault((node, request_id), op) != op:
            raise AssertionError(f"{node} has used request {request_id} twice")

    def acknowledged(self, answers: Iterable[Answer]) -> None:
        """These answers have left. Raises InvariantViolation."""
        for answer in answers:
            call = (answer.node, answer.request_id)
            before = self._answered.get(call)
            # R11: applied once, so answered once, however often it was resent.
            if before is not None and answer.result != before:
                self._fail("R11", call, f"was answered {before}, and then {answer.result}")
            if isinstance(answer.result, StoreValue):
                self._answered[call] = answer.result

    def let_go(self, node: str, up_to_request_id: int) -> None:
        """The node has these answers and will not ask again: they need not be remembered."""
        for call in list(self._answered):
            if call[0] == node and call[1] <= up_to_request_id:
                del self._answered[call]

    def taken_over(self, store: RoundStore) -> None:
        """A successor goes on with this store. Raises InvariantViolation.

        A read is not kept: asked again, it may see what came later.
        """
        for call, result in list(self._answered.items()):
            node, request_id = call
            op = self._asked[call]
            if isinstance(op, READS):
                del self._answered[call]
            elif not store.has_seen(node, request_id):
                self._fail("R10", call, f"was acknowledged with {result}, and is not there")
            else:
                # Seen before, so that this applies nothing: it only asks what is remembered.
                self.acknowledged(store.apply(node, request_id, op, None, 0.0))

    def _fail(self, rule: str, call: tuple[str, int], problem: str) -> None:
        node, request_id = call
        what = self._asked.get(call)
        raise InvariantViolation(rule, f"request {request_id} of {node} ({what!r}) {problem}")
