"""A round's key-value store.

The package exports the calls, their answers and their limits (`operations`). The machine is
`store.RoundStore`, which also remembers the answers. It keeps keys and values in `data`, and
waiting calls in `waits`. `snapshot` has the state that is written for the next coordinator.
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
