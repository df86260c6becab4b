"""The pace of a run's rounds: fast at first, then slowed. A run that ignores this is closed.

A member that asks for another round as soon as it has one would take the coordinator's time from
all other runs, and its peers would never work. So a run has an allowance of rounds. Each end of a
round, for any reason, takes one from it, and time gives some back. A run that has used up its
allowance is slowed: its next round waits until the allowance has one again. A slowed run that still
ends each round at once is a storm, and has to be closed.

Normal runs stay far below the limits. Workers that crash live longer than BRIEF_S. Names that join
and leave often are delayed already (`flapping`). When a run has more members than ever before, each
new one adds a round to the allowance, so each of them may be lost in a round of its own.
"""

from __future__ import annotations

from typing import Final

ROUNDS_AT_ONCE: Final = 300
"""The allowance of a run, beside one round for each member."""
ROUNDS_PER_S: Final = 5.0
"""How many rounds the allowance gains per second."""
BRIEF_S: Final = 0.05
"""A round shorter than this counts as a round without work, in seconds."""
BRIEF_ROUNDS_MAX: Final = 12
"""A slowed run with this many brief rounds in a row is in a storm."""
RECOVERED_ROUNDS: Final = 30
"""When the allowance is this large again, the run is not slowed any more."""
_NEARLY: Final = 1e-6


class Pace:
    """The allowance of one run. Durations and times in seconds, on the clock of its owner."""

    def __init__(self) -> None:
        self._left = float(ROUNDS_AT_ONCE)
        self._left_max = ROUNDS_AT_ONCE
        self._members_max = 0
        self._at_s = 0.0
        self._brief = 0
        self.is_slowed = False
        self.ended = 0
        """How many rounds have ended since the allowance was full."""
        self._since_s = 0.0

    def round_formed(self, members: int) -> None:
        """A round with this many members is being formed."""
        more = max(0, members - self._members_max)
        self._members_max += more
        self._left_max += more
        self._left += more

    def round_ended(self, lasted_s: float, now_s: float) -> None:
        """A round has ended that was active for `lasted_s`."""
        self._refill(now_s)
        if not self.ended:
            self._since_s = now_s
        self.ended += 1
        self._left = max(0.0, self._left - 1)
        if self.is_slowed:
            self._brief = self._brief + 1 if lasted_s < BRIEF_S else 0

    def wait_s(self, now_s: float) -> float:
        """How long the next round has to wait."""
        self._refill(now_s)
        missing = 1 - self._left
        # A timer that was set for this wait may find a tiny part missing.
        if missing < _NEARLY:
            return 0.0
        self.is_slowed = True
        return missing / ROUNDS_PER_S

    @property
    def is_storm(self) -> bool:
        """Whether the run is in a storm and has to be closed."""
        return self._brief >= BRIEF_ROUNDS_MAX

    def since_s(self, now_s: float) -> float:
        """How long ago the first of the rounds ended that `ended` counts."""
        return max(0.0, now_s - self._since_s)

    def freeze(self) -> tuple[object, ...]:
        """The state on which decisions depend now, as a hashable value. It has no times."""
        return (self.is_slowed, self._brief)

    def _refill(self, now_s: float) -> None:
        passed_s = max(0.0, now_s - self._at_s)
        self._at_s = now_s
        self._left = min(float(self._left_max), self._left + passed_s * ROUNDS_PER_S)
        if self._left >= RECOVERED_ROUNDS:
            self.is_slowed, self._brief = False, 0
        if self._left == self._left_max:
            self.ended = 0
