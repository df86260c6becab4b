"""Simulate one job, or the same job with several values of one setting; and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from rallypoint.simulation.fleet import failures as fail
from rallypoint.simulation.fleet.accounts import ABOUT, Cause, Distribution
from rallypoint.simulation.fleet.costs import all_of
from rallypoint.simulation.fleet.failures import Failure
from rallypoint.simulation.fleet.fleet import Fleet
from rallypoint.simulation.fleet.rounds import FIRST
from rallypoint.simulation.fleet.settings import settings_of
from rallypoint.simulation.fleet.takeovers import Takeovers
from rallypoint.simulation.fleet.workload import Workload

LABEL: Final = (
    "simulated: the shipped core decides. Heartbeats are left out: silence is noticed as late as "
    "with them. Bytes are not simulated."
)
SCHEMA: Final = 1
"""The version of the JSON. A field may be added; one that changes or goes makes a new version."""
LOOK_EVERY: Final = 64
"""How many steps are made between two looks at the clock."""


class Lost(msgspec.Struct, frozen=True):
    """The time that one cause took."""

    cause: str
    seconds: float
    share: float
    about: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one job. Shares are of `seconds`, the time that was simulated.

    `is_whole` False: it was stopped before its end, and everything is about the time until then.
    `capacity`: the useful share, weighted by the part of the nodes that were in the round.
    `regroups`: from a failure or an arrival until all workers work again. `own`: the part of that
    which is Rallypoint's, without the workers' stop and start and without the wait for machines.
    """

    label: str
    seed: int
    seconds: float
    is_whole: bool
    ended: str
    nodes: int
    min_nodes: int
    settings: dict[str, Any]
    useful_s: float
    useful: float
    capacity: float
    lost: tuple[Lost, ...]
    first_round_s: float | None
    rounds: int
    breaks: dict[str, int]
    regroups: Distribution
    own: Distribution
    takeovers: Distribution
    failures: int
    failures_unhit: int
    events: int


def drawn(workload: Workload, seed: int) -> list[Failure]:
    """The failures of a job without a trace."""
    return fail.draw(workload, seed)


def play(
    workload: Workload,
    texts: dict[str, str],
    failures: list[Failure],
    seed: int,
    go_on: Callable[[float, int], bool] = lambda at_s, rounds: True,
) -> Result:
    """Simulate one job. `texts`: settings that are not the default.

    `go_on` is asked again and again, with the time in the job and the number of rounds.
    """
    settings = settings_of(texts, nodes=workload.nodes, min_nodes=workload.least)
    takeovers = Takeovers(
        lease_ttl_s=settings.lease_ttl_s, silence_s=settings.coordinator_silence_s, seed=seed
    )
    fleet = Fleet(workload, settings, failures, takeovers, seed)
    steps = 0

    def may_go_on() -> bool:
        nonlocal steps
        steps += 1
        return bool(steps % LOOK_EVERY) or go_on(fleet.schedule.now_s, fleet.rounds.count)

    is_whole = fleet.run(may_go_on)
    return _result(fleet, seed, len(failures), is_whole)


def _result(fleet: Fleet, seed: int, failures: int, is_whole: bool) -> Result:
    rounds, workload = fleet.rounds, fleet.workload
    accounts = rounds.accounts
    seconds = fleet.schedule.now_s

    def share(part_s: float) -> float:
        return part_s / seconds if seconds else 0.0

    first = [each for each in rounds.regroups if each.why == FIRST]
    later = [each for each in rounds.regroups if each.why != FIRST]
    return Result(
        label=LABEL,
        seed=seed,
        seconds=seconds,
        is_whole=is_whole,
        ended=rounds.end_reason,
        nodes=workload.nodes,
        min_nodes=workload.least,
        settings=fleet.settings.changed(),
        useful_s=accounts.useful_s,
        useful=share(accounts.useful_s),
        capacity=share(accounts.node_s / workload.nodes),
        lost=tuple(
            Lost(str(cause), accounts.lost_s[cause], share(accounts.lost_s[cause]), ABOUT[cause])
            for cause in Cause
        ),
        first_round_s=first[0].took_s if first else None,
        rounds=rounds.count,
        breaks={why: count for why, count in sorted(rounds.breaks.items()) if count},
        regroups=Distribution.of([each.took_s for each in later]),
        own=Distribution.of([each.own_s for each in later]),
        takeovers=Distribution.of(fleet.takeovers_s),
        failures=failures,
        failures_unhit=fleet.unhit,
        events=fleet.events,
    )


def as_json(results: list[tuple[str, Result]], compared: str, workload: Workload) -> dict[str, Any]:
    """For JSON: what was simulated, where its numbers come from, and each result. null: never."""
    made = []
    for value, result in results:
        body = msgspec.to_builtins(result)
        made.append({"compared": {"name": compared, "value": value} if compared else None, **body})
    body = {
        "schema": SCHEMA,
        "label": LABEL,
        "workload": msgspec.to_builtins(workload),
        "costs": [msgspec.to_builtins(cost) for cost in all_of(workload.ledger)],
        "results": made,
    }
    # msgspec writes null for what JSON has no number for: a time that is infinite.
    finite: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(body))
    return finite
