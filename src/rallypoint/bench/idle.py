"""The cost of an idle run: messages, bytes, CPU and memory, per node and second.

Bytes are WebSocket payloads of both directions. Each message adds 2 to 8 bytes of framing, and 40
or more of TCP and IP. CPU and memory are the coordinator's.
"""

from __future__ import annotations

from collections.abc import Iterable
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


class Reading(msgspec.Struct, frozen=True):
    """The nodes' counts by process, and the coordinator's resource usage, if that can be read."""

    at_s: float
    counts: list[dict[str, Any]]
    usage: driver.Usage | None


def watch(
    plan: driver.Plan, fleets: driver.Fleets, connected: list[dict[str, Any]], windows: int
) -> list[Reading]:
    """Read at the beginning and at the end of each of `windows` windows, `plan.seconds` in all.

    The first one begins when the run is idle. `connected`: the answers of its nodes' processes to
    `connect`.
    """
    fleets.ask("beat_on_time")
    at_s = max(each["attached_s"] for each in connected) + STEADY_S
    readings: list[Reading] = []
    for _ in range(windows + 1):
        counts = fleets.ask("counts", at_s=at_s)
        readings.append(Reading(counts[0]["at_s"], counts, plan.usage()))
        at_s = readings[-1].at_s + plan.seconds / windows
    return readings


def measure(plan: driver.Plan, nodes: int) -> list[Figure]:
    """Form a round of this many nodes, and count for `plan.seconds`, in windows."""
    driver.check_descriptors(nodes)
    base, windows = plan.usage(), max(1, int(plan.seconds // WINDOW_S))
    with driver.fleets(plan.processes) as fleets:
        connected = fleets.connect(
            plan.at, run_id=plan.run_id(), nodes=nodes, settings=settings(nodes), ready=True
        )
        readings = watch(plan, fleets, connected, windows)
        fleets.ask("disconnect")

    def figure(
        name: str, unit: str, values: Iterable[float], about: str, target: Target | None = None
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

    _check_answers(nodes, readings[0].counts, readings[-1].counts)
    pairs = [(a.counts, b.counts, b.at_s - a.at_s) for a, b in pairwise(readings)]
    messages, payloads = ("sent", "received"), ("sent_bytes", "received_bytes")
    figures = [
        figure(
            "messages",
            "per node and s",
            (driver.grown(a, b, *messages) / nodes / spent_s for a, b, spent_s in pairs),
            "both directions",
            Target(MESSAGES_PER_S),
        ),
        figure(
            "bytes",
            "per node and s",
            (driver.grown(a, b, *payloads) / nodes / spent_s for a, b, spent_s in pairs),
            "payloads, both directions",
        ),
    ]
    used = [each.usage for each in readings if each.usage is not None]
    if base is not None and len(used) == len(readings):
        spent = [spent_s for _, _, spent_s in pairs]
        grown_kb = (used[-1].memory_bytes - base.memory_bytes) / nodes / 1024
        figures += [
            figure(
                "CPU",
                "% of a core",
                (
                    100 * (b.cpu_s - a.cpu_s) / s
                    for (a, b), s in zip(pairwise(used), spent, strict=True)
                ),
                "the coordinator",
            ),
            figure(
                "memory",
                "MiB",
                [used[-1].memory_bytes / 2**20],
                "the coordinator, with all nodes",
            ),
            figure(
                "memory",
                "KiB per node",
                [grown_kb],
                "the coordinator, above the memory at its start",
            ),
        ]
    return figures


def _check_answers(nodes: int, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    """Raise BenchError if heartbeats were not answered, because the counts would be meaningless."""
    sent, received = (driver.grown(before, after, name) for name in ("sent", "received"))
    if sent - received > max(nodes, sent * UNANSWERED_MAX):
        raise driver.BenchError(
            f"of {sent:,.0f} heartbeats the coordinator has answered {received:,.0f}",
            "the coordinator was stopped, or is overloaded: try fewer --nodes",
        )
