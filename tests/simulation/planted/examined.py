"""Bugs that an examiner wrote from the code alone, before looking at what the tools can see.

Those that the tools had found at once are left out, unless others like them are not here.
"""

from __future__ import annotations

from typing import Any

from rallypoint.core.formation import Call
from rallypoint.core.store import CompareSet, StoreValue
from rallypoint.core.store.data import StoreEffect
from tests.simulation.planted.planting import Bug, Replacement, replaces


@replaces("rallypoint.core.suspicion:Suspicion.silent")
def _silent_from_now(
    original: Any, self: Any, member: Any, settings: Any, now_s: Any, silent_s: Any
) -> Any:
    """The time of a silent member begins when it is suspect, and not when it was heard last."""
    return original(self, member, settings, now_s, 0.0)


@replaces("rallypoint.core.gathering:Gathering.reset")
def _call_stays_over(original: Any, self: Any) -> None:
    """Once a last call is over, later rounds have none."""
    call = self.call
    original(self)
    if call is Call.OVER:
        self.call = call


@replaces("rallypoint.core.roster:Roster.queue")
def _queues_by_attach(original: Any, self: Any, member: Any) -> None:
    """Who attached first gets a place first, and not who asked first."""


@replaces("rallypoint.core.causes:Case.add_failure")
def _first_failure_counts(original: Any, self: Any, node: Any, failure: Any) -> None:
    """The first failure is the cause, though a worse one is known."""


@replaces("rallypoint.core.store.data:Data._comparing")
def _compares_with_nothing(original: Any, self: Any, op: CompareSet) -> Any:
    """The answer to a compare_set of an absent key is empty, and not what was expected."""
    if op.key not in self.values and op.expected:
        return StoreEffect(StoreValue(b""))
    return original(self, op)


@replaces("rallypoint.client.open_requests:OpenRequests.answered")
def _answered_stay_open(original: Any, self: Any, message: Any) -> Any:
    """A call that was answered is sent again on each new connection."""
    call = self.open.get(message.request_id)
    actions = original(self, message)
    if actions:
        self.open[message.request_id] = call
    return actions


@replaces("rallypoint.client.machine:NodeMachine.failed")
def _fails_unheard(original: Any, self: Any, failure: Any) -> Any:
    """A failure that is reported without a coordinator is not told to the next one."""
    actions = original(self, failure)
    if not self.is_attached:
        self._failure = None
    return actions


@replaces("rallypoint.core.finished:Finished.round_began")
def _counts_into_the_next(original: Any, self: Any) -> None:
    """Who finished in the round before counts as a finished member of this one."""
    self.first = ""


@replaces("rallypoint.core.store.waits:Waits._leave_barrier")
def _stays_at_the_barrier(original: Any, self: Any, call: Any, op: Any) -> None:
    """A barrier that was passed keeps the calls of its ranks, in the way of the next ones."""


def _bug(name: str, rule: str, *parts: Replacement) -> Bug:
    return Bug(name=name, rule=rule, source="examiner", parts=parts)


EXAMINED = (
    _bug("silence-counts-from-suspicion", "R8", _silent_from_now),
    _bug("last-call-never-again", "R7", _call_stays_over),
    _bug("queues-by-attach", "R7", _queues_by_attach),
    _bug("first-failure-is-the-cause", "cause", _first_failure_counts),
    _bug("compares-with-nothing", "R10", _compares_with_nothing),
    _bug("answered-stay-open", "leak", _answered_stay_open),
    _bug("fails-unheard", "R7", _fails_unheard),
    _bug("counts-into-the-next", "outcome", _counts_into_the_next),
    _bug("stays-at-the-barrier", "R10", _stays_at_the_barrier),
)
