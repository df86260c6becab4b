"""R8, the upper bounds: which members should have been lost by now, by a RunChecker's own account.

`run_checker` finds a loss that comes too early. This finds one that does not come.
"""

from __future__ import annotations

from typing import Final

from rallypoint.checkers.run_checker import CLOCKS, RunChecker, _Node
from rallypoint.core.reasons import Waiting
from rallypoint.core.suspicion import HOST_GRACE_S
from rallypoint.core.values import Reachability

BURST_MAX_S: Final = 1.0
"""Processes that end together are lost together, within this time."""
EARLY_S: Final = 6.0
SLACK: Final = 1.3
SLACK_S: Final = 2.0
"""A bound may be late by so much: the part is for clocks of different rates, the rest for turns."""


def overdue(checker: RunChecker, now_s: float, slack: float = SLACK) -> str:
    """A member that is still there, though its time is over, and why; "" if there is none.

    Call it between the steps, with the clock of the steps. `slack`: so many times longer than a
    bound a member may stay, for clocks of different rates.
    """
    if checker._suspended or checker._closed or checker._deposed:
        return ""
    now_s = checker._clock_s + now_s - checker._seen_s
    guard_s = checker._settings.mass_grace_s
    guarded_s = None if checker._mass_since_s is None else now_s - checker._mass_since_s
    is_guarding = guarded_s is not None and guarded_s < slack * guard_s + SLACK_S
    for node in checker._nodes.values():
        if not node.is_awaited or node.reachability is Reachability.CONNECTED:
            continue
        since_s, bound_s, why = _bound(checker, node)
        is_guardable = not (node.has_ended or checker._is_unguarded(node))
        if since_s is None or (is_guarding and is_guardable):
            continue
        granted = (checker._went_on_s, checker._maybe_until_s)
        grants = sum(each_s >= since_s for each_s in granted)
        if is_guardable:
            # While many were missing, none of them was judged.
            guarded_until_s = checker._maybe_until_s
            if checker._mass_since_s is not None:
                guarded_until_s = checker._mass_since_s + guard_s
            since_s = max(since_s, guarded_until_s)
        # An outage of the ledger gives each member the reconnect grace once more, and so does the
        # end of the mass guard.
        more_s = 0.0 if node.has_ended else checker._settings.reconnect_grace_s * grants
        if node.is_former_host and node.absent_since_s is not None:
            more_s = HOST_GRACE_S  # An outage gives it no more, and the guard does not count it.
        if now_s - since_s > slack * (bound_s + more_s) + SLACK_S:
            return f"{node.id.name} {why} {now_s - since_s:.1f} s ago, and is still a member"
    return ""


def guard_differs(checker: RunChecker, is_guarding: bool) -> str:
    """Why it is wrong that the run's mass guard is raised, or is not; "" if it is right.

    Call it between the steps.
    """
    if checker._suspended or checker._closed or checker._deposed:
        return ""
    since_s, grace_s = checker._mass_since_s, checker._settings.mass_grace_s
    if is_guarding and since_s is None:
        return "nobody is declared lost, though few are missing"
    held_s = 0.0 if since_s is None else checker._clock_s - since_s
    # By the clock of the checks the attach grace may have ended so much earlier.
    is_on = EARLY_S < held_s < grace_s / CLOCKS
    return "many are missing, and any may be declared lost" if is_on > is_guarding else ""


def waits_differ(checker: RunChecker, waiting: Waiting) -> str:
    """Why it is wrong for whom a round waits, as nodes and people are told; "" if it is right.

    Call it between the steps, while the run gathers after a round that was published.
    """
    record = checker._published
    if record is None or checker._broken is None:
        return ""
    missing, surely = [], []
    for row in record.members:
        node = checker._nodes.get(row.name)
        # Who was lost, and has attached again, is a newcomer.
        if node is None or node.seated != record.head.number or not node.is_awaited:
            continue
        if not (node.asked and node.reachability is Reachability.CONNECTED):
            # Nobody waits for those whose check failed last, or that broke too many rounds.
            if node.unfit:
                continue
            if not checker._cooling.is_out(row.name, checker._run_s):
                missing.append(row.name)
            if not checker._cooling.may_be_out(row.name, checker._run_s):
                surely.append(row.name)
    is_count = len(surely) <= waiting.missing_count <= len(missing)
    if not is_count or not set(waiting.missing) <= set(missing):
        return f"it waits for {waiting.missing}, and these are not ready: {missing}"
    return ""


def _bound(checker: RunChecker, node: _Node) -> tuple[float | None, float, str]:
    """Since when a member cannot be heard, for how long that may last, and what happened then."""
    settings = checker._settings
    if node.has_ended:
        return node.closed_s, BURST_MAX_S, "ended"
    if node.absent_since_s is not None:
        grace_s = checker._attach_until_s - node.absent_since_s
        if node.is_former_host:
            grace_s = min(grace_s, HOST_GRACE_S)
        return node.absent_since_s, grace_s, "was expected to attach"
    if node.reachability is Reachability.DISCONNECTED:
        return node.closed_s, settings.reconnect_grace_s, "closed its connection"
    return node.silent_since_s, settings.lost_after_s, "fell silent"
