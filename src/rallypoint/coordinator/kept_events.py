"""The events of a run that a ledger has, for a run whose coordinator does not answer."""

from __future__ import annotations

from rallypoint.coordinator.past_events import at_places, past_events
from rallypoint.coordinator.run_events import RunEvent
from rallypoint.core.election.records import RunRegister
from rallypoint.ledger.contract import Ledger

ONLY_ROUNDS = "the ledger has only the last rounds"


async def kept_events(ledger: Ledger, register: RunRegister) -> tuple[list[RunEvent], str]:
    """The events, oldest first, and why some may be missing. Raises LedgerError."""
    ended = register.marks.ended if register.marks.round == register.number else None
    past = past_events(register.past, register.number, ended, register.close)
    return at_places(past, register.term), ONLY_ROUNDS
