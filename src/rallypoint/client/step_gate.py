"""One worker's side of the agreement on the step at which all workers of a round stop (R14).

The program asks at each step whether to stop. The answer is no, and the worker has *passed* that
step. When its node is asked, another thread than the program's *promises* the last step that the
worker has passed: the program may hang in a collective just then. From the promise on, a later step
waits, until the step is decided or the round has ended.
"""

from __future__ import annotations

import enum
import operator
import threading
from typing import SupportsIndex

from rallypoint import errors


class Pass(enum.Enum):
    """What the gate says about a step."""

    GO_ON = enum.auto()
    STOP = enum.auto()
    WAIT = enum.auto()
    """The worker has promised, and the decision is not known yet: ask again after it."""


class StepGate:
    """The gate of one worker in one round. Any thread may call it; no call waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: int | None = None
        self._passed: int | None = None
        self._promised: int | None = None
        self._step: int | None = None

    @property
    def is_used(self) -> bool:
        """Whether the worker has asked about a step."""
        return self._asked is not None

    @property
    def is_stopped(self) -> bool:
        """Whether the worker was told to stop."""
        asked, step = self._asked, self._step
        return asked is not None and step is not None and asked >= step

    def enter(self, step: SupportsIndex) -> Pass:
        """The program is about to begin this step. Raises UsageError if steps go backwards."""
        number = _checked(step)
        with self._lock:
            if self._asked is not None and number < self._asked:
                raise errors.UsageError(
                    f"should_yield({number}) after should_yield({self._asked}): steps must not go "
                    "backwards in a world",
                    hint="pass one counter, which may begin anew only in the next world",
                )
            self._asked = number
            # R14: every worker stops at the first step that is not below the decided one.
            if self._step is not None and number >= self._step:
                return Pass.STOP
            # R14: nothing beyond the promise is passed before the decision.
            if self._step is None and self._promised is not None and number > self._promised:
                return Pass.WAIT
            self._passed = number
            return Pass.GO_ON

    def promise(self) -> int | None:
        """Promise the last step that was passed; None if the worker has not passed any.

        R14: the first promise counts, however often it is asked for.
        """
        with self._lock:
            if self._promised is None:
                self._promised = self._passed
            return self._promised

    def decide(self, step: int) -> None:
        """All workers of the round stop at this step."""
        with self._lock:
            # R14: a decision is never changed.
            if self._step is None:
                self._step = step


def _checked(step: SupportsIndex) -> int:
    try:
        number = operator.index(step)
    except TypeError:
        number = -1
    if not 0 <= number < 2**62:
        raise errors.UsageError(f"a step is a whole number from 0 on, not {step!r}")
    return number
