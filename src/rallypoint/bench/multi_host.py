"""One machine's part of a meeting of several machines, all of which run the same command.

Clocks of different machines are not compared. Each machine times its own nodes, from the first call
of any of them to the last answer to any of them. All nodes call when the coordinator notifies them
that the round before has ended. How long it takes to notify all of them is a figure of its own.
"""

from __future__ import annotations

import secrets
import socket
from typing import Any, Final

import msgspec

from rallypoint.bench import driver
from rallypoint.bench.figure import Figure
from rallypoint.bench.meet import settings

WAIT_S: Final = 600.0
"""How many seconds the first machine waits for the start of the last one."""


class HostShare(msgspec.Struct, frozen=True):
    """A run of several machines. `of`: the number of its nodes on all machines together."""

    run_id: str
    of: int


def measure(plan: driver.Plan, nodes: int, share: HostShare) -> list[Figure]:
    """Rounds of `share.of` nodes, of which this machine has `nodes`."""
    driver.check_descriptors(nodes)
    names = f"{socket.gethostname()}-{secrets.token_hex(3)}-"
    with driver.fleets(plan.processes) as fleets:
        fleets.connect(
            plan.at,
            run_id=share.run_id,
            nodes=nodes,
            settings=settings(share.of),
            ready=True,
            names=names,
            within_s=WAIT_S,
            shared=True,
        )
        answers = fleets.ask("share", repeats=plan.repeats)
        fleets.ask("disconnect")
    # Each process counts its own rounds, which are the same for all.
    rounds = list(zip(*(each["rounds"] for each in answers), strict=True))
    if not rounds:
        raise driver.BenchError(
            f"run {share.run_id!r} was closed before its second round",
            "give the command the same --repeats on all machines, and a new --run each time",
        )

    def figure(name: str, about: str, values: list[float]) -> Figure:
        return Figure(
            scenario="meet",
            name=name,
            nodes=nodes,
            unit="ms",
            values=tuple(value * 1e3 for value in values),
            about=about,
        )

    about = f"{nodes} nodes of this machine, in rounds of {share.of}"
    return [
        figure(
            f"warm, of {share.of:,}",
            f"{about}: from its first call to its last answer",
            [driver.span(each, "formed_s") for each in rounds],
        ),
        figure(
            "told",
            f"{about}: from the first node that is notified of a round's end to the last one",
            [_notified_s(each) for each in rounds],
        ),
        figure(
            "skew",
            f"{about}: from its first call to its last call",
            [driver.span(each, "called_s") for each in rounds],
        ),
    ]


def _notified_s(processes: tuple[dict[str, Any], ...]) -> float:
    last_s: float = max(each["told_s"] for each in processes)
    first_s: float = min(each["first_told_s"] for each in processes)
    return last_s - first_s
