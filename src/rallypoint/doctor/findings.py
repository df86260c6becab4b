"""What a check found: a verdict, the evidence for it, and what to do. Values only."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any

import msgspec


class Verdict(enum.StrEnum):
    """How a check ended. Only `FAILED` makes the command end with code 1."""

    OK = "ok"
    WARNING = "warning"
    """A job works, or may work, but something is likely to trouble it."""
    FAILED = "failed"
    """A node with these settings does not meet the others, or the check has not ended in time."""
    SKIPPED = "skipped"
    """There is nothing to check, or what it needs has failed before."""


_WORST_FIRST = (Verdict.FAILED, Verdict.WARNING, Verdict.OK, Verdict.SKIPPED)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of some verdicts; SKIPPED without any."""
    found = set(verdicts)
    return next((each for each in _WORST_FIRST if each in found), Verdict.SKIPPED)


def took_text(seconds: float) -> str:
    """A short duration for people: "0.3 ms", "12 ms", "1.3 s"."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{1000 * seconds:.2g} ms" if seconds < 0.0995 else f"{1000 * seconds:.0f} ms"


class Finding(msgspec.Struct, frozen=True):
    """The result of one check.

    `evidence`: what was seen, a line each. `what_to_do`: a line for each trouble. `facts`: numbers
    and names for programs, by names that docs/doctor.md lists. `took_s`: in seconds.
    """

    check: str
    verdict: Verdict
    summary: str
    evidence: tuple[str, ...] = ()
    what_to_do: tuple[str, ...] = ()
    facts: dict[str, Any] = msgspec.field(default_factory=dict)
    took_s: float = 0.0


class Notes:
    """Collects what one check sees, until `finding` makes one result of it.

    The summary is that of the first trouble, or else the given one. If nothing could be looked at,
    the check is skipped, and the summary says why.
    """

    def __init__(self, check: str) -> None:
        self.check = check
        self._missed: list[str] = []
        self._has_seen = False
        self.facts: dict[str, Any] = {}
        self._evidence: list[str] = []
        self._advice: list[str] = []
        self._troubles: dict[Verdict, list[str]] = {Verdict.FAILED: [], Verdict.WARNING: []}

    def saw(self, line: str) -> None:
        """Add evidence for what is in order."""
        self._has_seen = True
        self._evidence.append(line)

    def missed(self, line: str) -> None:
        """Something could not be looked at, for this reason."""
        self._missed.append(line)
        self._evidence.append(line)

    def warn(self, line: str, what_to_do: str) -> None:
        """Something is likely to trouble a job."""
        self._trouble(Verdict.WARNING, line, what_to_do)

    def fail(self, line: str, what_to_do: str) -> None:
        """Something keeps the nodes from meeting."""
        self._trouble(Verdict.FAILED, line, what_to_do)

    def _trouble(self, verdict: Verdict, line: str, what_to_do: str) -> None:
        self._troubles[verdict].append(line)
        self._evidence.append(line)
        if what_to_do and what_to_do not in self._advice:
            self._advice.append(what_to_do)

    def finding(self, summary: str) -> Finding:
        """The result. `summary`: the text if there is no trouble."""
        is_unseen = bool(self._missed) and not self._has_seen
        well = Verdict.SKIPPED if is_unseen else Verdict.OK
        verdict = worst([each for each, lines in self._troubles.items() if lines] or [well])
        told = self._troubles.get(verdict) or (self._missed if is_unseen else [summary])
        shown = told[0] if len(told) == 1 else f"{told[0]}; and {len(told) - 1} more"
        evidence = tuple(each for each in self._evidence if each != shown)
        return Finding(self.check, verdict, shown, evidence, tuple(self._advice), self.facts)


def skipped(check: str, why: str) -> Finding:
    """The result of a check that has nothing to look at."""
    return Finding(check, Verdict.SKIPPED, why)


class Report(msgspec.Struct, frozen=True):
    """All findings of one examination. `at`: Unix time by this host's clock, in seconds."""

    host: str
    endpoint: str
    version: str
    at: float
    verdict: Verdict
    checks: tuple[Finding, ...]
