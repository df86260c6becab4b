"""What a run costs while nothing happens: messages, bytes, CPU and memory, per node and second.

Bytes are WebSocket payloads of both directions. Each message adds 2 to 8 bytes of framing, and 40
or more of TCP and IP. CPU and memory are the coordinator's.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Final

from rallypoint.bench import driver
from rallypoint.bench.figure import Figure, Target
from rallypoint.bench.meet import settings

MESSAGES_PER_S: Final = 2.0
"""A heartbeat and its answer at most once a second."""
STEADY_S: Final = 4.0
"""After so long, the last node to attach has sent two heartbeats, and all send them steadily."""
UNANSWERED_MAX: Final = 0.1
WINDOW_S: Final = 2.0
"""The length of a repeat: each node sends a heartbeat in it, and some send two."""


def steady_s(told: list[dict[str, Any]]) -> float:
    """When a run is idle, given what the processes of its nodes answered to `connect`."""
    last_s: float = max(each["attached_s"] for each in told)
    return last_s + STEADY_S


def measure(plan: driver.Plan, nodes: int) -> list[Figure]:
    """Form a round of this many nodes, and count for `plan.seconds`, in windows."""
    driver.check_descriptors(nodes)
    base, windows = plan.usage(), max(1, int(plan.seconds // WINDOW_S))
    with driver.fleets(plan.processes) as fleets:
        told = fleets.connect(
            plan.at, run_id=plan.run_id(), nodes=nodes, settings=settings(nodes), ready=True
        )
        fleets.ask("beat_on_time")
        seen = [(fleets.ask("counts", at_s=steady_s(told)), plan.usage())]
        for _ in range(windows):
            at_s = seen[-1][0][0]["at_s"] + plan.seconds / windows
            seen.append((fleets.ask("counts", at_s=at_s), plan.usage()))
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

    _check_answers(nodes, seen[0][0], seen[-1][0])
    pairs = [(a, b, b[0]["at_s"] - a[0]["at_s"]) for (a, _), (b, _) in pairwise(seen)]
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
    used = [usage for _, usage in seen if usage is not None]
    if base is not None and len(used) == len(seen):
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
                "memory", "KiB per node", [grown_kb], "the coordinator, beyond what it began with"
            ),
        ]
    return figures


def _check_answers(nodes: int, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    """Raise BenchError if heartbeats were not answered: the counts would mean nothing."""
    sent, received = (driver.grown(before, after, name) for name in ("sent", "received"))
    if sent - received > max(nodes, sent * UNANSWERED_MAX):
        raise driver.BenchError(
            f"of {sent:,.0f} heartbeats the coordinator has answered {received:,.0f}",
            "the coordinator was stopped, or is overloaded: try fewer --nodes",
        )
