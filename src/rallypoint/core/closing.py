"""The end of a run as the ledger keeps it: cut, so that it always fits into the run's head.

The cause of a close may have the last lines of a worker, which are long. A run that could not be
closed would hold its nodes for ever. So the ledger keeps shortened texts. Attached nodes get the
full texts.
"""

from __future__ import annotations

from typing import Final

import msgspec

from rallypoint.core.printable import shortened
from rallypoint.core.values import Change, CloseRecord, Failure

HEAD_BYTES_MAX: Final = 64 * 1024
"""The most bytes of a head, not counting a member table inside it."""
CLOSE_BYTES_MAX: Final = 24 * 1024
_CUTS: Final = ((64, 2_000), (40, 500), (20, 200), (5, 200), (0, 100))
"""How many last lines, and how many characters of a text. The first pair that fits is used."""


def bounded_close(record: CloseRecord) -> CloseRecord:
    """The record with its texts cut, so that it has at most CLOSE_BYTES_MAX bytes."""
    if _size(record) <= CLOSE_BYTES_MAX:
        return record
    for lines, chars in _CUTS:
        cut = _cut_close(record, lines, chars)
        if _size(cut) <= CLOSE_BYTES_MAX:
            break
    return cut


def bounded_end(change: Change) -> Change:
    """Why a round ended, cut for the marks of its members: a few thousand bytes.

    It has no last lines of a failure. Attached members get the full reason.
    """
    return _cut_change(change, 0, 500)


def _size(record: CloseRecord) -> int:
    return len(msgspec.msgpack.encode(record))


def _cut_close(record: CloseRecord, lines: int, chars: int) -> CloseRecord:
    return msgspec.structs.replace(
        record,
        reason=shortened(record.reason, chars),
        by=shortened(record.by, chars),
        cause=_cut_change(record.cause, lines, chars) if record.cause is not None else None,
    )


def _cut_change(change: Change, lines: int, chars: int) -> Change:
    failure = change.failure
    return msgspec.structs.replace(
        change,
        nodes=tuple(shortened(name, chars) for name in change.nodes),
        detail=shortened(change.detail, chars),
        failure=_cut_failure(failure, lines, chars) if failure is not None else None,
    )


def _cut_failure(failure: Failure, lines: int, chars: int) -> Failure:
    # The first lines are cut, because the last ones usually have the error.
    kept = failure.last_lines[-lines:] if lines else ()
    return msgspec.structs.replace(
        failure,
        message=shortened(failure.message, chars),
        last_lines=tuple(shortened(line, chars) for line in kept),
    )
