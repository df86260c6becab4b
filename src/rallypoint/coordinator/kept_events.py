"""The events of a run that a ledger has, for a run whose coordinator does not answer."""

from __future__ import annotations

from rallypoint.coordinator.event_streams import EventReader
from rallypoint.coordinator.past_events import at_places, past_events
from rallypoint.coordinator.run_events import EventKind, RunEvent
from rallypoint.core.election.records import RunRegister

MAY_BE_MISSING = "the last events of its coordinator may be missing"


async def kept_events(reader: EventReader, register: RunRegister) -> tuple[list[RunEvent], str]:
    """The events, oldest first, and why some may be missing; "" if none are."""
    owners = (*register.formers, register.owner) if register.owner else register.formers
    found = await reader.of_run(register.run_id, owners)
    ended = register.marks.ended if register.marks.round == register.number else None
    past = past_events(register.past, register.number, ended, register.close, found.events)
    events = found.events + at_places(past, register.term)
    is_whole = any(event.kind is EventKind.CLOSED for event in found.events)
    return events, found.problem or ("" if is_whole else MAY_BE_MISSING)
