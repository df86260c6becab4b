"""Counts and limits the memory of one run for its members and its past.

Connections (`session`) and the round's store (`store_service`) count their own memory. All counts
go to the same share of the coordinator's budget (core/budget.py).
"""

from __future__ import annotations

from typing import Final

from rallypoint.coordinator.history import PastSizes
from rallypoint.coordinator.outgoing import Pins
from rallypoint.coordinator.session import CONNECTION_BYTES
from rallypoint.core.budget import Excess, MemoryShare

MEMBER_BYTES: Final = 2 * 1024
"""The memory of a member besides its names, addresses and labels, in bytes."""
INFO_COPIES: Final = 4
"""How many copies of names, addresses and labels exist: in the member, round, table and ledger."""


class RunMemory:
    """The memory of one run besides connections and its store. `rounds_max`: limits past rounds."""

    def __init__(self, share: MemoryShare, rounds_max: int) -> None:
        self.share = share
        self.pins = Pins(share.add)
        """Values that waiting messages keep in memory."""
        self.past = PastSizes(rounds_max, share.add)
        self._members: dict[str, int] = {}
        self._table = 0

    @property
    def bytes(self) -> int:
        """The bytes that this part has counted, without the pinned values."""
        return sum(self._members.values()) + self._table + self.past.bytes

    def no_room_for(self, name: str) -> Excess | None:
        """Why there is no room for a new member; None if there is, or if the node is a member."""
        if name in self._members:
            return None
        return self.share.excess(CONNECTION_BYTES + MEMBER_BYTES)

    def count_member(self, name: str, attach_bytes: int) -> None:
        """Count a member, once. `attach_bytes`: the size of its first message."""
        if name not in self._members:
            self._members[name] = size = MEMBER_BYTES + INFO_COPIES * attach_bytes
            self.share.add(size)

    def forget_member(self, name: str) -> None:
        """Stop counting a node that is no member any more."""
        self.share.add(-self._members.pop(name, 0))

    def count_table(self, size: int) -> None:
        """Record that the encoded member table now has `size` bytes."""
        self.share.add(size - self._table)
        self._table = size
