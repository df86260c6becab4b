"""The coordinator's log lines about runs: one for each event, made from the event.

So the log says what `rallypoint events` says, in the same words. LEVELS has the level of each kind,
and NO_LINE the kinds that have no line from here, with the reason.
"""

from __future__ import annotations

import logging
from typing import Final

from rallypoint import logs
from rallypoint.coordinator.run_events import EventKind, RunEvent
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import ChangeKind, Outcome

_log = logging.getLogger("rallypoint.coordinator")

LEVELS: Final[dict[EventKind, int]] = {
    EventKind.BEGAN: logging.INFO,
    EventKind.TOOK_OVER: logging.INFO,
    EventKind.HANDED_OVER: logging.INFO,
    EventKind.DEPOSED: logging.WARNING,
    EventKind.SUSPENDED: logging.WARNING,
    EventKind.RESTORED: logging.INFO,
    EventKind.ATTACHED: logging.INFO,
    EventKind.RESUMED: logging.INFO,
    EventKind.REFUSED: logging.WARNING,
    # Each node asks for each round: a run of 100 nodes would have 100 lines about nothing special.
    EventKind.READY: logging.DEBUG,
    EventKind.STANDBY: logging.INFO,
    EventKind.DISCONNECTED: logging.INFO,
    EventKind.SUSPECT: logging.WARNING,
    EventKind.WITNESSED: logging.WARNING,
    EventKind.HEARD: logging.INFO,
    EventKind.GUARDED: logging.WARNING,
    EventKind.WORKER_FAILED: logging.WARNING,
    EventKind.DEPARTING: logging.INFO,
    EventKind.LEFT: logging.INFO,
    EventKind.LOST: logging.WARNING,
    EventKind.SUPERSEDED: logging.INFO,
    EventKind.DONE: logging.INFO,
    EventKind.DRAIN_ASKED: logging.INFO,
    EventKind.EVICTED: logging.INFO,
    EventKind.READMITTED: logging.INFO,
    EventKind.SCALED: logging.INFO,
    EventKind.COOLING: logging.WARNING,
    EventKind.LET_BACK_IN: logging.WARNING,
    EventKind.FORGIVEN: logging.INFO,
    EventKind.LAST_CALL: logging.INFO,
    EventKind.HELD_BACK: logging.WARNING,
    EventKind.WAITED: logging.INFO,
    EventKind.FORMED: logging.INFO,
    EventKind.NOT_BEGUN: logging.INFO,
    EventKind.LET_IN: logging.INFO,
    EventKind.STACKS: logging.INFO,
    EventKind.BROKEN: logging.WARNING,
    EventKind.CAUSE: logging.WARNING,
    EventKind.CLOSED: logging.INFO,
    EventKind.DROPPED: logging.INFO,
}
NO_LINE: Final[dict[EventKind, str]] = {
    EventKind.GAVE_UP: "HostedRun.fail writes it, with the traceback, which an event does not have",
}
_BY_CAUSE: Final[dict[tuple[EventKind, str], int]] = {
    # The lease is of the coordinator, which has one line for all of its runs (`owned_runs`).
    (EventKind.SUSPENDED, SuspensionCause.LEASE.value): logging.DEBUG,
    (EventKind.RESTORED, SuspensionCause.LEASE.value): logging.DEBUG,
    (EventKind.BROKEN, ChangeKind.NODES_JOINED.value): logging.INFO,
    (EventKind.BROKEN, ChangeKind.NODE_LEFT.value): logging.INFO,
    (EventKind.BROKEN, ChangeKind.READY_AGAIN.value): logging.INFO,
    (EventKind.CLOSED, Outcome.FAILED.value): logging.WARNING,
    (EventKind.CLOSED, Outcome.NOT_ENOUGH.value): logging.WARNING,
}
_READY: Final = EventKind.READY


def level_of(event: RunEvent) -> int | None:
    """The level of the event's line; None if it has none here."""
    level = LEVELS.get(event.kind)
    # The coordinator that saw a late event has logged it.
    if level is None or event.is_late:
        return None
    return _BY_CAUSE.get((event.kind, event.cause), level)


def write_line(run_id: str, event: RunEvent) -> None:
    """Log the event. A sink of `Events`."""
    if event.kind is _READY and not _log.isEnabledFor(logging.DEBUG):
        return  # Each node has one in each round.
    level = level_of(event)
    if level is None or not _log.isEnabledFor(level):
        return
    fields = logs.fields(run_id, event.term, event.round) | logs.event(event.kind.value)
    _log.log(level, "run %s: %s", run_id, event, extra=fields)
