"""Waiting for what other processes and threads do, which set no event in the test's process.

What must not be here: waiting in an event loop (loops.py), or a fixed pause.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
DEADLINE_S = 60.0
"""For what takes a second at most, on a machine that does much else."""


def wait_until(
    what: Callable[[], T],
    within_s: float = DEADLINE_S,
    *,
    says: str | Callable[[], str] = "",
    every_s: float = 0.005,
) -> T:
    """Poll until the result is true, and return it. Fails the test at the deadline."""
    ends_s = time.monotonic() + within_s
    while not (found := what()):
        if time.monotonic() >= ends_s:
            text = says if isinstance(says, str) else says()
            raise AssertionError(f"not within {within_s:g} s: {text}")
        time.sleep(every_s)
    return found
