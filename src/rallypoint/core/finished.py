"""How many members have finished their work, and which member of this round was the first.

The end of a run, the cause of a round's end and the marks in the ledger depend on it. This file
only counts.
"""

from __future__ import annotations

from typing import Final

from rallypoint.core.values import NodeId

REMEMBERED_MAX: Final = 1_024
"""How many nodes that have finished are remembered."""


class Finished:
    """Counts of members whose workers have finished. `marking` has the lists of these members."""

    def __init__(self, *, earlier: int = 0, in_round: int = 0, first: str = "") -> None:
        """`earlier`: how many finished that were not in the last round; `first`: of that round."""
        self.count = earlier + in_round
        """Of the whole run."""
        self.in_round = in_round
        """Of the last committed round."""
        self.first = first
        """Which member of that round finished first; "" if none has."""
        self.count_at_forming = self.count
        """Of the whole run, when the last record was given to the ledger."""
        self._known: dict[NodeId, None] = {}
        """Those that were counted last: a node may report it again when it attaches anew."""

    @property
    def earlier(self) -> int:
        """How many finished that are not in the last committed round."""
        return self.count - self.in_round

    def add(self, node: NodeId, *, is_in_round: bool) -> None:
        """One more has finished."""
        self.count += 1
        if is_in_round:
            self.in_round += 1
            self.first = self.first or node.name
        self._known[node] = None
        if len(self._known) > REMEMBERED_MAX:
            del self._known[next(iter(self._known))]

    def knows(self, node: NodeId) -> bool:
        """Whether this node was counted here."""
        return node in self._known

    def freeze(self) -> tuple[object, ...]:
        """The state on which decisions depend, as a hashable value."""
        return (self.count, self.in_round, tuple(self._known))

    def round_formed(self) -> None:
        """A record is given to the ledger. It does not cover members that finish from now on."""
        self.count_at_forming = self.count

    def round_began(self) -> None:
        """Another round is committed, and none of its members has finished in it."""
        self.in_round = 0
        self.first = ""
