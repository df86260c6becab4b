"""What a silence and a frozen coordinator cost. Real `rallypoint run` agents."""

from __future__ import annotations

import os
import random
import secrets
import signal
import time
from collections.abc import Sequence
from typing import Any, Final

from benchmarks.figure import Figure, Group, Target
from benchmarks.processes import (
    Agent,
    Coordinator,
    NotMeasuredError,
    Say,
    agents,
    ask,
    free_port,
    wait_for,
    wait_until,
)

NODES: Final = 8
NNODES: Final = "7:8"
CALM_S: Final = 1.0
"""Between the start of the last worker and what is done to the run."""
HEARTBEAT_S: Final = 5.0 / 3
"""A node that hangs does so at any time between two of its heartbeats."""
FROZEN_S: Final = 20.0
WATCH_S: Final = 8.0
"""For how long after a thaw nobody may be lost: longer than any grace of the defaults."""

_AGENTS = (
    f"{NODES} `rallypoint run --nnodes {NNODES}` processes with default settings, one idle Python "
    "worker each"
)
_EMBEDDED = f"{_AGENTS}, coordinator embedded in another one than the victim"


def _seconds(
    name: str, timed: str, values: Sequence[float], limited_by: str, target: Target | None
) -> Figure:
    return Figure(
        name=name,
        timed=timed,
        unit="s",
        values=tuple(values),
        target=target,
        limited_by=limited_by,
    )


# -- SIGSTOP of a node ---------------------------------------------------------------------------


def _stop() -> tuple[float, float]:
    """Stop one of eight: seconds until it is suspect, and from a failure until it is lost."""
    port, token = free_port(), secrets.token_urlsafe(32)
    with agents(NODES, NNODES, f"127.0.0.1:{port}", "stop", token=token) as nodes:
        *survivors, victim = nodes
        time.sleep(CALM_S + random.uniform(0, HEARTBEAT_S))
        stopped_s = time.monotonic()
        victim.signal(signal.SIGSTOP)
        wait_until(lambda: _link_of(port, token, "stop", victim.name) == "silent", "suspect")
        suspect_s = time.monotonic() - stopped_s
        failed_s = time.monotonic()
        os.kill(survivors[1].worker_pid, signal.SIGUSR1)
        lost = wait_for(survivors, "verdict", failed_s)
        _check_verdict(survivors, failed_s, victim.name)
    return suspect_s, max(lost) - failed_s


def _check_verdict(survivors: Sequence[Agent], since_s: float, name: str) -> None:
    for survivor in survivors:
        verdict = survivor.events("verdict", since_s)[0]
        if verdict["kind"] != "node_lost" or verdict["nodes"] != [name]:
            raise NotMeasuredError(f"{survivor.name} was told of another cause: {verdict}")


def _link_of(port: int, token: str, run_id: str, name: str) -> str | None:
    members = ask(port, f"/api/v1/runs/{run_id}", token)["members"]
    return next((str(m["link"]) for m in members if m["name"] == name), None)


def measure_stop(repeats: int, say: Say) -> list[Figure]:
    """A node that hangs: suspect, and lost once a survivor's worker fails."""
    results = []
    for index in range(repeats):
        results.append(_stop())
        say(f"stop {index + 1} of {repeats}")
    return [
        _seconds(
            "stop_suspect",
            f"{_EMBEDDED}; from right before SIGSTOP of one agent and its worker until the "
            "coordinator's HTTP API shows the node as silent (asked every 20 ms)",
            [suspect_s for suspect_s, _ in results],
            "suspect_after_s (5 s), counted from the last heartbeat, which may be 1.7 s old",
            Target(6.0, worst=True),
        ),
        _seconds(
            "stop_lost_after_failure",
            f"{_EMBEDDED}; one is stopped and suspect; from a signal that makes a survivor's "
            "worker raise ConnectionResetError until the last survivor's agent is told that the "
            "stopped node is lost (checked: that is the cause it is told)",
            [lost_s for _, lost_s in results],
            "the worker's exit, then probe_s (1 s)",
            Target(1.5),
        ),
    ]


# -- a frozen coordinator ------------------------------------------------------------------------


def _freeze() -> dict[str, Any]:
    """Stop the coordinator for 20 s, and watch for a while what follows."""
    with (
        Coordinator() as coordinator,
        agents(NODES, NNODES, coordinator.endpoint, "freeze") as all_,
    ):
        time.sleep(CALM_S + random.uniform(0, HEARTBEAT_S))
        frozen_s = time.monotonic()
        coordinator.process.send_signal(signal.SIGSTOP)
        time.sleep(FROZEN_S)
        thawed_s = time.monotonic()
        coordinator.process.send_signal(signal.SIGCONT)
        wait_until(lambda: _connected(coordinator.port) == NODES, "everyone attached again")
        shown_s = time.monotonic() - thawed_s
        time.sleep(WATCH_S)
        if _connected(coordinator.port) != NODES:
            raise NotMeasuredError("not all nodes were connected at the end")
        run = ask(coordinator.port, "/api/v1/runs/freeze")
        attached = [agent.first("attached", thawed_s) for agent in all_]
        again = [at_s for at_s in attached if at_s is not None]
        return {
            "disturbed": sum(bool(agent.events("told", frozen_s)) for agent in all_),
            "lost": NODES - run["members_total"],
            "round": run["round"],
            "reconnected": len(again),
            "attached_last_s": max(again, default=thawed_s) - thawed_s,
            "shown_s": shown_s,
        }


def _connected(port: int) -> int:
    members = ask(port, "/api/v1/runs/freeze")["members"]
    return sum(member["link"] == "connected" for member in members)


def measure_freeze(repeats: int, say: Say) -> list[Figure]:
    """A coordinator that did not run for a while."""
    results = []
    for index in range(repeats):
        results.append(_freeze())
        say(f"freeze {index + 1} of {repeats}")
    frozen = (
        f"{_AGENTS}; a `rallypoint serve` is stopped by SIGSTOP for {FROZEN_S:g} s, continued, and "
        f"watched until all are connected and for {WATCH_S:g} s more"
    )
    disturbed = Figure(
        name="freeze_nodes_disturbed",
        timed=f"{frozen}: members that are gone, or nodes that were told of an end of their round",
        unit="nodes",
        values=tuple(float(max(r["lost"], r["disturbed"])) for r in results),
        target=Target(0, worst=True),
        details={"rounds": [r["round"] for r in results]},
    )
    attached = Figure(
        name="freeze_attached_again",
        timed=f"{frozen}: from SIGCONT until the last node that had dropped its connection was "
        "let in again",
        unit="s",
        values=tuple(r["attached_last_s"] for r in results),
        limited_by="nothing where a handshake is pending at the thaw, else the pause before a "
        "node's next try, which has grown to at most 1 s",
        details={
            "reconnected": [r["reconnected"] for r in results],
            "all_shown_connected_s": [round(r["shown_s"], 3) for r in results],
        },
    )
    return [disturbed, attached]


GROUPS: Final = (
    Group("stop", 3, measure_stop),
    Group("freeze", 2, measure_freeze),
)
