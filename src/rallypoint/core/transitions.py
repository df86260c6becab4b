"""The table of transitions: for each phase and event, how the run handles the event there.

The table is complete: it has a cell for every pair, even if nothing changes. Each cell has in words
what happens, and the phases that may follow. docs/protocol.md is drawn from this table (`python -m
rallypoint.core.transitions`). The functions are in `membership.HANDLERS`, by event and `Handling`.
This file must not contain rules: those are in the handlers and in `Membership`.
"""

from __future__ import annotations

import enum
from typing import Final, TypeAlias

import msgspec

from rallypoint.core import events as on
from rallypoint.core.values import FrozenStruct, Phase

GATHERING, COMMITTING, ACTIVE, SUSPENDED, CLOSED = tuple(Phase)


class Handling(enum.Enum):
    """How a run handles an event in one phase."""

    NOW = enum.auto()
    """Its handler takes it at once."""
    IGNORED = enum.auto()
    """Nothing changes."""
    UNDERLYING = enum.auto()
    """SUSPENDED: handled as in the phase to which the run returns when the ledger is back."""
    KEPT = enum.auto()
    """SUSPENDED: kept until the ledger is back, and handled then."""
    RECORDED = enum.auto()
    """Recorded without a decision, because this phase allows none."""
    REFUSED = enum.auto()
    """CLOSED: refused with the reason."""


class Cell(FrozenStruct, frozen=True):
    """What one event does in one phase.

    `means`: the meaning in words. `to`: the phases in which the run may be after all consequences
    of the event.
    """

    handling: Handling
    means: str
    to: tuple[Phase, ...]


_How: TypeAlias = str | tuple[Handling, str]
"""What a cell means, and its handling, if that is not NOW."""

_FROM_GATHERING: Final = (GATHERING, COMMITTING)
_FROM_ACTIVE: Final = (ACTIVE, GATHERING, COMMITTING)


def _rows(
    event: type[on.Event],
    gathering: _How,
    committing: _How,
    active: _How,
    suspended: _How,
    closed: _How,
) -> dict[tuple[Phase, type[on.Event]], Cell]:
    """One event's row. A cell that is not set below leads to all phases that its phase allows."""
    return {
        (GATHERING, event): _cell(gathering, _FROM_GATHERING),
        (COMMITTING, event): _cell(committing, (COMMITTING,)),
        (ACTIVE, event): _cell(active, _FROM_ACTIVE),
        (SUSPENDED, event): _cell(suspended, (SUSPENDED,)),
        (CLOSED, event): _cell(closed, (CLOSED,)),
    }


def _cell(how: _How, to: tuple[Phase, ...]) -> Cell:
    handling, means = (Handling.NOW, how) if isinstance(how, str) else how
    return Cell(handling, means, to if handling is not Handling.IGNORED else to[:1])


_NOTHING: Final = (Handling.IGNORED, "nothing")
_KEPT: Final = (Handling.KEPT, "kept until the ledger is back")
_COUNTED: Final = (Handling.UNDERLYING, "counted as in the phase to which the run returns")
_TOLD: Final = (
    Handling.UNDERLYING,
    "as in the phase to which the run returns: members are notified at once that a round ended",
)
_DEPOSED: Final = "deposed: this coordinator decides nothing more"
_MARKS_WRITTEN: Final = "goodbyes that waited for it are answered"
_NOT_ASKED: Final = (Handling.IGNORED, "nothing: no record was given")

_ATTACHED: Final = "admitted, resumed, or refused with the reason"
_READY: Final = "counted; may complete the round"
_LEFT: Final = "removed; may end the run"
_DRAIN: Final = "the node is asked to leave, once the ledger has that"
_ADMIT: Final = "the node is no longer refused, once the ledger has that"
_CLOSE: Final = "the close is given to the ledger"
_LOST: Final = "lost at once if its process ended; else it has the grace to resume"
_SILENT: Final = "suspect, shown as such; lost if witnesses have found that its host is gone"
_HEARD: Final = "suspect no more"
_ANSWERED: Final = "alive; may close the case"
_MISSED: Final = "members that have reached its host before are asked whether it still answers"
_TESTIFIED: Final = "counts as evidence about a host; the witness is alive"
_OF_NO_ROUND: Final = "no round is active, so it is only a sign of life"
_TIMER: Final = "unless it is stale: its deadline has passed"

