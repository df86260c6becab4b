"""What a run costs in which nothing happens: messages, bytes, CPU and memory, per node and second.

Bytes are WebSocket payloads of both directions; each message adds 2 to 8 bytes of framing, and 40
or more of TCP and IP. CPU and memory are the coordinator's.
"""

from __future__ import annotations

from typing import Any

from rallypoint.bench import driver
from rallypoint.bench.figure import Figure
from rallypoint.bench.meet import settings


def measure(plan: driver.Plan, nodes: int) -> list[Figure]:
    """Form a round of this many nodes, and leave it alone for `plan.seconds`."""
    driver.check_descriptors(nodes)
    base = plan.usage()
    with driver.fleets(plan.processes) as fleets:
        fleets.connect(
            plan.at, run_id=plan.run_id(), nodes=nodes, settings=settings(nodes), ready=True
        )
        before, used = fleets.ask("counts"), plan.usage()
        after, usage = fleets.ask("counts", at_s=before[0]["at_s"] + plan.seconds), plan.usage()
        fleets.ask("disconnect")
    spent_s = after[0]["at_s"] - before[0]["at_s"]

    def figure(name: str, unit: str, value: float, about: str = "") -> Figure:
        return Figure(
            scenario="idle", name=name, nodes=nodes, unit=unit, values=(value,), about=about
        )

    figures = [
        figure(
            "messages",
            "per node and s",
            _grown(before, after, "sent", "received") / nodes / spent_s,
            "both directions",
        ),
        figure(
            "bytes",
            "per node and s",
            _grown(before, after, "sent_bytes", "received_bytes") / nodes / spent_s,
            "payloads, both directions",
        ),
    ]
    if base and used and usage:
        share = 100 * (usage.cpu_s - used.cpu_s) / spent_s
        grown_kb = (usage.memory_bytes - base.memory_bytes) / nodes / 1024
        figures += [
            figure("CPU", "% of a core", share, "the coordinator"),
            figure("memory", "MiB", usage.memory_bytes / 2**20, "the coordinator, with all nodes"),
            figure(
                "memory", "KiB per node", grown_kb, "the coordinator, beyond what it began with"
            ),
        ]
    return figures


def _grown(before: list[dict[str, Any]], after: list[dict[str, Any]], *names: str) -> float:
    grown: float = sum(a[n] - b[n] for a, b in zip(after, before, strict=True) for n in names)
    return grown
