"""The cause of a round's end. `blame` has what it costs of the run's restart budget.

When a node dies, the workers of the other nodes fail 10 to 20 ms later with errors about a closed
connection. At that time it is not known that the node is dead. So a worker's failure ends the round
at once, but opens a *case*: the members are probed (`probing`), and the cause is named when the
suspects are resolved. The cause is the worst event that is known: first a lost node, then a killed
worker, then an exception in a program, then a communication error. Of two events of one kind, the
first counts.
"""

from __future__ import annotations

import math

import msgspec

from rallypoint.core import reasons
from rallypoint.core.values import TEXT_LENGTH_MAX, Change, ChangeKind, Failure, FailureKind

_PRECEDENCE = {
    FailureKind.SIGNAL: 0,
    FailureKind.OOM: 0,
    FailureKind.EXCEPTION: 1,
    FailureKind.COMMUNICATION: 2,
}


class Case:
    """What is known about the end of one round.

    `finished`: the member whose workers finished first, if any. A program that ends early on one
    node explains the communication errors of the others. `lasted_s`: how long the round was active,
    in seconds; infinite: this coordinator does not know.
    """

    def __init__(self, change: Change, finished: str = "", lasted_s: float = math.inf) -> None:
        self.round = change.round
        self.lasted_s = lasted_s
        self.final: Change | None = None
        """A failure with an exit code that forbids a restart, until the run ends for it."""
        # A failure is confirmed already if an earlier coordinator gave the verdict on it.
        self.closed = change.confirmed
        self._change = change
        self._loss: Change | None = None
        self._departure: Change | None = None
        self._finished = finished

    @property
    def change(self) -> Change:
        """The best explanation so far."""
        # The program has said itself why it ends, and that is why the run ends.
        if self.final is not None and not self.closed:
            return self.final
        if self._loss is not None:
            return self._loss
        is_explained = self._departure is not None and self._is_communication_error()
        return self._departure if is_explained and self._departure else self._change

    def add_failure(self, node: str, failure: Failure) -> None:
        """Record another failure of a worker of the round.

        It counts if it is worse than the known ones.
        """
        known = self._change.failure
        if self.closed or known is None:
            return
        if _PRECEDENCE[failure.kind] < _PRECEDENCE[known.kind]:
            self._change = failed(self.round, node, failure)

    def add_loss(self, change: Change) -> None:
        """A member of the round was lost. Nothing is worse; the first loss is kept."""
        if not self.closed and self._loss is None:
            self._loss = change

    def add_departure(self, change: Change) -> None:
        """A member of the round left by itself.

        A scheduler signals workers and their agent in any order. So the communication errors of
        other nodes may be known before the departure that explains them.
        """
        if not self.closed and self._departure is None:
            self._departure = change

    def needs_time(self) -> bool:
        """Whether only a communication error is known, whose cause is on another node."""
        others = (self._loss, self._departure, self.final)
        return not any(each is not None for each in others) and self._is_communication_error()

    def _is_communication_error(self) -> bool:
        failure = self._change.failure
        return failure is not None and failure.kind is FailureKind.COMMUNICATION

    def close(self, unresolved: int) -> Change:
        """The verdict. `unresolved`: how many members have neither answered nor been lost.

        It is charged to the budget only if the program is to blame: not if a member was lost, and
        not for a communication error while a member is missing.
        """
        change = self.change
        is_consequence = self.needs_time()
        self.closed = True
        explained = change.failure is None or (is_consequence and unresolved > 0)
        if is_consequence and self._finished:
            change = _after_finish(change, self._finished)
        # A node that attaches again later gets this verdict.
        self._change = msgspec.structs.replace(change, charged=not explained, confirmed=True)
        self._loss = self._departure = None
        return self._change

    def freeze(self) -> tuple[object, ...]:
        """The state on which decisions depend, as a hashable value, without times."""
        return (self.change, self.closed, self.final)


def failed(round_number: int, node: str, failure: Failure) -> Change:
    """A worker of `node` failed. It is confirmed as the cause when the case is closed."""
    return Change(
        ChangeKind.WORKER_FAILED,
        round_number,
        nodes=(node,),
        count=1,
        detail=failure.message,
        failure=failure,
        confirmed=False,
    )


def happened(
    kind: ChangeKind,
    round_number: int,
    names: list[str] | tuple[str, ...],
    detail: str = "",
    since_s: float = 0.0,
) -> Change:
    """A change other than a worker's failure. It shows NAMES_SHOWN_MAX names at most."""
    shown = reasons.first_names(names)
    return Change(kind, round_number, shown, len(names), detail, since_s)


def _after_finish(change: Change, finished: str) -> Change:
    """The change, and that the program had ended on one node before."""
    assert change.failure is not None
    known = change.failure.message
    message = f"{known}; {finished} had finished before" if known else f"{finished} had finished"
    failure = msgspec.structs.replace(change.failure, message=message[:TEXT_LENGTH_MAX])
    return msgspec.structs.replace(change, failure=failure, detail=message[:TEXT_LENGTH_MAX])
