"""Faults that were known and mended late: put back, so that the simulator has to find them."""

from __future__ import annotations

from typing import Any

from tests.simulation.planted.planting import Bug, replaces

# -- coordinators that nodes cannot reach ----------------------------------------------------------


@replaces("rallypoint.core.election.resignation:Resignation._waits_s")
def _waits_no_longer(original: Any, self: Any, heard: Any) -> float:
    """Each resigns before it has judged the absent."""
    return float(self.after_s)


@replaces("rallypoint.core.election.resignation:_may_gather_more")
def _resigns_to_anyone(original: Any, others: Any, heard: Any) -> bool:
    """It resigns also if its own node is enough, and one other node waits."""
    return bool(others)


@replaces("rallypoint.core.election.resignation:_may_gather_more")
def _keeps_a_run_of_one(original: Any, others: Any, heard: Any) -> Any:
    """Its own node is enough, so it forgets that the run had others."""
    return not heard.is_enough and original(others, heard)


@replaces("rallypoint.core.election.ownership:Claim.resign")
def _waits_for_nobody(
    original: Any, self: Any, now_s: Any, pause_s: Any = 0.0, *, is_yielding: Any = False
) -> Any:
    """All who have tried wait at the same time, and nobody owns the run."""
    return original(self, now_s, pause_s)


# -- a node that finished while it was lost --------------------------------------------------------


@replaces("rallypoint.core.requests:was_in")
def _late_done_ignored(original: Any, run: Any, member: Any, number: Any) -> bool:
    return False


# -- a coordinator that has ended ------------------------------------------------------------------


@replaces("rallypoint.core.election.ownership:Claim._may_contest")
def _waits_for_the_ttl(original: Any, self: Any, lease: Any, version: Any) -> bool:
    """As before dead coordinators were succeeded at once."""
    return False


@replaces("rallypoint.coordinator.owned_runs:OwnedRuns.goes_on")
def _begins_again(original: Any, self: Any, register: Any, former_host: Any) -> bool:
    """An owner that is asked for its run takes it over from itself."""
    self.won(register.run_id, register, former_host)
    return True


# -- a coordinator that was replaced alive ---------------------------------------------------------


@replaces("rallypoint.coordinator.ended_owner:record_mistake")
async def _no_mistake(original: Any, ledger: Any, process: Any, addresses: Any) -> None:
    """It does not say so."""


def _mended(name: str, rule: str, *parts: Any) -> Bug:
    return Bug(name=name, rule=rule, source="earlier release", parts=parts)


MENDED = (
    _mended("waits-for-the-ttl", "R7", _waits_for_the_ttl),
    _mended("takes-over-from-itself", "R5", _begins_again),
    _mended("resigns-to-and-fro", "R7", _waits_no_longer, _resigns_to_anyone),
    _mended("keeps-a-run-of-one", "R7", _keeps_a_run_of_one),
    _mended("all-wait-after-resigning", "R7", _waits_for_nobody, _waits_no_longer),
    _mended("late-done-ignored", "R7", _late_done_ignored),
    _mended("no-mistake-recorded", "R10", _no_mistake),
)
