"""The complete table of (phase, event): which handler notes it, and where the run may go from it.

Every pair is here, also those in which nothing changes; a test says so, and another checks that
no random run ever leaves a phase for one that its cell does not name. docs/protocol.md is drawn
from this table (`python -m rallypoint.core.transitions`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from rallypoint.core import events as on
from rallypoint.core.values import Phase

GATHERING, COMMITTING, ACTIVE, SUSPENDED, CLOSED = tuple(Phase)


class Cell(NamedTuple):
    """What one event does in one phase.

    `handler` is the method of Membership that notes it; `to` the phases in which the run may be
    once everything that follows from it has been done; `means` says it in words.
    """

    handler: str
    means: str
    to: tuple[Phase, ...]


_FROM_GATHERING: Final = (GATHERING, COMMITTING)
_FROM_ACTIVE: Final = (ACTIVE, GATHERING, COMMITTING)


def _rows(
    event: type[on.Event],
    gathering: tuple[str, str],
    committing: tuple[str, str],
    active: tuple[str, str],
    suspended: tuple[str, str],
    closed: tuple[str, str],
) -> dict[tuple[Phase, type[on.Event]], Cell]:
    """One event's row. Most cells may go wherever their phase may; the others are set below."""
    return {
        (GATHERING, event): Cell(*gathering, _FROM_GATHERING),
        (COMMITTING, event): Cell(*committing, (COMMITTING,)),
        (ACTIVE, event): Cell(*active, _FROM_ACTIVE),
        (SUSPENDED, event): Cell(*suspended, (SUSPENDED,)),
        (CLOSED, event): Cell(*closed, (CLOSED,)),
    }


_NOTHING: Final = ("_ignore", "nothing")
_KEPT: Final = ("_defer", "kept until the ledger is back")
_COUNTED: Final = ("_as_at_work", "counted as in the phase that it comes back to")
_TOLD: Final = (
    "_as_at_work",
    "as in the phase that it comes back to: a broken round is told at once",
)
_DEPOSED: Final = ("_on_commit_refused", "deposed: this coordinator decides nothing more")
_NOTED: Final = ("_on_noted", "goodbyes that waited for it are answered")
_NOT_ASKED: Final = ("_ignore", "nothing: no record was given")

_ATTACHED: Final = ("_on_attached", "let in, resumed, or refused with the reason")
_READY: Final = ("_on_ready", "counted; may complete the round")
_LEFT: Final = ("_on_left", "taken out; may end the run")
_CLOSE: Final = ("_on_close_requested", "the close is given to the ledger")
_LOST: Final = (
    "_on_connection_lost",
    "lost at once if its process ended, else has the grace to resume",
)
_SILENT: Final = ("_on_silent", "suspect, shown as such")
_HEARD: Final = ("_on_answer", "suspect no more")
_ANSWERED: Final = ("_on_answer", "alive; may close the case")
_TIMER: Final = ("_on_timer", "if not stale: its deadline has passed")