TRANSITIONS: Final[dict[tuple[Phase, type[on.Event]], Cell]] = {
    **_rows(
        on.NodeAttached,
        _ATTACHED,
        _ATTACHED,
        _ATTACHED,
        (Handling.RECORDED, "admitted or resumed; a second node of one name waits"),
        (Handling.REFUSED, "refused: why the run was closed, and since when"),
    ),
    **_rows(
        on.NodeReady,
        _READY,
        "counted for the round after the one being written",
        "a newcomer waits; a member leaves the round, which ends it",
        _TOLD,
        _NOTHING,
    ),
    **_rows(
        on.WorkerFailed,
        "evidence for the open case",
        _NOTHING,
        "ends the round, opens a case, probes the members",
        _TOLD,
        _NOTHING,
    ),
    **_rows(
        on.NodeDone,
        "done, though the round ended: not waited for",
        "done, though left out of the round being written",
        "done; the run succeeds when all are",
        _COUNTED,
        _NOTHING,
    ),
    **_rows(
        on.NodeDeparting,
        "not waited for",
        "recorded; the next round begins once this one is written",
        "ends the round",
        _TOLD,
        _NOTHING,
    ),
    **_rows(
        on.NodeTakesPart,
        _OF_NO_ROUND,
        _NOTHING,
        "recorded: when all members take part, they agree on the step of a drain",
        (Handling.UNDERLYING, "recorded as in the phase to which the run returns"),
        _NOTHING,
    ),
    **_rows(
        on.NodeDraining,
        _OF_NO_ROUND,
        _NOTHING,
        "the members are told; if all take part, they are asked for their promises",
        (Handling.UNDERLYING, "recorded; the members are told when the ledger is back"),
        _NOTHING,
    ),
    **_rows(
        on.StepPromised,
        _OF_NO_ROUND,
        _NOTHING,
        "when all have promised, the step is decided, and told once the ledger has it",
        (Handling.UNDERLYING, "recorded; the step is decided when the ledger is back"),
        _NOTHING,
    ),
    **_rows(
        on.NodeLeft,
        _LEFT,
        "removed; the next round begins once this one is written",
        "removed; ends the round unless done or departing",
        _TOLD,
        "removed",
    ),
    **_rows(
        on.CloseRequested,
        _CLOSE,
        "the close follows the record being written",
        _CLOSE,
        _KEPT,
        _NOTHING,
    ),
    **_rows(
        on.DrainRequested,
        _DRAIN,
        "recorded; the node is asked when the ledger has that",
        _DRAIN,
        _KEPT,
        _NOTHING,
    ),
    **_rows(
        on.EvictRequested,
        "removed, and refused from now on; may end the run",
        "removed, and refused from now on; the next round begins once this one is written",
        "removed, and refused from now on; ends the round unless done or departing",
        _KEPT,
        _NOTHING,
    ),
    **_rows(
        on.AdmitRequested,
        _ADMIT,
        "the node is no longer refused, once the ledger has that, after the record being written",
        _ADMIT,
        _KEPT,
        _NOTHING,
    ),
    **_rows(
        on.ScaleRequested,
        "these numbers of nodes count; may complete the round",
        "these numbers count; a record with too many nodes is not begun",
        "these numbers count; ends a round with too many nodes",
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
        on.NodeProgressed,
        _NOTHING,
        _NOTHING,
        "noted; the deadline for a hang counts from it",
        _COUNTED,
        _NOTHING,
    ),
    **_rows(
        on.StacksTold,
        _NOTHING,
        _NOTHING,
        "the last answer ends the round as a hang, unless a worker has advanced",
        (Handling.IGNORED, "nothing: the nodes are asked again"),
        _NOTHING,
    ),
    **_rows(
        on.ConnectionLost,
        _LOST,
        _LOST,
        _LOST,
        (Handling.RECORDED, "recorded; when the ledger is back it has the grace, or is lost"),
        (Handling.RECORDED, "recorded"),
    ),
    **_rows(on.BeatsMissed, _MISSED, _MISSED, _MISSED, _NOTHING, _NOTHING),
    **_rows(on.HostReported, _TESTIFIED, _TESTIFIED, _TESTIFIED, _NOTHING, _NOTHING),
    **_rows(on.NodeSilent, _SILENT, _SILENT, _SILENT, "suspect, shown as such", _NOTHING),
    **_rows(on.NodeHeard, _HEARD, _HEARD, _HEARD, _HEARD, _NOTHING),
    **_rows(on.TimerFired, _TIMER, _TIMER, _TIMER, _TIMER, _NOTHING),
    **_rows(
        on.Committed,
        _NOT_ASKED,
        "the round is published or begun again, or the run is over",
        _NOT_ASKED,
        (Handling.RECORDED, "recorded; takes effect when the ledger is back, and is not repeated"),
        _NOT_ASKED,
    ),
    **_rows(
        on.MarksWritten,
        _MARKS_WRITTEN,
        "the record that waited for it is given to the ledger",
        _MARKS_WRITTEN,
        _MARKS_WRITTEN,
        _NOTHING,
    ),
    **_rows(
        on.CommitRefused,
        _DEPOSED,
        _DEPOSED,
        _DEPOSED,
        _DEPOSED,
        "deposed: another coordinator notifies nodes of the end from now on",
    ),
    **_rows(
        on.LedgerLost,
        "nothing is decided until it is back",
        "the record is given again when it is back, unless Committed came",
        "the round goes on",
        "one more reason, or a newer reason of the same cause",
        _NOTHING,
    ),
    **_rows(
        on.LedgerRestored,
        _NOTHING,
        _NOTHING,
        _NOTHING,
        "this cause is cleared; after the last one the run goes on, and kept events count",
        _NOTHING,
    ),
    **_rows(
        on.StoreLost,
        _NOTHING,
        _NOTHING,
        "ends the round: its members regroup at once",
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
    (ACTIVE, on.NodeProgressed): (ACTIVE,),
    (ACTIVE, on.StacksTold): (ACTIVE, GATHERING, COMMITTING),
    (GATHERING, on.DrainRequested): (GATHERING,),
    (ACTIVE, on.DrainRequested): (ACTIVE,),
    (GATHERING, on.AdmitRequested): (GATHERING,),
    (ACTIVE, on.AdmitRequested): (ACTIVE,),
    (ACTIVE, on.ScaleRequested): (ACTIVE, GATHERING),
    (GATHERING, on.BeatsMissed): (GATHERING,),
    (ACTIVE, on.BeatsMissed): (ACTIVE,),
    (ACTIVE, on.HostReported): (ACTIVE, GATHERING),
    (ACTIVE, on.NodeSilent): (ACTIVE, GATHERING),
    (ACTIVE, on.NodeTakesPart): (ACTIVE, GATHERING),
    (ACTIVE, on.NodeDraining): (ACTIVE, GATHERING),
    (ACTIVE, on.StepPromised): (ACTIVE, GATHERING),
    (ACTIVE, on.NodeHeard): (ACTIVE, GATHERING),
    (ACTIVE, on.ProbeAnswered): (ACTIVE, GATHERING),
    (GATHERING, on.MarksWritten): (GATHERING,),
    (ACTIVE, on.MarksWritten): (ACTIVE,),
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
    TRANSITIONS[_pair] = msgspec.structs.replace(TRANSITIONS[_pair], to=_to)


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
    if cell.handling is Handling.IGNORED:
        return "–" if cell.means == "nothing" else f"– ({cell.means.removeprefix('nothing: ')})"
    return cell.means + (f" → {', '.join(elsewhere)}" if elsewhere else "")


if __name__ == "__main__":
    print(as_markdown())
