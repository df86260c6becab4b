"""Which node of a run an operator means: a name, a host, or a rank, if only one node fits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import msgspec

from rallypoint.core.membership import Membership
from rallypoint.core.ranks import seats_of
from rallypoint.core.reasons import first_names
from rallypoint.core.roster import Member

RANK_DIGITS_MAX = 9


class Ambiguous(msgspec.Struct, frozen=True):
    """Several nodes fit. `names`: the first ones. `what`: as what they fit."""

    what: str
    names: tuple[str, ...]


Found: TypeAlias = Member | Ambiguous | None


def find(membership: Membership, text: str) -> Found:
    """The member of that name, or the only one on that host or of that rank; None: no such one.

    A name counts before a host, and a host before a rank. A number may be the rank of a node or of
    a worker in the last round. It names a node only if both are of the same one.
    """
    member = membership.roster.get(text)
    if member is not None:
        return member
    here = [each for each in membership.roster if each.info.host == text]
    if here:
        return _only(here, f"on host {text!r}")
    if text.isascii() and text.isdigit() and len(text) <= RANK_DIGITS_MAX:
        return _only(_of_rank(membership, int(text)), f"rank {text}, as a node or as a worker")
    return None


def known(membership: Membership) -> Iterable[str]:
    """The names and hosts of all members."""
    for member in membership.roster:
        yield member.name
        yield member.info.host


def _of_rank(membership: Membership, rank: int) -> Sequence[Member]:
    record = membership.round
    if record is None:
        return ()
    fits = []
    for row, seat in zip(record.members, seats_of(record), strict=True):
        is_worker = seat.first_rank <= rank < seat.first_rank + seat.workers
        member = membership.roster.get(row.name)
        if (seat.node_rank == rank or is_worker) and member is not None:
            fits.append(member)
    return fits


def _only(members: Sequence[Member], what: str) -> Found:
    if len(members) == 1:
        return members[0]
    names = first_names(member.name for member in members)
    return Ambiguous(what, names) if names else None
