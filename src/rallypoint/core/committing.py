"""The record that is being written to the ledger, and what happens to the run meanwhile.

`record_of` makes the record of a round from its members. What happens during a write never changes
the record: the round that is being written is finished first. Then the next one begins, or the
close follows. This file remembers what has to follow; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from rallypoint.core import causes, ranks
from rallypoint.core.roster import Member
from rallypoint.core.values import (
    Change,
    ChangeKind,
    CloseRecord,
    NodeId,
    RoundHead,
    RoundRecord,
    table_digest,
)


def record_of(
    chosen: Sequence[Member],
    *,
    number: int,
    term: int,
    rank_policy: str,
    previous: RoundRecord | None,
    restart_count: int,
) -> RoundRecord:
    """The record of round `number` with these members, in node-rank order (R2, R3). O(n log n).

    `previous` is the round before, on which stable ranks depend; None for the first.
    """
    by_name = {member.name: member for member in chosen}
    candidates = [ranks.Candidate(m.name, m.info.host, m.workers, m.info.index) for m in chosen]
    before = [row.name for row in previous.members] if previous is not None else []
    order = ranks.order(rank_policy, before, candidates)
    members = tuple(by_name[name].row() for name in order)
    bootstrap = by_name[order[0]].bootstrap
    head = RoundHead(
        number=number,
        term=term,
        nodes=len(members),
        # R3: the world size is that of its workers.
        size=sum(member.workers for member in members),
        bootstrap=bootstrap,
        # R2: the digest of exactly this table.
        digest=table_digest(number, members, bootstrap),
        restart_count=restart_count,
    )
    return RoundRecord(head, members)


class Committing:
    """The write of one record. `record` is None while no record is written."""

    def __init__(self) -> None:
        self.record: RoundRecord | CloseRecord | None = None
        self.is_in_ledger = False
        """Whether the ledger has the record already, though the run is SUSPENDED."""
        self.interrupted: Change | None = None
        """Why the round that is being written cannot be begun: a member of it went away."""
        self.close_wanted: CloseRecord | None = None
        """The close that follows the record."""
        self._members: frozenset[NodeId] | None = None

    def begin(self, record: RoundRecord | CloseRecord) -> None:
        """The record is to be written."""
        self.record = record
        # R2: of this record, not of the one before.
        self._members = None

    def finish(self) -> RoundRecord | CloseRecord | None:
        """The ledger has the record, if one was to be written."""
        # R1: a record is finished once.
        record, self.record, self.is_in_ledger = self.record, None, False
        return record

    @property
    def unwritten(self) -> RoundRecord | CloseRecord | None:
        """The record, until the ledger is known to hold it."""
        # R1: a record in the ledger is not written again.
        return None if self.is_in_ledger else self.record

    def member_went(self, member: Member, kind: ChangeKind, detail: str) -> None:
        """Record that a member left, departed or was lost. Only the first one is kept."""
        record = self.record
        if self.interrupted is not None or not isinstance(record, RoundRecord):
            return
        # R4: only the loss of one of its members stops the round.
        if self.is_in(record, member):
            number = record.head.number
            self.interrupted = causes.happened(kind, number, [member.name], detail)

    def cannot_begin(self, change: Change) -> None:
        """The round that is being written cannot be begun. Only the first reason is kept."""
        self.interrupted = self.interrupted or change

    def is_in(self, record: RoundRecord, member: Member) -> bool:
        """Whether the member is in this record, the last one. O(1) except for the first time."""
        if self._members is None:
            self._members = frozenset(NodeId(m.name, m.incarnation) for m in record.members)
        return member.id in self._members

    def is_writing(self, member: Member) -> bool:
        """Whether the member is in a round that is being written now."""
        record = self.record
        return isinstance(record, RoundRecord) and self.is_in(record, member)

    def freeze(self) -> tuple[object, ...]:
        """The state on which decisions depend, as a hashable value."""
        return (self.is_in_ledger, self.record, self.interrupted, self.close_wanted)
