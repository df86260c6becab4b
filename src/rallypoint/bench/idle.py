"""What a run costs in which nothing happens: messages, bytes, CPU and memory, per node and second.

Bytes are WebSocket payloads of both directions; each message adds 2 to 8 bytes of framing, and 40
or more of TCP and IP. CPU and memory are the coordinator's.
"""

from __future__ import annotations

from typing import Any, Final

from rallypoint.bench import driver
from rallypoint.bench.figure import Figure
from rallypoint.bench.meet import settings

STEADY_S: Final = 4.0
"""How long after the last node has come all of them beat steadily: two heartbeats, and some."""


def steady_s(told: list[dict[str, Any]]) -> float:
    """From when on a run is idle whose nodes have come as these processes told."""
    last_s: float = max(each["attached_s"] for each in told)
    return last_s + STEADY_S


def measure(plan: driver.Plan, nodes: int) -> list[Figure]:
    """Form a round of this many nodes, and leave it alone for `plan.seconds`."""
    driver.check_descriptors(nodes)
    base = plan.usage()
    with driver.fleets(plan.processes) as fleets:
        told = fleets.connect(
            plan.at, run_id=plan.run_id(), nodes=nodes, settings=settings(nodes), ready=True
        )
        before, used = fleets.ask("counts", at_s=steady_s(told)), plan.usage()
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
            driver.grown(before, after, "sent", "received") / nodes / spent_s,
            "both directions",
        ),
        figure(
            "bytes",
            "per node and s",
            driver.grown(before, after, "sent_bytes", "received_bytes") / nodes / spent_s,
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
