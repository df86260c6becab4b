"""This machine's clock against those of the coordinators, by the Date header of their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rallypoint.doctor.answering import Answer
from rallypoint.doctor.case import Case
from rallypoint.doctor.findings import Finding, Notes, skipped, took_text
from rallypoint.doctor.ports import Asked

CHECK: Final = "clock"
APART_S: Final = 2.0
"""Clocks that are kept by NTP differ by less."""


def check(case: Case, asked: Sequence[Asked]) -> Finding:
    """Compare the clocks. No decision of Rallypoint depends on them (R9), but people read times."""
    found = [each for one in asked for each in one.answers if each.is_coordinator]
    dated = [each for each in found if each.date_s is not None]
    if not dated:
        return skipped(CHECK, "no coordinator has answered with the time")
    notes = Notes(CHECK)
    for each in dated:
        apart_s = _apart_s(each)
        notes.facts.setdefault("apart_s", {})[str(each.where)] = round(apart_s, 3)
        if abs(apart_s) > APART_S:
            is_ahead = "ahead of" if apart_s > 0 else "behind"
            notes.warn(
                f"this machine's clock is {took_text(abs(apart_s))} {is_ahead} that of the "
                f"coordinator at {each.where}",
                "start NTP on both machines (`timedatectl`, `chronyc tracking`): runs go on, but "
                "times in logs and of certificates do not fit",
            )
        else:
            notes.saw(f"the clock of the coordinator at {each.where} agrees")
    return notes.finding("this machine's clock agrees with the coordinator's")


def _apart_s(answer: Answer) -> float:
    """By how much this clock is ahead, at least. The header has whole seconds."""
    assert answer.date_s is not None
    if answer.heard_s < answer.date_s:
        return answer.heard_s - answer.date_s
    return max(0.0, answer.asked_s - (answer.date_s + 1.0))
