"""The events that the head of a run has: its last rounds, losses between them, and its close.

They were written with the rounds themselves, so they are never lost. They take the place of events
that their coordinator could not write anywhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import msgspec

from rallypoint.coordinator.run_events import FROM_HEAD, EventKind, RunEvent
from rallypoint.core.past import Past, PastLoss, PastRound
from rallypoint.core.values import Change, CloseRecord

SAME_S = 1.0
"""The most seconds between the times of one loss in an event and in the head."""


class PastEvent(msgspec.Struct, frozen=True):
    """An event without its place. `fields`: as for EventLog.add, with `at` and `on`."""

    kind: EventKind
    fields: dict[str, Any]


def past_events(
    past: Past,
    number: int,
    ended: Change | None,
    close: CloseRecord | None,
    known: Collection[RunEvent] = (),
) -> list[PastEvent]:
    """The events of a head, oldest first, without those that are `known`.

    `number`: of the last round; `ended`: why it is over, if it is.
    """
    told = {(event.kind, event.round) for event in known}
    losses = [event for event in known if event.kind is EventKind.LOST]
    events = [
        PastEvent(kind, {"round": round_number, "at": at or 0.0, **fields})
        for kind, round_number, at, fields in _all(past, number, ended, close)
        if (kind, round_number) not in told
    ]
    for loss in past.losses:
        if not any(each.on == loss.on and abs(each.at - loss.at) <= SAME_S for each in losses):
            _insert(events, PastEvent(EventKind.LOST, _loss(loss)), loss)
    return events


def at_places(found: Sequence[PastEvent], term: int) -> list[RunEvent]:
    """The events as a process shows them that only reads the ledger. Its own clock has no part.

    Their numbers begin with FROM_HEAD, behind all that the owner of this term has made.
    """
    return [
        RunEvent(term=term, seq=seq, kind=each.kind, offset_s=0.0, is_late=True, **each.fields)
        for seq, each in enumerate(found, FROM_HEAD)
    ]


def _all(
    past: Past, number: int, ended: Change | None, close: CloseRecord | None
) -> Iterator[tuple[EventKind, int, float | None, dict[str, Any]]]:
    for each in past.rounds:
        # The last round is in the head before its members are told. It goes on, if it has no end.
        is_present = each.number == number and ended is None
        if not each.published and not is_present:
            yield EventKind.NOT_BEGUN, each.number, each.formed_at, {"on": each.formed_on}
            continue
        yield EventKind.FORMED, each.number, each.formed_at, _formed(each)
        change = ended if each.number == number else None
        is_over = bool(each.ended) or change is not None
        # The end of a round by the close is that of the run.
        if is_over and not (close is not None and each.ended == str(close)):
            yield EventKind.BROKEN, each.number, each.ended_at, _broken(each, change)
    if close is not None:
        last = past.rounds[-1] if past.rounds else None
        is_its = last is not None and last.ended == str(close)
        yield (
            EventKind.CLOSED,
            close.round,
            last.ended_at if last is not None and is_its else None,
            {
                "on": last.ended_on if last is not None and is_its else "",
                "cause": close.outcome.value,
                "detail": str(close),
            },
        )


def _formed(each: PastRound) -> dict[str, Any]:
    return {"on": each.formed_on, "count": each.nodes, "seconds": each.gathering_s}


def _broken(each: PastRound, change: Change | None) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "on": each.ended_on,
        "seconds": each.active_s,
        "detail": str(change) if change is not None else each.ended,
    }
    if change is not None:
        fields |= {"cause": change.cause, "nodes": change.nodes, "count": change.count}
    return fields


def _loss(loss: PastLoss) -> dict[str, Any]:
    is_one = loss.count == 1
    return {
        "round": loss.round,
        "at": loss.at,
        "on": loss.on,
        "node": loss.nodes[0] if is_one and loss.nodes else "",
        "nodes": () if is_one else loss.nodes,
        "count": 0 if is_one else loss.count,
        # The text begins with the names, as the event's own does.
        "detail": loss.text.partition(" lost: ")[2],
    }


def _insert(events: list[PastEvent], event: PastEvent, loss: PastLoss) -> None:
    """Put a loss behind the events of the rounds up to its own, by their order and not by times.

    Times of two hosts are not comparable (R9).
    """
    place = len(events)
    for index, each in enumerate(events):
        is_later = each.fields["round"] > loss.round
        if is_later or (each.fields["round"] == loss.round and each.kind is EventKind.CLOSED):
            place = index
            break
    events.insert(place, event)
