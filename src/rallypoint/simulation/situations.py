"""Situations that plans of many kinds of faults rarely come to: some seeds are about one of them.

A situation changes the plan of its seed: its sizes, its settings, and all of its faults, which are
kept few, so that its worlds are quick. It draws with a chance of its own, so the other seeds stay
as they are.

To add one: write a function of a plan and a Random, and put it into `RARE` with its share of the
seeds. Then most seeds with another situation stay as they are. The faults that only situations have
are in `situation_faults`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, TypeAlias

import msgspec

from rallypoint.simulation import guilt
from rallypoint.simulation import ledger_situations as owners
from rallypoint.simulation import node_situations as nodes
from rallypoint.simulation.plan import ISOLATED, Plan

Situation: TypeAlias = Callable[[Plan, random.Random], Plan]
SHARE: Final = 0.2
"""In which part of all seeds there is one of `SITUATIONS`."""
ADDED_SHARE: Final = 0.05
"""The same for those in `ADDED`."""
LATER_SHARE: Final = 0.03
"""In which part of the seeds without another one there is one of those in `LATER_SITUATIONS`."""


def situated(seed: int, plan: Plan) -> Plan:
    """The plan of this seed: changed, if it is about a situation."""
    for name, (share, change) in RARE.items():
        own = random.Random(f"{seed}/{name}")
        if own.random() < share:
            return change(_plain(name, plan), own).sound()
    draw = random.Random(f"{seed}/more situations")
    if draw.random() < ADDED_SHARE and plan.lasting != ISOLATED:
        name = draw.choice(tuple(ADDED))
        return ADDED[name](_plain(name, plan), draw).sound()
    draw = random.Random(f"{seed}/situation")
    if plan.lasting == ISOLATED:
        return plan
    table = SITUATIONS
    if draw.random() >= SHARE:
        draw, table = random.Random(f"{seed}/later situation"), LATER_SITUATIONS
        if draw.random() >= LATER_SHARE:
            return plan
    name = draw.choice(tuple(table))
    return table[name](_plain(name, plan), draw).sound()


def _plain(name: str, plan: Plan) -> Plan:
    """The plan with bare nodes, over etcd, with one run, and without what makes it slow."""
    return msgspec.structs.replace(
        plan,
        situation=name,
        ledger="etcd",
        program="node",
        runs=1,
        faults=(),
        is_mixed=False,
        is_container=False,
        has_proxy=False,
        same_names=False,
        orphan_s=None,
        calls_per_s=1.0,
    )


SITUATIONS: Final[dict[str, Situation]] = {
    "while writing": owners.while_writing,
    "while suspended": owners.while_suspended,
    "crowd": nodes.crowd,
    "unlike": nodes.unlike,
    "again": owners.again,
    "late": nodes.late,
    "silent owner": owners.silent_owner,
    "long silence": nodes.long_silence,
    "standby": nodes.standby,
    "too few": nodes.too_few,
    "refused": owners.refused,
    "handed over": owners.handed_over,
}

ADDED: Final[dict[str, Situation]] = {
    "late appends": owners.late_appends,
    "two owners": owners.two_owners,
    "cut calls": nodes.cut_calls,
    "offline": nodes.offline,
    "namesakes": nodes.namesakes,
}
"""Those that are drawn with a chance of their own, so that the seeds of the others stay."""


LATER_SITUATIONS: Final[dict[str, Situation]] = {
    "reports away": nodes.reports_away,
    "one by one": nodes.one_by_one,
}

RARE: Final[dict[str, tuple[float, Situation]]] = {
    "hours": (0.005, owners.hours),
    "full queues": (0.005, owners.full_queues),
    "operators": (0.01, nodes.operators),
    "guilty": (0.01, guilt.guilty),
    "cooling": (0.01, guilt.cooling),
    "silent host": (0.02, nodes.witnesses),
    "departures": (0.02, nodes.departures),
    "checked": (0.01, guilt.checked),
}
"""Situations with their share of all seeds. Each is drawn by itself."""
