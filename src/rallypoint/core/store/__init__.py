"""A round's key-value store.

This package gives what its callers need: the calls, their answers and their limits (`operations`).
The machine is `store.RoundStore`, which remembers the answers. It keeps keys and values in `data`,
and the calls that wait in `waits`. `snapshot` has what is written for the next coordinator.
"""

from __future__ import annotations

from rallypoint.core.store.operations import (
    BAD_REQUEST,
    DEFAULT_LIMITS,
    LIMIT,
    NOT_AN_INTEGER,
    READS,
    ROUND_ENDED,
    TIMEOUT,
    Add,
    Answer,
    Append,
    Barrier,
    Check,
    CompareSet,
    DataOp,
    DeleteKey,
    Get,
    MultiGet,
    MultiSet,
    NumKeys,
    Set,
    StoreFailure,
    StoreLimits,
    StoreOp,
    StoreResult,
    StoreValue,
    Wait,
)

__all__ = [
    "BAD_REQUEST",
    "DEFAULT_LIMITS",
    "LIMIT",
    "NOT_AN_INTEGER",
    "READS",
    "ROUND_ENDED",
    "TIMEOUT",
    "Add",
    "Answer",
    "Append",
    "Barrier",
    "Check",
    "CompareSet",
    "DataOp",
    "DeleteKey",
    "Get",
    "MultiGet",
    "MultiSet",
    "NumKeys",
    "Set",
    "StoreFailure",
    "StoreLimits",
    "StoreOp",
    "StoreResult",
    "StoreValue",
    "Wait",
]
