"""The memory of one run that belongs to its members and its past: counted, and bounded.

Connections count their own memory (`session`), and so does the round's store (`store_service`).
All of it is in the same share of the coordinator's budget (core/budget.py).
"""

from __future__ import annotations

from typing import Final

from rallypoint.coordinator.history import PastSizes
from rallypoint.coordinator.outgoing import Pins
from rallypoint.coordinator.session import CONNECTION_BYTES
from rallypoint.core.budget import Excess, MemoryShare

MEMBER_BYTES: Final = 2 * 1024
"""The memory of a member besides its names, addresses and labels."""
INFO_COPIES: Final = 4
"""How many copies of those there are: the member's, the round's, the table's, the ledger's."""


class RunMemory:
    """What one run keeps besides connections and its store. `rounds_max`: how many past rounds."""

    def __init__(self, share: MemoryShare, rounds_max: int) -> None:
        self.share = share
        self.pins = Pins(share.add)
        """Values that waiting messages keep alive."""
        self.past = PastSizes(rounds_max, share.add)
        self._members: dict[str, int] = {}
        self._table = 0

    @property
    def bytes(self) -> int:
        """What this part has counted, without the pinned values."""
        return sum(self._members.values()) + self._table + self.past.bytes

    def no_room_for(self, name: str) -> Excess | None:
        """Why a node that is no member cannot become one; None if it can, or is one."""
        if name in self._members:
            return None
        return self.share.excess(CONNECTION_BYTES + MEMBER_BYTES)

    def count_member(self, name: str, attach_bytes: int) -> None:
        """A node is a member. `attach_bytes`: of its first message. A known member counts once."""
        if name not in self._members:
            self._members[name] = size = MEMBER_BYTES + INFO_COPIES * attach_bytes
            self.share.add(size)

    def forget_member(self, name: str) -> None:
        """The node is no member any more."""
        self.share.add(-self._members.pop(name, 0))

    def count_table(self, size: int) -> None:
        """The encoded member table has so many bytes now."""
        self.share.add(size - self._table)
        self._table = size
