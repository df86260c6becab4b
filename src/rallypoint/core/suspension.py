"""The reasons why a run is SUSPENDED. The part that raises a reason also clears it.

A run may lack its ledger in several ways at once: the lease is not renewed, a record of the store's
log is not written, the next round does not fit. When one of these ends, others may remain. So the
run continues when the last one has ended.
"""

from __future__ import annotations

import enum


class SuspensionCause(enum.StrEnum):
    """What suspends a run, the most important cause first. Its reason is the one that is shown."""

    DEPOSED = "deposed"
    """Another coordinator may own the run. This cause never ends."""
    LEASE = "lease"
    """The coordinator could not renew its lease in time, so it must not decide."""
    COMMIT = "commit"
    """The ledger does not accept the record that is being committed."""
    APPEND = "append"
    """The ledger does not accept a record of the log of the round's store."""


class Suspension:
    """The reasons for which one run is suspended, at most one of each cause."""

    def __init__(self) -> None:
        self._reasons: dict[SuspensionCause, str] = {}
        self.since_s = 0.0
        """When the run was suspended, if it is."""
        self._ledger_away_since_s: float | None = None

    def __bool__(self) -> bool:
        return bool(self._reasons)

    def begin(
        self, cause: SuspensionCause, reason: str, now_s: float, *, away_s: float | None = None
    ) -> None:
        """Raise a reason. A newer one of the same cause replaces the older one.

        `away_s`, for the cause LEASE: how long the ledger has not answered; None if it answers.
        """
        if not self._reasons:
            self.since_s = now_s
        self._reasons[cause] = reason
        if cause is SuspensionCause.DEPOSED:
            self._ledger_away_since_s = None
        elif cause is SuspensionCause.LEASE and SuspensionCause.DEPOSED not in self._reasons:
            self._ledger_away_since_s = None if away_s is None else now_s - away_s

    def end(self, cause: SuspensionCause) -> bool:
        """Clear the reason of this cause. False if there was none. DEPOSED never ends."""
        # R5: no process regains a run by waiting.
        if cause is SuspensionCause.DEPOSED or self._reasons.pop(cause, None) is None:
            return False
        if cause is SuspensionCause.LEASE:
            self._ledger_away_since_s = None
        return True

    def ledger_away_s(self, now_s: float) -> float | None:
        """How long the ledger has not answered, in seconds; None if it answers."""
        since_s = self._ledger_away_since_s
        return None if since_s is None else now_s - since_s

    @property
    def reason(self) -> str:
        """The most important one; "" if there is none."""
        return next(iter(self.reasons), "")

    @property
    def reasons(self) -> tuple[str, ...]:
        """All of them, the most important one first."""
        return tuple(self._reasons[cause] for cause in SuspensionCause if cause in self._reasons)

    @property
    def causes(self) -> tuple[SuspensionCause, ...]:
        """Which causes apply, the most important one first."""
        return tuple(cause for cause in SuspensionCause if cause in self._reasons)
