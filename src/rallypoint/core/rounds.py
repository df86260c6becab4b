"""A round as values: the record that the ledger keeps, and the seat of each member. Pure.

`formation` and `gathering` decide when a round is formed, and of which members.
"""

from __future__ import annotations

from collections.abc import Sequence

from rallypoint.core import ranks
from rallypoint.core.roster import Member
from rallypoint.core.values import RoundHead, RoundRecord, Seat, table_digest


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
    candidates = [ranks.Candidate(m.name, m.info.host, m.workers) for m in chosen]
    before = [row.name for row in previous.members] if previous is not None else []
    order = ranks.order(rank_policy, before, candidates)
    members = tuple(by_name[name].row() for name in order)
    bootstrap = by_name[order[0]].bootstrap
    head = RoundHead(
        number=number,
        term=term,
        nodes=len(members),
        size=sum(member.workers for member in members),
        bootstrap=bootstrap,
        digest=table_digest(number, members, bootstrap),
        restart_count=restart_count,
    )
    return RoundRecord(head, members)


def seats_of(record: RoundRecord) -> list[Seat]:
    """The seat of every member of a round, in node-rank order. O(n)."""
    workers = {member.name: member.workers for member in record.members}
    firsts = ranks.worker_ranks(tuple(workers), workers)
    return [
        Seat(rank, first, count)
        for rank, (first, count) in enumerate(zip(firsts, workers.values(), strict=True))
    ]
