"""Bugs of failures that cost something: the budget, and the nodes that have to stay out."""

from __future__ import annotations

import math
from typing import Any

from rallypoint.core.blame import NO_BLAME
from tests.simulation.planted.planting import Bug, Replacement, replaces


@replaces("rallypoint.core.blame:weight_of")
def _early_counts_once(original: Any, lasted_s: Any, settings: Any) -> int:
    return 1


@replaces("rallypoint.core.blame:KeptBlame.charge")
def _never_refilled(original: Any, self: Any, weight: Any, settings: Any, now_s: Any) -> None:
    """A charge counts for ever, whatever the window."""
    original(self, weight, settings, math.inf)


@replaces("rallypoint.core.blame:KeptBlame.failed")
def _never_the_same(
    original: Any, self: Any, failure: Any, settings: Any, now_s: Any, step: Any = None
) -> int:
    return 0


@replaces("rallypoint.core.blame:ends_at_once")
def _exit_code_overlooked(original: Any, failure: Any, settings: Any) -> bool:
    return False


@replaces("rallypoint.core.blame:KeptBlame.restore")
def _successor_forgets(
    original: Any, self: Any, blame: Any, restarts: Any, settings: Any, now_s: Any
) -> None:
    self.at_forming = NO_BLAME


@replaces("rallypoint.core.cooling:update")
def _keeps_its_place(original: Any, run: Any, member: Any) -> None:
    """A guilty node is never kept out."""


@replaces("rallypoint.core.blame:KeptBlame.cooled")
def _never_forgiven(original: Any, self: Any, now_s: Any) -> list[str]:
    return []


@replaces("rallypoint.core.formation:Counts.able")
def _run_waits_for_it(original: Any, self: Any) -> Any:
    """Those that stay out do not count, though the minimum needs them."""
    return self.ready


@replaces("rallypoint.core.blame:KeptBlame._offenders")
def _ledger_is_not_told(original: Any, self: Any, now_s: Any) -> list[Any]:
    """A successor does not learn who stays out."""
    return []


@replaces("rallypoint.core.cooling:fitness")
def _unfit_is_fit(original: Any, run: Any, member: Any, unfit: Any) -> None:
    """What a node says of its own check is not heard."""


def _bug(name: str, rule: str, by: str, part: Replacement) -> Bug:
    return Bug(name=f"guilty-{name}", rule=rule, source="none", parts=(part,), by=by)


GUILTY = (
    _bug("early-counts-once", "budget", "guilty", _early_counts_once),
    _bug("never-refilled", "budget", "guilty", _never_refilled),
    _bug("never-the-same", "budget", "guilty", _never_the_same),
    _bug("exit-code-overlooked", "budget", "guilty", _exit_code_overlooked),
    _bug("successor-forgets", "budget", "guilty", _successor_forgets),
    _bug("keeps-its-place", "R7", "cooling", _keeps_its_place),
    _bug("never-forgiven", "R7", "cooling", _never_forgiven),
    _bug("run-waits-for-it", "R7", "cooling", _run_waits_for_it),
    _bug("ledger-is-not-told", "R9", "cooling", _ledger_is_not_told),
    _bug("unfit-is-fit", "R7", "checked", _unfit_is_fit),
)
