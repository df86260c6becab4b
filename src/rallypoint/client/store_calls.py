"""How a store is called: one operation in, one result out. A failure is a value.

`Store` (native, asynchronous and blocking) and torch's stores are written once over `StoreCalls`;
what carries a call out (a node, a worker's agent, a store over TCP, etcd) implements it. So a
failure is made where it happens, is passed on unchanged, and becomes an error in the store's own
method: see `store_error`.
"""

from __future__ import annotations

from typing import Final, Protocol

from rallypoint import errors
from rallypoint.core.store import ROUND_ENDED, TIMEOUT, StoreFailure, StoreOp, StoreResult
from rallypoint.core.values import Change, ChangeKind

COORDINATOR_LOST: Final = "coordinator_lost"
"""The code of a call by a node that has no coordinator and gets none: refused, or gave up."""


class StoreCalls(Protocol):
    """What carries out a store's calls. For one event loop."""

    async def call(self, op: StoreOp, timeout_s: float | None) -> StoreResult:
        """Carry out one operation; it may wait for `timeout_s`, None: without a limit.

        Raises UsageError for an operation that no store takes, as its type or text is wrong.
        """


def round_ended(change: Change) -> StoreFailure:
    """The result of a call in a round that is over."""
    return StoreFailure(ROUND_ENDED, errors.RoundBrokenError(change).message)


def store_error(failure: StoreFailure) -> errors.RallypointError:
    """The error of a failed call, as far as the failure itself tells."""
    if failure.code == TIMEOUT:
        missing, count = failure.missing, failure.missing_count
        return errors.StoreTimeoutError(
            failure.message,
            missing=missing,
            count=count,
            hint="see what the other nodes do (`rallypoint status`, their logs), or wait longer",
        )
    if failure.code == ROUND_ENDED:
        return errors.RoundBrokenError(Change(ChangeKind.NODE_LOST, 0, detail=failure.message))
    if failure.code == COORDINATOR_LOST:
        return errors.CoordinatorLostError(failure.message)
    return errors.StoreError(failure.message, code=failure.code)
