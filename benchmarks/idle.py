"""What nodes send and are sent: an idle one every second, and each one for a round."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from typing import Final

from benchmarks.counting_proxy import CountingProxy, Direction
from benchmarks.figure import Figure, Group, Target
from benchmarks.processes import (
    Coordinator,
    NotMeasuredError,
    Say,
    agents,
    end,
    expect,
    python,
    tell,
)

NODES: Final = 2
WINDOW_S: Final = 10.0
MESSAGES_PER_S: Final = 2.0
ROUNDS: Final = 10


@dataclass(frozen=True)
class _Count:
    frames: int
    payload_bytes: int

    @classmethod
    def of(cls, *directions: Direction) -> _Count:
        return cls(sum(d.frames for d in directions), sum(d.payload_bytes for d in directions))

    def since(self, before: _Count) -> _Count:
        return _Count(self.frames - before.frames, self.payload_bytes - before.payload_bytes)


def measure_idle(repeats: int, say: Say) -> list[Figure]:
    """Two agents in a round, through the proxy, with nothing to do."""
    busiest: list[_Count] = []
    with (
        Coordinator() as coordinator,
        CountingProxy(coordinator.port) as proxy,
        agents(NODES, str(NODES), proxy.endpoint, "idle"),
    ):
        time.sleep(1.0)
        for index in range(repeats):
            before = [_Count.of(link.up, link.down) for link in proxy.links]
            time.sleep(WINDOW_S)
            after = [_Count.of(link.up, link.down) for link in proxy.links]
            if len(after) != NODES:
                raise NotMeasuredError(f"{NODES} nodes made {len(after)} connections")
            counts = [a.since(b) for a, b in zip(after, before, strict=True)]
            busiest.append(max(counts, key=lambda count: count.frames))
            say(f"idle {index + 1} of {repeats}")
    counted = (
        f"{NODES} `rallypoint run` in a round of `rallypoint serve`, default settings, an idle "
        f"worker each, connected through a proxy that counts, both directions together, for "
        f"{WINDOW_S:g} s; of the two nodes the one with more"
    )
    heartbeat = "a heartbeat and its answer each third of suspect_after_s (5 s)"
    return [
        Figure(
            name="idle_messages",
            timed=f"{counted}: WebSocket frames a second, control frames among them",
            unit="messages/s",
            values=tuple(count.frames / WINDOW_S for count in busiest),
            target=Target(MESSAGES_PER_S, worst=True),
            limited_by=heartbeat,
        ),
        Figure(
            name="idle_bytes",
            timed=f"{counted}: bytes of TCP payload a second",
            unit="bytes/s",
            values=tuple(count.payload_bytes / WINDOW_S for count in busiest),
            limited_by=heartbeat,
        ),
    ]


def _pushed(nodes: int) -> list[float]:
    """Bytes pushed to a node per round; and messages."""
    with Coordinator() as coordinator, CountingProxy(coordinator.port) as proxy:
        command = ("-m", "benchmarks.in_process_part", "rounds", str(nodes), proxy.endpoint)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = python(*command, str(ROUNDS), **pipes)
        try:
            expect(process, "met")
            before = _Count.of(*(link.down for link in proxy.links))
            tell(process)
            expect(process, "done")
            count = _Count.of(*(link.down for link in proxy.links)).since(before)
        finally:
            end([process])
    return [count.payload_bytes / nodes / ROUNDS, count.frames / nodes / ROUNDS]


def measure_push(repeats: int, say: Say) -> list[Figure]:
    """What a round costs on the wire does not grow with the number of nodes."""
    figures = []
    for nodes in (8, 64):
        results = []
        for index in range(repeats):
            results.append(_pushed(nodes))
            say(f"push to {nodes} nodes, {index + 1} of {repeats}")
        figures.append(
            Figure(
                name=f"push_{nodes}_nodes",
                timed=f"{nodes} nodes regroup {ROUNDS} times, each asking for its next world; all "
                "that a `rallypoint serve` sends to them meanwhile, counted at a proxy as TCP "
                "payload, over nodes and rounds: the end of a round, and the next round",
                unit="bytes",
                values=tuple(payload_bytes for payload_bytes, _ in results),
                details={"messages": [round(frames, 2) for _, frames in results]},
            )
        )
    return figures


GROUPS: Final = (Group("idle", 3, measure_idle), Group("push", 3, measure_push))
