"""Counts for `/metrics`: from the events of runs, and from what the coordinator itself does.

Plain numbers, so that an event costs a few additions. `metrics` gives them Prometheus' names, and
only a scrape loads its library.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from rallypoint.coordinator.run_events import EventKind, RunEvent

ROUND_S: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
LOSS_S: Final = (0.03, 0.1, 0.3, 1.0, 3.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0)
LEDGER_S: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
LAG_S: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
LABELS_MAX: Final = 64
"""The most values of a label that comes from elsewhere; more are counted as "other"."""


class Histogram:
    """How many values were at most each bound, their number and sum. `bounds` rise."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, count: int = 1) -> None:
        """Count a value, `count` times."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus wants them: how many are at most each bound, the last one without limit."""
        found, total = [], 0
        for bound, count in zip((*self.bounds, None), self.counts, strict=True):
            total += count
            found.append(("+Inf" if bound is None else repr(float(bound)), float(total)))
        return found


class Counts(dict[str, int]):
    """How often each value of one label came."""

    def add(self, label: str, count: int = 1) -> None:
        """Count a value."""
        if label not in self and len(self) >= LABELS_MAX:
            label = "other"
        self[label] = self.get(label, 0) + count


class Tallies:
    """The counts of one coordinator. Owned by one event loop."""

    def __init__(self) -> None:
        self.events = Counts()
        self.rounds_ended = Counts()
        self.runs_closed = Counts()
        self.refused = Counts()
        self.rounds_formed = 0
        self.nodes_lost = 0
        self.nodes_attached = 0
        self.reconnects = 0
        self.worker_failures = Counts()
        self.logins_refused = 0
        self.certificate_ends_at: float | None = None
        """When the first of its certificates ends, in Unix time; None without TLS."""
        self.phases = {name: Histogram(ROUND_S) for name in ("ready", "forming", "writing")}
        self.detection = Histogram(LOSS_S)
        self.loop_lag = Histogram(LAG_S)
        self.ledger: dict[str, Histogram] = {}
        """The durations of each operation."""
        self.ledger_errors = Counts()

    def take(self, run_id: str, event: RunEvent) -> None:
        """A new event of a run: see event_log.Sink."""
        if event.is_late:
            return  # Another coordinator has counted it.
        count = event.count or 1
        self.events.add(event.kind.value)
        match event.kind:
            case EventKind.FORMED:
                self.rounds_formed += 1
                for name, histogram in self.phases.items():
                    seconds = event.phases.get(f"{name}_s")
                    if seconds is not None:
                        histogram.add(seconds)
            case EventKind.BROKEN:
                self.rounds_ended.add(event.cause)
            case EventKind.CLOSED:
                self.runs_closed.add(event.cause)
            case EventKind.LOST:
                self.nodes_lost += count
                if event.seconds is not None:
                    self.detection.add(event.seconds, count)
            case EventKind.ATTACHED:
                self.nodes_attached += count
            case EventKind.RESUMED:
                self.reconnects += count
            case EventKind.REFUSED:
                self.refused.add(event.cause)
            case EventKind.WORKER_FAILED:
                self.worker_failures.add(event.cause or "unknown", count)

    def ledger_took(self, operation: str, seconds: float, error: str = "") -> None:
        """An operation of the ledger has ended. `error`: the kind of its error; "" if none."""
        histogram = self.ledger.get(operation)
        if histogram is None:
            histogram = self.ledger[operation] = Histogram(LEDGER_S)
        histogram.add(seconds)
        if error:
            self.ledger_errors.add(error)
