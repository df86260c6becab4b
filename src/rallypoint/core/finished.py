"""How many members have finished their work, and which member of this round was the first.

The end of a run, the cause of a round's end and the marks in the ledger depend on it. This file
only counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from rallypoint.core.values import NodeId

REMEMBERED_MAX: Final = 1_024
"""How many nodes that have finished are remembered."""
_MARK_BYTES: Final = 4
"""Of each of them in the ledger: a hash of its name and incarnation."""


class Finished:
    """Counts of members whose workers have finished. `marking` has the lists of these members."""

    def __init__(
        self,
        *,
        earlier: int = 0,
        in_round: Iterable[NodeId] = (),
        known: bytes = b"",
    ) -> None:
        """`earlier`: how many finished that were not in the last round. `in_round`: those of it.

        `known`: which ones the last owner remembered, as in `known`.
        """
        finished = list(in_round)
        self.count = earlier + len(finished)
        """Of the whole run."""
        self.in_round = len(finished)
        """Of the last committed round."""
        self.first = finished[0].name if finished else ""
        """Which member of that round finished first; "" if none has."""
        self._known: dict[int, None] = {}
        """Those that were counted last: a node may report it again when it attaches anew."""
        for at in range(0, len(known) - _MARK_BYTES + 1, _MARK_BYTES):
            self._remember(int.from_bytes(known[at : at + _MARK_BYTES], "big"))
        for node in finished:
            self._remember(_mark_of(node))
        self.count_at_forming = self.count
        """Of the whole run, when the last record was given to the ledger."""
        self.known_at_forming = self.known
        """Those that were remembered then."""

    @property
    def earlier(self) -> int:
        """How many finished that are not in the last committed round."""
        return self.count - self.in_round

    @property
    def known(self) -> bytes:
        """Those that are remembered, for a successor. It has to count each of them once (R11)."""
        # Sorted, because nothing depends on their order.
        return b"".join(mark.to_bytes(_MARK_BYTES, "big") for mark in sorted(self._known))

    def add(self, node: NodeId, *, is_in_round: bool) -> None:
        """One more has finished."""
        self.count += 1
        if is_in_round:
            self.in_round += 1
            self.first = self.first or node.name
        self._remember(_mark_of(node))

    def _remember(self, mark: int) -> None:
        self._known[mark] = None
        if len(self._known) > REMEMBERED_MAX:
            del self._known[next(iter(self._known))]

    def knows(self, node: NodeId) -> bool:
        """Whether this node was counted, here or by an earlier owner."""
        return _mark_of(node) in self._known

    def freeze(self) -> tuple[object, ...]:
        """The state on which decisions depend, as a hashable value."""
        return (self.count, self.in_round, tuple(self._known))

    def round_formed(self) -> None:
        """A record is given to the ledger. It does not cover members that finish from now on."""
        self.count_at_forming, self.known_at_forming = self.count, self.known

    def round_began(self) -> None:
        """Another round is committed, and none of its members has finished in it."""
        self.in_round = 0
        self.first = ""


def _mark_of(node: NodeId) -> int:
    named = f"{node.name}/{node.incarnation}".encode()
    return int.from_bytes(hashlib.blake2b(named, digest_size=_MARK_BYTES).digest(), "big")
