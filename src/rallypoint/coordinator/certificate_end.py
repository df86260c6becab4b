"""Warns before a certificate of the coordinator ends. Only this file needs the time of day for it.

Whoever is connected stays so. A node that connects after the end refuses the coordinator.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from rallypoint import logs, runtime
from rallypoint.security.claims import time_text
from rallypoint.security.der import ENDS_SOON_S

_log = logging.getLogger("rallypoint.coordinator")

LOOK_S: Final = 600.0
TOLD_S: Final = 6 * 3_600.0
"""At most one line in this time."""
WHAT_TO_DO: Final = (
    "give it a new host token (`rallypoint token new --state DIR --role host`), or new files of "
    "--tls-cert; a file that is replaced is read within seconds"
)


async def warn(ends_at: Callable[[], float | None]) -> None:
    """Look again and again, until cancelled. `ends_at`: in seconds since 1970."""
    while True:
        end = ends_at()
        if end is not None and end - runtime.here().wall_s() < ENDS_SOON_S:
            _log.warning(told(end, runtime.here().wall_s()), extra=logs.limit(1, TOLD_S))
        await asyncio.sleep(LOOK_S)


def told(ends_at: float, now_at: float) -> str:
    """The line of the log."""
    at = time_text(ends_at)
    if ends_at < now_at:
        what = f"has ended at {at}: nodes that connect now refuse it"
    else:
        what = f"ends at {at}; nodes that connect after that refuse it"
    return f"the certificate of this coordinator {what}: {WHAT_TO_DO}"
