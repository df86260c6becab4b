"""What the commands of `rallypoint token` share."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator

from rallypoint import settings
from rallypoint.errors import UsageError
from rallypoint.security.authority import CA_VALID
from rallypoint.security.state import StateError


@contextlib.contextmanager
def as_usage_error() -> Iterator[None]:
    """Raise a StateError as a UsageError."""
    try:
        yield
    except StateError as error:
        raise UsageError(str(error), hint=error.hint) from error


def lasting(text: str, option: str) -> dt.timedelta:
    """A time such as 7d. Raises UsageError, which names the option."""
    try:
        seconds = settings.parse_duration_s(text)
    except ValueError as error:
        raise UsageError(f"{option} {error}", hint="write it as 12h or 30d") from None
    if not 60 <= seconds <= CA_VALID.total_seconds():
        raise UsageError(f"{option} must be within 1m and {CA_VALID.days}d, not {text!r}")
    return dt.timedelta(seconds=seconds)
