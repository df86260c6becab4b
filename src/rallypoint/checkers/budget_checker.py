"""What the failures of one run may cost: the checker's own account of the restart budget.

`run_checker` feeds it. It must not share state with `core/blame.py`, so that one mistake cannot
hide in both.
"""

from __future__ import annotations

import math
from typing import Final

from rallypoint.core.blame import Blame, fingerprint
from rallypoint.core.values import Change, CloseRecord, Failure, RunSettings

EARLY_WEIGHT: Final = 2
ROUNDING_S: Final = 0.001
"""Seconds in the ledger are whole milliseconds."""


class BudgetChecker:
    """Counts the charged rounds of a run. Times are those of the run's clock, in seconds.

    Each method returns what is wrong, in words; "" if nothing is.
    """

    def __init__(self) -> None:
        self.charged = 0
        """How many rounds were charged."""
        self._charges: list[tuple[float, int]] = []
        self._row: tuple[str, int, float] = ("", 0, 0.0)
        """The last failure, how often it came in a row, and when the row is forgiven."""
        self._row_step: int | None = None
        """The highest step that was reported in the rounds of the row."""
        self.step: int | None = None
        """The highest step that was reported in the present round."""
        self._end = ""
        """Why no further round may be formed; "" if one may."""

    def restored(self, blame: Blame, restarts: int, settings: RunSettings, now_s: float) -> None:
        """Another coordinator begins with what the ledger has."""
        self.charged, self._end = restarts, ""
        window_s = settings.restart_window_s
        known = [(now_s + each.left_s, each.weight) for each in blame.charges]
        never = blame.spent - sum(weight for _, weight in known)
        others_until_s = math.inf if window_s is None else now_s + window_s
        others = max(0, restarts - blame.restarts)
        self._charges = [*known, (math.inf, never), (others_until_s, others)]
        row_s = math.inf if blame.row_left_s is None else now_s + blame.row_left_s
        self._row = (blame.fingerprint, blame.repeats, row_s)
        self._row_step, self.step = blame.row_step, None

    def verdict(
        self, change: Change, settings: RunSettings, lasted_s: float | None, now_s: float
    ) -> None:
        """The cause of a round's end is known. `lasted_s` None: nobody knows how long it was."""
        if not change.charged:
            return
        is_early = lasted_s is not None and lasted_s < settings.early_s
        weight = EARLY_WEIGHT if is_early else 1
        limit, window_s = settings.max_restarts, settings.restart_window_s
        repeats = self._repeats(change.failure, window_s, now_s)
        if change.failure and change.failure.exit_code in settings.no_restart_exit_codes:
            self._end = "an exit code forbids it"
        elif settings.same_failure is not None and repeats >= settings.same_failure:
            self._end = f"the same failure came {repeats} times"
        elif limit is not None and self.spent(now_s) + weight > limit:
            self._end = f"{self.spent(now_s)} of {limit} were spent, and {weight} more"
        else:
            self.charged += 1
            until_s = math.inf if window_s is None else now_s + window_s
            self._charges.append((until_s, weight))

    def _repeats(self, failure: Failure | None, window_s: float | None, now_s: float) -> int:
        if failure is None:
            return 0
        found, (last, times, until_s) = fingerprint(failure), self._row
        known, step = self._row_step, self.step
        came_further = known is not None and step is not None and step > known
        if found == last and now_s < until_s and not came_further:
            times += 1
            self._row_step = max((each for each in (known, step) if each is not None), default=None)
        else:
            times, self._row_step = 1, step
        self._row = (found, times, math.inf if window_s is None else now_s + window_s)
        return times

    def spent(self, now_s: float) -> int:
        """What counts against the budget."""
        return sum(weight for until_s, weight in self._charges if until_s > now_s)

    def forbade_restart(self) -> None:
        """A worker of the last round exited with a code that forbids a restart."""
        self._end = "an exit code forbids it"

    def of_round(self, restart_count: int) -> str:
        """A round is given to the ledger."""
        if self._end:
            return f"a round is formed, but {self._end}"
        if restart_count != self.charged:
            return f"{self.charged} rounds were charged, but the round says {restart_count}"
        return ""

    def of_close(self, record: CloseRecord) -> str:
        """The end of the run is given to the ledger."""
        told = record.reason.removeprefix(f"{record.cause}; ")
        says_spent = told.startswith(("the run's restart budget", "the run allows no restarts"))
        if says_spent and not self._end:
            return f"the run ends, though its budget is not spent: {told}"
        return ""

    def of_ledger(self, blame: Blame, now_s: float) -> str:
        """The marks are given to the ledger, with this."""
        if blame == Blame():
            return ""
        # A sum of charges may be forgiven later than each of them, and never earlier.
        least, most = self.spent(now_s + ROUNDING_S), self.spent(-math.inf)
        if not least <= blame.spent <= most:
            return f"{least} count against the budget, and the head says {blame.spent}"
        return ""
