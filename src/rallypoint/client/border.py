"""Where an expected error leaves Rallypoint: a program gets it without the frames inside.

Its last lines say whose fault it is and what to do. The frames of the event loop's thread, and the
errors that a part of Rallypoint has caught on the way, would hide them. `python -X dev` keeps all
of it. So does an error that is not expected: that is a bug.
"""

from __future__ import annotations

import sys
from types import TracebackType

from rallypoint.errors import LedgerError, RallypointError, UsageError


class Border:
    """`with BORDER:` bares each RallypointError that leaves the block."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, RallypointError):
            bare(error)


BORDER = Border()


def bare(error: RallypointError) -> None:
    """Take the frames off an error, and the causes that its text has already.

    The system's error stays as its `__cause__`: programs may ask for its number. So does the error
    of a ledger's engine, which may be a program's own. The mistake of a caller has no other cause.
    """
    if sys.flags.dev_mode:
        return
    cause = error.__cause__
    is_of_others = isinstance(cause, OSError) or isinstance(error, LedgerError)
    if (
        cause is None
        or isinstance(error, UsageError)
        or not is_of_others
        or isinstance(cause, TimeoutError)
    ):
        error.__cause__ = None
    else:
        cause.__traceback__ = None
        cause.__suppress_context__ = True
        if cause.__cause__ is not None:
            cause.__cause__.__traceback__ = None
    error.__suppress_context__ = True
    error.__traceback__ = None
