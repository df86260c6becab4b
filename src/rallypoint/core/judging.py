"""Time in which members may be judged: it stands still while the run is SUSPENDED (R8).

Deadlines are kept on this clock. An outage of the ledger takes nobody's time away, and gives nobody
all of it again: with a ledger that comes and goes, nobody would ever be lost.
"""

from __future__ import annotations


class JudgingClock:
    """Seconds in which judging was allowed. `now_s` is the run's time, in seconds."""

    def __init__(self) -> None:
        self._stopped_s: float | None = None
        self._left_out_s = 0.0

    @property
    def is_stopped(self) -> bool:
        """Whether nobody may be judged now."""
        return self._stopped_s is not None

    def at(self, now_s: float) -> float:
        """This clock's reading at `now_s`."""
        return (now_s if self._stopped_s is None else self._stopped_s) - self._left_out_s

    def stop(self, now_s: float) -> None:
        """From now on nobody may be judged. Idempotent."""
        if self._stopped_s is None:
            self._stopped_s = now_s

    def go_on(self, now_s: float) -> None:
        """From now on members may be judged again. Idempotent."""
        if self._stopped_s is not None:
            self._left_out_s += now_s - self._stopped_s
            self._stopped_s = None

    def left_s(self, due_s: float, least_s: float, now_s: float) -> float:
        """How long a deadline has to go when judging begins again; 0 or less if it is over.

        A member may have tried in vain to answer during the outage, so it has `least_s` from now
        on. But in all it has no more than that beyond `due_s`, however often the ledger goes away.
        """
        left_s = due_s - self.at(now_s)
        return min(max(left_s, least_s), left_s + least_s)