TRANSITIONS: Final[dict[tuple[Phase, type[on.Event]], Cell]] = {
    **_rows(
        on.NodeAttached,
        _ATTACHED,
        _ATTACHED,
        _ATTACHED,
        ("_attach_suspended", "let in or resumed; a second node of one name waits"),
        ("_refuse_closed", "refused: why the run was closed, and since when"),
    ),
    **_rows(
        on.NodeReady,
        _READY,
        ("_on_ready", "counted for the round after the one being written"),
        ("_on_ready", "a newcomer waits; a member leaves the round and so breaks it"),
        _TOLD,
        _NOTHING,
    ),
    **_rows(
        on.WorkerFailed,
        ("_on_worker_failed", "evidence for the open case"),
        _NOTHING,
        ("_on_worker_failed", "breaks the round, opens a case, probes the members"),
        _TOLD,
        _NOTHING,
    ),
    **_rows(
        on.NodeDone,
        ("_on_done", "done, though the round broke: not waited for"),
        ("_on_done", "done, though left out of the round being written"),
        ("_on_done", "done; the run succeeds when all are"),
        _COUNTED,
        _NOTHING,
    ),
    **_rows(
        on.NodeDeparting,
        ("_on_departing", "not waited for"),
        ("_on_departing", "noted; the next round begins once this one is written"),
        ("_on_departing", "breaks the round"),
        _TOLD,
        _NOTHING,
    ),
    **_rows(
        on.NodeLeft,
        _LEFT,
        ("_on_left", "taken out; the next round begins once this one is written"),
        ("_on_left", "taken out; breaks the round unless done or departing"),
        _TOLD,
        ("_on_left", "taken out"),
    ),
    **_rows(
        on.CloseRequested,
        _CLOSE,
        ("_on_close_requested", "the close follows the record being written"),
        _CLOSE,
        _KEPT,
        _NOTHING,
    ),
    **_rows(
        on.ProbeAnswered,
        _ANSWERED,
        _ANSWERED,
        _ANSWERED,
        _ANSWERED,
        _NOTHING,
    ),
    **_rows(
        on.ConnectionLost,
        _LOST,
        _LOST,
        _LOST,
        ("_note_disconnected", "noted; its grace begins, or it is lost, when the ledger is back"),
        ("_note_disconnected", "noted"),
    ),
    **_rows(on.NodeSilent, _SILENT, _SILENT, _SILENT, _SILENT, _NOTHING),
    **_rows(on.NodeHeard, _HEARD, _HEARD, _HEARD, _HEARD, _NOTHING),
    **_rows(on.TimerFired, _TIMER, _TIMER, _TIMER, _TIMER, _NOTHING),
    **_rows(
        on.Committed,
        _NOT_ASKED,
        ("_on_committed", "the round is published (or begun again), or the run is over"),
        _NOT_ASKED,
        ("_note_committed", "noted; takes effect when the ledger is back, and is not repeated"),
        _NOT_ASKED,
    ),
    **_rows(
        on.Noted,
        _NOTED,
        ("_on_noted", "the record that waited for it is given to the ledger"),
        _NOTED,
        _NOTED,
        _NOTHING,
    ),
    **_rows(
        on.CommitRefused,
        _DEPOSED,
        _DEPOSED,
        _DEPOSED,
        _DEPOSED,
        ("_on_commit_refused", "deposed: another coordinator tells of the end from now on"),
    ),
    **_rows(
        on.LedgerLost,
        ("_on_ledger_lost", "nothing is decided until it is back"),
        ("_on_ledger_lost", "the record is given again when it is back, unless Committed came"),
        ("_on_ledger_lost", "the round goes on"),
        ("_on_ledger_lost", "one more reason, or a newer one of the same cause"),
        _NOTHING,
    ),
    **_rows(
        on.LedgerRestored,
        _NOTHING,
        _NOTHING,
        _NOTHING,
        (
            "_on_ledger_restored",
            "this cause is cleared; after the last one the run goes on, and what was kept counts",
        ),
        _NOTHING,
    ),
    **_rows(
        on.StoreLost,
        _NOTHING,
        _NOTHING,
        ("_on_store_lost", "breaks the round: its members regroup at once"),
        _TOLD,
        _NOTHING,
    ),
}

_LEADS: Final[dict[tuple[Phase, type[on.Event]], tuple[Phase, ...]]] = {
    (GATHERING, on.CloseRequested): (COMMITTING,),
    (ACTIVE, on.CloseRequested): (COMMITTING,),
    (ACTIVE, on.NodeAttached): (ACTIVE,),
    (ACTIVE, on.ConnectionLost): (ACTIVE,),
    (ACTIVE, on.WorkerFailed): (ACTIVE, GATHERING),
    (ACTIVE, on.StoreLost): (ACTIVE, GATHERING),
    (ACTIVE, on.NodeSilent): (ACTIVE,),
    (ACTIVE, on.NodeHeard): (ACTIVE, GATHERING),
    (ACTIVE, on.ProbeAnswered): (ACTIVE, GATHERING),
    (GATHERING, on.Noted): (GATHERING,),
    (ACTIVE, on.Noted): (ACTIVE,),
    (COMMITTING, on.Committed): (ACTIVE, GATHERING, COMMITTING, CLOSED),
    (GATHERING, on.CommitRefused): (SUSPENDED,),
    (COMMITTING, on.CommitRefused): (SUSPENDED,),
    (ACTIVE, on.CommitRefused): (SUSPENDED,),
    (CLOSED, on.CommitRefused): (CLOSED,),
    (GATHERING, on.LedgerLost): (SUSPENDED,),
    (COMMITTING, on.LedgerLost): (SUSPENDED,),
    (ACTIVE, on.LedgerLost): (SUSPENDED,),
    (SUSPENDED, on.LedgerRestored): (GATHERING, COMMITTING, ACTIVE, SUSPENDED, CLOSED),
}
for _pair, _to in _LEADS.items():
    TRANSITIONS[_pair] = TRANSITIONS[_pair]._replace(to=_to)
for _pair, _cell in TRANSITIONS.items():
    if _cell.handler == "_ignore":
        TRANSITIONS[_pair] = _cell._replace(to=(_pair[0],))


def as_markdown() -> str:
    """The table for docs/protocol.md: a row per event, a column per phase."""
    lines = [
        "| event | " + " | ".join(phase.value for phase in Phase) + " |",
        "|---" * (len(Phase) + 1) + "|",
    ]
    for event in on.EVENTS:
        cells = [_cell_text(phase, TRANSITIONS[phase, event]) for phase in Phase]
        lines.append(f"| {event.__name__} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell_text(phase: Phase, cell: Cell) -> str:
    elsewhere = [to.value for to in cell.to if to is not phase]
    if cell.handler == "_ignore":
        return "–" if cell.means == "nothing" else f"– ({cell.means.removeprefix('nothing: ')})"
    return cell.means + (f" → {', '.join(elsewhere)}" if elsewhere else "")


if __name__ == "__main__":
    print(as_markdown())
