"""Makes a plan that fails smaller: fewer nodes, fewer faults, a shorter time, plainer settings.

It is delta debugging (Zeller and Hildebrandt, 2002) over the plan's faults, and then over its other
fields, each smaller value once, until nothing smaller fails in the same way. A smaller plan is
another history, so it is played with a few chances more than the one it had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from rallypoint.simulation.job import Job
from rallypoint.simulation.plan import Plan

PLAYS_MAX = 600
"""How many plans are tried."""


def shrunk(
    seed: int,
    plan: Plan,
    problems: Sequence[str],
    told: Callable[[str], None] = lambda line: None,
) -> Plan:
    """The smallest plan that was found with which a rule of `problems` is still broken."""
    rules = {rule_of(problem) for problem in problems}
    plays = 0

    def fails(candidate: Plan) -> bool:
        nonlocal plays
        if plays >= PLAYS_MAX:
            return False
        plays += 1
        try:
            found = Job(seed, plan=candidate).run().problems
        except Exception:  # noqa: BLE001 - a plan that cannot be played is no smaller plan
            return False
        return not rules.isdisjoint(map(rule_of, found))

    is_smaller = True
    while is_smaller:
        is_smaller = False
        for candidate in _smaller(plan):
            if fails(candidate):
                plan, is_smaller = candidate, True
                told(f"{plays} plays: {plan.nodes} nodes, {len(plan.faults)} faults")
                break
    return plan


def rule_of(problem: str) -> str:
    """The rule that a problem names."""
    return problem.partition(":")[0]


def _smaller(plan: Plan) -> Iterator[Plan]:
    """Plans that are smaller than this one, the smallest first."""
    replace, faults = msgspec.structs.replace, plan.faults
    size = len(faults)
    while size:
        for at in range(0, len(faults), size):
            yield replace(plan, faults=faults[:at] + faults[at + size :])
        size //= 2
    for nodes in range(max(1, min(2, plan.nodes - 1)), plan.nodes):
        yield replace(plan, nodes=nodes, min_nodes=min(plan.min_nodes, nodes))
    for field in msgspec.structs.fields(plan):
        is_plain = field.name in ("nodes", "min_nodes", "faults", "ledger", "program")
        if not is_plain and getattr(plan, field.name) != field.default:
            yield replace(plan, **{field.name: field.default})
    for at, fault in enumerate(faults):
        earlier_s = 2.0 if not at else faults[at - 1].at_s
        if fault.at_s - earlier_s > 1.0:
            less_s = round((fault.at_s - earlier_s) / 2, 3)
            moved = [msgspec.structs.replace(each, at_s=each.at_s - less_s) for each in faults[at:]]
            yield replace(plan, faults=(*faults[:at], *moved))
