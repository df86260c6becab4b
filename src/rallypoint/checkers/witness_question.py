"""A question to witnesses, as the checks see it: whom it was asked, and what they have said.

It is compared with what the run concludes (`core/witnesses.py`), and shares nothing with that.
"""

from __future__ import annotations

from rallypoint.core.values import HostReport
from rallypoint.core.witnesses import ANSWER_S, LOOK_S


class Question:
    """What witnesses were asked about a host, and what they said. Times are those of the checks."""

    def __init__(self, host: str, asked_s: float) -> None:
        self.host = host
        self.asked: dict[str, bool] = {}
        """By name: whether it is on the coordinator's machine."""
        self.said: dict[str, HostReport] = {}
        self.told_s: float | None = None
        """Since when all have said that the host does not answer, and its members are suspect."""
        self.is_void = False
        """Whether something happened that may have taken the proof from it."""
        self._asked_s = asked_s

    @property
    def is_complete(self) -> bool:
        """Whether all have said something."""
        return self.asked.keys() == self.said.keys()

    def proves_loss(self, now_s: float) -> bool:
        """R8: a witness elsewhere is not answered any more, and no witness is.

        All have said what they found, or had the time for it.
        """
        if not self.is_complete and now_s - self._asked_s < LOOK_S + ANSWER_S - 1e-6:
            return False
        said = list(self.said.values())
        silent = [name for name, each in self.said.items() if each is HostReport.NOT_ANSWERED]
        is_clear = len(silent) > said.count(HostReport.UNSURE)
        has_other = not all(self.asked[name] for name in silent)
        return is_clear and has_other and HostReport.ANSWERED not in said
