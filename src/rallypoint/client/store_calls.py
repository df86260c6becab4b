"""The protocol of a store's calls: one operation in, one result out. A failure is a value.

`Store` (native, asynchronous and blocking) and torch's stores are written once over `StoreCalls`;
what executes a call (a node, a worker's agent, a store over TCP, etcd) implements it. So a
failure is made where it happens, is passed on unchanged, and becomes an error in the store's own
method: see `store_error`.
"""

from __future__ import annotations

from typing import Final, Protocol

from rallypoint import errors
from rallypoint.core.store import (
    BAD_REQUEST,
    LIMIT,
    NOT_AN_INTEGER,
    ROUND_ENDED,
    TIMEOUT,
    StoreFailure,
    StoreOp,
    StoreResult,
)
from rallypoint.core.values import Change, ChangeKind

COORDINATOR_LOST: Final = "coordinator_lost"
"""The code of a call by a node without a coordinator, which was refused or has given up."""

SILENT: Final = "it may be stopped, overloaded or cut off: look at its log and at its machine"
"""The hint if a coordinator, an agent or a store does not answer."""

_HINTS: Final = {
    NOT_AN_INTEGER: "`add` needs a key without a value, or with a decimal number: use another key",
    LIMIT: "store smaller values, or fewer; keep large data elsewhere and store where it is",
    BAD_REQUEST: "this is a mistake of the program: look at the arguments of the call",
    COORDINATOR_LOST: "this node no longer takes part in the run: see its log, or its agent's log",
}


class StoreCalls(Protocol):
    """Executes a store's calls. For one event loop."""

    async def call(self, op: StoreOp, timeout_s: float | None) -> StoreResult:
        """Execute one operation. It may wait for `timeout_s`; None: without a limit.

        Raises UsageError for an operation that no store accepts, because a type or text is wrong.
        """


def round_ended(change: Change) -> StoreFailure:
    """The result of a call in a round that is over."""
    return StoreFailure(ROUND_ENDED, errors.RoundBrokenError(change).message)


def no_answer(who: str, limit_s: float | None, why: str = "") -> StoreFailure:
    """The result of a call that `who` has not answered for `limit_s` seconds. `why`: if known."""
    message = f"{who} has not answered for {limit_s:g} s"
    return StoreFailure(TIMEOUT, f"{message}: {why}" if why else message)


def store_error(failure: StoreFailure) -> errors.RallypointError:
    """The error of a failed call, from the failure alone."""
    if failure.code == TIMEOUT:
        # The other nodes are at fault only if something of theirs is missing.
        hint = SILENT
        if failure.missing_count:
            hint = "look at what the other nodes do: `rallypoint status`, and their logs"
        return errors.StoreTimeoutError(
            failure.message,
            missing=failure.missing,
            count=failure.missing_count,
            hint=f"{hint}; or set a longer timeout",
        )
    if failure.code == ROUND_ENDED:
        return errors.RoundBrokenError(Change(ChangeKind.NODE_LOST, 0, detail=failure.message))
    if failure.code == COORDINATOR_LOST:
        return errors.CoordinatorLostError(failure.message, hint=_HINTS[COORDINATOR_LOST])
    return errors.StoreError(failure.message, code=failure.code, hint=_HINTS.get(failure.code, ""))
