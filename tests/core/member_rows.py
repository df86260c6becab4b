"""Rows of a member table, and the longest close, for tests of what a ledger keeps.

What must not be here: a test.
"""

from __future__ import annotations

import msgspec

from rallypoint.core.values import (
    Change,
    ChangeKind,
    CloseRecord,
    Failure,
    FailureKind,
    Outcome,
    RoundMember,
)

LABELS = {"zone": "us-west-2b", "rack": "r17", "pod": "trainer-worker-0001", "gpu": "H100-80GB"}


def members(count: int, labels: dict[str, str] | None = None) -> tuple[RoundMember, ...]:
    rows = []
    for i in range(count):
        host = f"ip-10-{i >> 16}-{(i >> 8) & 255}-{i & 255}.us-west-2.compute.internal"
        rows.append(RoundMember(f"{host}-{1000 + i}-0", (1 << 61) + i, host, (), 8, labels or {}))
    return tuple(rows)


def restarted(rows: tuple[RoundMember, ...], *ranks: int) -> tuple[RoundMember, ...]:
    changed = list(rows)
    for rank in ranks:
        row = rows[rank]
        changed[rank] = msgspec.structs.replace(row, incarnation=row.incarnation + 7)
    return tuple(changed)


def a_close(lines: int, length: int, char: str = "\U0001f680") -> CloseRecord:
    text = char * length
    failure = Failure(FailureKind.EXCEPTION, text, last_lines=(text,) * (lines - 1) + ("the end",))
    names = tuple(char * 256 for _ in range(8))
    change = Change(ChangeKind.WORKER_FAILED, 1, names, 8, text, failure=failure)
    return CloseRecord(Outcome.FAILED, text, text[:256], 1, 1, change)
