"""The clock of deadlines: it stands still while the run is SUSPENDED (R8).

No member is judged while the run is SUSPENDED, so an outage of the ledger takes no time from a
member. The outage does not restart a member's time either. Otherwise no member would ever be lost
while the ledger fails again and again.
"""

from __future__ import annotations


class JudgingClock:
    """Counts the seconds in which members can be judged. `now_s` is the run's time, in seconds."""

    def __init__(self) -> None:
        self._stopped_s: float | None = None
        self._left_out_s = 0.0
        self._last_stop = (0.0, 0.0)
        """When the clock stood still last: from, and until."""

    @property
    def is_stopped(self) -> bool:
        """Whether no member may be judged now."""
        return self._stopped_s is not None

    def at(self, now_s: float) -> float:
        """This clock's reading at `now_s`."""
        # R8: the clock stands still while no member is judged.
        return (now_s if self._stopped_s is None else self._stopped_s) - self._left_out_s

    def stop(self, now_s: float) -> None:
        """From now on no member may be judged. Idempotent."""
        # R8: a second reason does not stop it again.
        if self._stopped_s is None:
            self._stopped_s = now_s

    def go_on(self, now_s: float) -> None:
        """From now on members may be judged again. Idempotent."""
        if self._stopped_s is not None:
            # R8: the time of the outage counts for no member.
            self._left_out_s += now_s - self._stopped_s
            self._last_stop = (self._stopped_s, now_s)
            self._stopped_s = None

    def counted_s(self, ago_s: float, now_s: float) -> float:
        """How much of the last `ago_s` seconds counts: without the time of the last outage."""
        since_s, until_s = self._last_stop if self._stopped_s is None else (self._stopped_s, now_s)
        # R15: the time of the outage counts for no deadline.
        return ago_s - max(0.0, until_s - max(since_s, now_s - ago_s))

    def left_s(self, due_s: float, least_s: float, now_s: float) -> float:
        """The time left until a deadline, when judging begins again; 0 or less if it has passed.

        A member may have tried in vain to answer during the outage, so it has at least `least_s`
        from now on. In all it gets no more than `least_s` beyond `due_s`, however often the ledger
        goes away.
        """
        left_s = due_s - self.at(now_s)
        # R8: enough to answer, and bounded however often the ledger goes away.
        return min(max(left_s, least_s), left_s + least_s)
