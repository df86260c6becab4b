"""A run that a process has claimed on a ledger: its claim, and the data beside it."""

from __future__ import annotations

from typing import Any

import msgspec

from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core import election as e
from rallypoint.core.closing import bounded_close
from rallypoint.core.values import Address, CloseRecord, EndedOwner, RoundRecord


class ClaimedRun:
    """One run. `claim` decides; the other data is dropped together with it."""

    def __init__(self, run_id: str, claim: e.Claim) -> None:
        self.run_id = run_id
        self.claim = claim
        self.wanted_s = 0.0
        """When a node last asked for it."""
        self.is_wanted_again = False
        """Whether a node has asked for it while this process was giving it up."""
        self.elsewhere: tuple[Address, ...] | None = None
        """The addresses of its coordinator, if another process owns it."""
        self.writing_marks: int | None = None
        """The serial number of the marks that are being written, if any."""
        self.checking: EndedOwner | None = None
        """The owner of which it is being checked whether it has ended."""

    @property
    def is_owned(self) -> bool:
        """Whether this process owns the run, as far as is known here."""
        # R5: as the ledger said last.
        return self.claim.state is e.ClaimState.OWNED and self.claim.register is not None

    @property
    def register(self) -> e.RunRegister:
        """The run's register, as it was last read or written."""
        assert self.claim.register is not None
        return self.claim.register


def with_record(
    register: e.RunRegister, run: HostedRun, record: RoundRecord | CloseRecord
) -> e.RunRegister:
    """The register with this record. The table of a round is added when its place is known."""
    membership = run.membership
    changes: dict[str, Any] = {"past": run.past()}
    if isinstance(record, CloseRecord):
        changes["close"] = bounded_close(record)
    else:
        changes["round"] = record.head
        # No former owner has the store of this round, so none can answer its calls.
        changes["unsure_s"] = 0.0
    return msgspec.structs.replace(
        register,
        settings=membership.asked_settings,
        # R1: the same bytes if it is written again.
        orders=membership.orders_with_record,
        restarts=membership.restart_count,
        blame=membership.blame_with_record,
        # R10: marks of the round before do not count for this one.
        marks=membership.marks_with(record),
        **changes,
    )
