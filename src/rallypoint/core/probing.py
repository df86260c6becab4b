"""The probe of an open case: which members have to answer, and by when.

A worker's failure may be the consequence of a node's death that is not known yet. So the members of
the round are probed before the cause is named. This file keeps which members have not answered, and
the two times: the case is open for `settle_s` at least, and a member has `probe_s` to answer.
`suspicion` decides about members that do not answer, `causes` about the cause.
"""

from __future__ import annotations

from collections.abc import Iterable

from rallypoint.core.effects import Effect, ProbeRound, TimerKind
from rallypoint.core.judging import JudgingClock
from rallypoint.core.timers import Timers
from rallypoint.core.values import RunSettings


class Probe:
    """The probe of the last broken round. Deadlines are on the judging clock."""

    def __init__(self, timers: Timers, clock: JudgingClock) -> None:
        self._timers = timers
        self._clock = clock
        self.unanswered: dict[str, None] = {}
        """The members that have not answered."""
        self.is_settled = False
        """Whether the case has been open for `settle_s`."""
        self.is_over = False
        """Whether the time to answer has run out."""
        self._settle_due_s = 0.0
        self._due_s = 0.0

    def begin(
        self, names: Iterable[str], settings: RunSettings, round_number: int, now_s: float
    ) -> list[Effect]:
        """A case was opened on this round: ask its members."""
        self.unanswered = dict.fromkeys(names)
        # R8: each case gives its members the whole time.
        self.is_settled = self.is_over = False
        self._settle_due_s = self._clock.at(now_s) + settings.settle_s
        # R8: a member has `probe_s` to answer.
        self._due_s = self._clock.at(now_s) + settings.probe_s
        return [
            ProbeRound(round_number),
            self._timers.set(TimerKind.CASE, settings.settle_s, round_number=round_number),
            self._timers.set(TimerKind.PROBE, settings.probe_s, round_number=round_number),
        ]

    def answered(self, name: str) -> None:
        """The member answered, or sent another sign of life."""
        # R8: any sign of life is an answer.
        self.unanswered.pop(name, None)

    def end(self) -> None:
        """The case is closed: members that have not answered need not answer any more."""
        self.unanswered = {}
        self.is_over = False
        self._timers.cancel(TimerKind.CASE)
        self._timers.cancel(TimerKind.PROBE)

    def go_on(self, settings: RunSettings, round_number: int, now_s: float) -> list[Effect]:
        """The ledger is back, and the case still open: ask again, within the time that is left."""
        effects: list[Effect] = []
        left_s = self._clock.left_s(self._settle_due_s, settings.settle_s, now_s)
        self.is_settled = left_s <= 0
        if not self.is_settled:
            effects.append(self._timers.set(TimerKind.CASE, left_s, round_number=round_number))
        left_s = self._clock.left_s(self._due_s, settings.probe_s, now_s)
        # R8: the rest of the time, and no more.
        self.is_over = left_s <= 0
        if not self.is_over:
            effects.append(ProbeRound(round_number))
            effects.append(self._timers.set(TimerKind.PROBE, left_s, round_number=round_number))
        return effects
