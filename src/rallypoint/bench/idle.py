"""The cost of an idle run: messages, bytes, CPU and memory, per node and second.

Bytes are WebSocket payloads of both directions. Each message adds 2 to 8 bytes of framing, and 40
or more of TCP and IP. CPU and memory are the coordinator's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, Final

import msgspec

from rallypoint.bench import driver
from rallypoint.bench.figure import Figure, Target
from rallypoint.bench.meet import settings

MESSAGES_PER_S: Final = 2.0
"""A heartbeat and its answer at most once a second."""
STEADY_S: Final = 4.0
"""After this many seconds, the last node to attach has sent two heartbeats, and all send steadily.
"""
UNANSWERED_MAX: Final = 0.1
WINDOW_S: Final = 2.0
"""The length of a repeat: each node sends a heartbeat in it, and some send two."""


PROGRESS: Final = "with progress"
PROGRESS_CPU: Final = "CPU of progress"
PROGRESS_PERCENT: Final = 10.0
"""The most that reports may cost the coordinator of 9,000 nodes, in percent of a core."""


class Reading(msgspec.Struct, frozen=True):
    """The nodes' counts by process, and the coordinator's resource usage, if that can be read."""

    at_s: float
    counts: list[dict[str, Any]]
    usage: driver.Usage | None


def watch(
    plan: driver.Plan,
    fleets: driver.Fleets,
    connected: list[dict[str, Any]],
    windows: int,
    before_window: Callable[[int], object] = lambda index: None,
) -> list[Reading]:
    """Read at the beginning and at the end of each of `windows` windows, `plan.seconds` in all.

    The first one begins when the run is idle. `connected`: the answers of its nodes' processes to
    `connect`. `before_window`: called with the index of each window before it begins.
    """
    fleets.ask("beat_on_time")
    at_s = max(each["attached_s"] for each in connected) + STEADY_S
    readings: list[Reading] = []
    for index in range(windows + 1):
        counts = fleets.ask("counts", at_s=at_s)
        readings.append(Reading(counts[0]["at_s"], counts, plan.usage()))
        at_s = readings[-1].at_s + plan.seconds / windows
        if index < windows:
            before_window(index)
    return readings


class Window(msgspec.Struct, frozen=True):
    """What grew between two readings."""

    before: Reading
    after: Reading

    def rate(self, *names: str) -> float:
        """The growth of the sum of these counts of the nodes, for each second."""
        grown = driver.grown(self.before.counts, self.after.counts, *names)
        return grown / (self.after.at_s - self.before.at_s)

    def cpu_percent(self) -> float | None:
        """The coordinator's share of a core; None if it was not started here."""
        if self.before.usage is None or self.after.usage is None:
            return None
        spent_s = self.after.usage.cpu_s - self.before.usage.cpu_s
        return 100 * spent_s / (self.after.at_s - self.before.at_s)


def measure(plan: driver.Plan, nodes: int) -> list[Figure]:
    """Form a round of this many nodes, and count for `plan.seconds`, in windows.

    With `plan.progress`, the nodes report the progress of their workers in every second window.
    """
    driver.check_descriptors(nodes)
    base, windows = plan.usage(), max(1, int(plan.seconds // WINDOW_S))
    if plan.progress:
        windows += windows % 2
    with driver.fleets(plan.processes) as fleets:
        connected = fleets.connect(
            plan.at, run_id=plan.run_id(), nodes=nodes, settings=settings(nodes), ready=True
        )

        def switch(index: int) -> None:
            if plan.progress:
                fleets.ask("report_progress", on=bool(index % 2))

        readings = watch(plan, fleets, connected, windows, switch)
        fleets.ask("disconnect")
    _check_answers(nodes, readings[0].counts, readings[-1].counts)
    found = [Window(a, b) for a, b in pairwise(readings)]
    if plan.progress:
        quiet, reporting = found[::2], found[1::2]
        figures = _of_windows(nodes, quiet, "")
        figures += _of_windows(nodes, reporting, f", {PROGRESS}")
        figures += _cost_of_progress(nodes, quiet, reporting)
    else:
        figures = _of_windows(nodes, found, "")
    return [*figures, *_memory(nodes, base, readings[-1].usage)]


def _figure(
    nodes: int,
    name: str,
    unit: str,
    values: Iterable[float],
    about: str,
    target: Target | None = None,
) -> Figure:
    return Figure(
        scenario="idle",
        name=name,
        nodes=nodes,
        unit=unit,
        values=tuple(values),
        about=about,
        target=target,
    )


def _of_windows(nodes: int, windows: Sequence[Window], suffix: str) -> list[Figure]:
    figures = [
        _figure(
            nodes,
            f"messages{suffix}",
            "per node and s",
            (each.rate("sent", "received") / nodes for each in windows),
            "both directions",
            Target(MESSAGES_PER_S),
        ),
        _figure(
            nodes,
            f"bytes{suffix}",
            "per node and s",
            (each.rate("sent_bytes", "received_bytes") / nodes for each in windows),
            "payloads, both directions",
        ),
    ]
    used = _cpu(windows)
    if used:
        figures.append(_figure(nodes, f"CPU{suffix}", "% of a core", used, "the coordinator"))
    return figures


def _cost_of_progress(
    nodes: int, quiet: Sequence[Window], reporting: Sequence[Window]
) -> list[Figure]:
    without, with_it = _cpu(quiet), _cpu(reporting)
    if not (without and with_it):
        return []
    about = (
        "the coordinator: the difference between windows in which each node's workers report a "
        "step once a second, and the windows before them"
    )
    more = [b - a for a, b in zip(without, with_it, strict=True)]
    return [_figure(nodes, PROGRESS_CPU, "% of a core", more, about, Target(PROGRESS_PERCENT))]


def _cpu(windows: Sequence[Window]) -> list[float]:
    """The coordinator's shares of a core; none if they cannot be read."""
    found = [each.cpu_percent() for each in windows]
    return [each for each in found if each is not None]


def _memory(nodes: int, base: driver.Usage | None, last: driver.Usage | None) -> list[Figure]:
    if base is None or last is None:
        return []
    grown_kib = (last.memory_bytes - base.memory_bytes) / nodes / 1024
    about = "the coordinator, with all nodes"
    above = "the coordinator, above the memory at its start"
    return [
        _figure(nodes, "memory", "MiB", [last.memory_bytes / 2**20], about),
        _figure(nodes, "memory", "KiB per node", [grown_kib], above),
    ]


def _check_answers(nodes: int, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    """Raise BenchError if heartbeats were not answered, because the counts would be meaningless."""
    sent, received = (driver.grown(before, after, name) for name in ("sent", "received"))
    if sent - received > max(nodes, sent * UNANSWERED_MAX):
        raise driver.BenchError(
            f"of {sent:,.0f} heartbeats the coordinator has answered {received:,.0f}",
            "the coordinator was stopped, or is overloaded: try fewer --nodes",
        )
