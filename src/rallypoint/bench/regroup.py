"""How soon nodes are notified of a loss or an arrival, and how soon they regroup.

`told`: from the event to the last node that is notified that its round ended. `met`: from the first
node's call after that to the last node's new round. That includes the waits of the settings:
`settle_s` (0.05 s), and with a frozen node `probe_s` (1 s), the time that it has to answer. The
nodes call as soon as all of them are notified, as if workers stopped at once.

A frozen node alone ends no round (R8). The time begins when a worker of another node fails.
"""

from __future__ import annotations

from typing import Any, Final

from rallypoint.bench import driver
from rallypoint.bench.figure import Figure

FROZEN: Final = "a failure beside a frozen node"
CUT_OFF: Final = "cut off, no grace"
EVENTS: Final = {
    "killed": "its kernel closes its connection, which proves that its process has ended",
    CUT_OFF: "its connection is reset; reconnect_grace_s=0",
    "leaving": "it says goodbye",
    "arriving": "one more node arrives; scale_up_delay_s is 1 s",
    FROZEN: "one node is silent for longer than suspect_after_s; timed from the failure of "
    "another node's worker",
}
SUSPECT_AFTER_S: Final = 5.0
FROZEN_S: Final = SUSPECT_AFTER_S + 2.0
"""After this many seconds a frozen node is suspect, even if its last heartbeat was just before."""
LAST_CALL_S: Final = 0.5
REPEATS_MAX: Final = 5


def settings(nodes: int, event: str) -> dict[str, Any]:
    """A run of at most this many nodes that goes on without one of them."""
    chosen: dict[str, Any] = {
        "min_nodes": max(1, nodes - 1),
        "max_nodes": nodes,
        "max_restarts": None,
        "suspect_after_s": SUSPECT_AFTER_S,
    }
    if event == CUT_OFF:
        chosen["reconnect_grace_s"] = 0.0
    if event == "arriving":
        # The first round begins after this time, without the node that arrives later. The next one
        # has all nodes and does not wait. With 0 the first round would lack nodes that call late.
        chosen["last_call_s"] = LAST_CALL_S
    return chosen


def measure(plan: driver.Plan, nodes: int) -> list[Figure]:
    """Every event, each time in a new run."""
    driver.check_descriptors(nodes)
    figures = []
    for event, about in EVENTS.items():
        told, met = [], []
        for _ in range(min(plan.repeats, REPEATS_MAX)):
            with driver.fleets(plan.processes) as fleets:
                told_s, met_s = _once(plan, fleets, event, nodes)
            told.append(told_s * 1e3)
            met.append(met_s * 1e3)
        for name, values in (("told", told), ("met", met)):
            figures.append(
                Figure(
                    scenario="regroup",
                    name=f"{event}: {name}",
                    nodes=nodes,
                    unit="ms",
                    values=tuple(values),
                    about=about,
                )
            )
    return figures


def _once(plan: driver.Plan, fleets: driver.Fleets, event: str, nodes: int) -> tuple[float, float]:
    chosen, run_id = settings(nodes, event), plan.run_id()
    here = nodes - 1 if event == "arriving" else nodes
    fleets.connect(plan.at, run_id=run_id, nodes=here, settings=chosen, ready=True)
    fleets.ask("settle")
    fleets.ask("expect_end")
    if event != "arriving":
        fleets.each[0].ask("expect_end", but=1)
    happened_s = _happen(plan, fleets, event, here, run_id)
    notified = fleets.ask("ended")
    met = fleets.ask("meet")
    fleets.ask("disconnect")
    told_s: float = max(t["last_s"] for t in notified) - happened_s
    return told_s, driver.span(met, "formed_s")


def _happen(plan: driver.Plan, fleets: driver.Fleets, event: str, here: int, run_id: str) -> float:
    """Cause the event, and return its time."""
    first = fleets.each[0]
    if event == "arriving":
        came_s: float = first.ask(
            "arrive",
            host=plan.at.address.host,
            port=plan.at.address.port,
            run_id=run_id,
            first=here,
            settings=settings(here + 1, event),
            token=plan.at.token,
        )["began_s"]
        return came_s
    # Any node can be used: node rank 0 is like the others.
    index = here // 2 // len(fleets.each)
    command = {"leaving": "leave", FROZEN: "freeze", CUT_OFF: "cut"}.get(event, "kill")
    gone_s: float = first.ask(command, index=index)["at_s"]
    if event == FROZEN:
        failed_s: float = first.ask("fail", index=0, at_s=gone_s + FROZEN_S)["at_s"]
        return failed_s
    return gone_s
