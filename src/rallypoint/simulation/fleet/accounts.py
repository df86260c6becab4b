"""The time of a job, by what became of it: useful, or lost by which cause. In seconds.

Every second is counted exactly once, so the useful time and all losses add up to the whole.
"""

from __future__ import annotations

import enum
import math
from typing import Final

import msgspec


class Cause(enum.StrEnum):
    """Why a second was not useful."""

    DETECT = "detect"
    STALL = "stall"
    STOP = "stop"
    GRACE = "grace"
    SETTLE = "settle"
    LAST_CALL = "last_call"
    MEET = "meet"
    START = "start"
    REWORK = "rework"
    CHECKPOINT = "checkpoint"
    BELOW_MINIMUM = "below_minimum"
    HELD_BACK = "held_back"
    COORDINATOR = "coordinator"
    LEDGER = "ledger"
    ENDED = "ended"


ABOUT: Final[dict[Cause, str]] = {
    Cause.DETECT: "a node has failed, and the coordinator does not know it yet",
    Cause.STALL: "a node stood still, and came back before it was lost",
    Cause.STOP: "workers stop",
    Cause.GRACE: "places are kept for nodes that cannot be heard",
    Cause.SETTLE: "the wait for simultaneous arrivals",
    Cause.LAST_CALL: "the wait for more nodes once the minimum is there",
    Cause.MEET: "messages between nodes and coordinator, and writes to the ledger",
    Cause.START: "workers start",
    Cause.REWORK: "work since the last checkpoint, lost with its round",
    Cause.CHECKPOINT: "checkpoints are written",
    Cause.BELOW_MINIMUM: "fewer nodes than the minimum",
    Cause.HELD_BACK: "rounds that end too often are slowed",
    Cause.COORDINATOR: "no round, and the coordinator was lost",
    Cause.LEDGER: "no round, and the ledger is away",
    Cause.ENDED: "the run had ended",
}


class Accounts:
    """Where the time went. `note` says what is true from now on."""

    def __init__(self, *, checkpoint_every_s: float, checkpoint_s: float) -> None:
        self.useful_s = 0.0
        self.lost_s: dict[Cause, float] = dict.fromkeys(Cause, 0.0)
        self.node_s = 0.0
        """Useful seconds times the nodes of their rounds."""
        self._every_s = checkpoint_every_s
        self._checkpoint_s = checkpoint_s
        self._since_s = 0.0
        self._cause: Cause | None = Cause.MEET
        """What is true now; None: workers work."""
        self._worked_s = 0.0
        """How long the present round has worked so far."""
        self._nodes = 0

    @property
    def is_working(self) -> bool:
        """Whether workers work."""
        return self._cause is None

    def note(self, cause: Cause | None, now_s: float) -> None:
        """From now on this is what happens; None: workers work."""
        if cause is self._cause:
            return
        self._count(self._cause, now_s)
        self._cause = cause

    def began(self, nodes: int, now_s: float) -> None:
        """A round of this many nodes begins to work. If another one did, it is over."""
        self.finished(now_s, saves=False)
        self._cause, self._nodes = None, nodes

    def stalled(self, now_s: float) -> None:
        """What was counted since the last change was a stall, and not more. Work goes on."""
        self._count(Cause.STALL, now_s)
        self._cause = None

    def finished(self, now_s: float, *, saves: bool) -> None:
        """The round is over: what was not saved is lost. Idempotent."""
        self._count(self._cause, now_s)
        cycle_s = self._every_s + self._checkpoint_s
        cycles = 0 if math.isinf(cycle_s) else math.floor(self._worked_s / cycle_s)
        rest_s = self._worked_s - (cycles * cycle_s if cycles else 0.0)
        unsaved_s = min(rest_s, self._every_s)
        self.lost_s[Cause.CHECKPOINT] += cycles * self._checkpoint_s + rest_s - unsaved_s
        useful_s = (cycles * self._every_s if cycles else 0.0) + (unsaved_s if saves else 0.0)
        if not saves:
            self.lost_s[Cause.REWORK] += unsaved_s
        self.useful_s += useful_s
        self.node_s += useful_s * self._nodes
        self._worked_s = 0.0
        if self._cause is None:
            self._cause = Cause.MEET

    def _count(self, cause: Cause | None, now_s: float) -> None:
        passed_s, self._since_s = now_s - self._since_s, now_s
        if cause is None:
            self._worked_s += passed_s
        else:
            self.lost_s[cause] += passed_s


class Distribution(msgspec.Struct, frozen=True):
    """Times of one kind, in seconds: how many, and at which time that part of them is over."""

    count: int
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None
    max_s: float | None

    @classmethod
    def of(cls, times_s: list[float]) -> Distribution:
        """The nearest rank: each value is one that occurred."""
        ordered = sorted(times_s)

        def at(share: float) -> float | None:
            return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None

        return cls(len(ordered), at(0.5), at(0.9), at(0.99), at(1.0))
