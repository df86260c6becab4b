"""Whether a run admits a node: it checks settings and limits, and when a closed run may restart.

Each refusal says what to do about it. Two nodes of one name are handled in `name_conflicts`.
"""

from __future__ import annotations

from typing import Final

from rallypoint.core import reasons
from rallypoint.core.reasons import Refusal
from rallypoint.core.roster import Roster
from rallypoint.core.tables import row_bytes
from rallypoint.core.values import CloseRecord, NodeInfo, RunSettings

BEGIN_AGAIN_AFTER_S: Final = 30.0
"""How many seconds late nodes are refused because their run, which never had a round, was closed.
"""
NODE_COUNTS: Final = frozenset({"min_nodes", "max_nodes", "expected_nodes"})
"""The settings that an operator can change while the run goes on."""
_OPERATOR: Final = "operator"
"""The prefix of `CloseRecord.by` in a record of an older release, if an operator closed the run."""


class Admission:
    """The limits of one run, and which node set its settings.

    `members_max`: the most members. `table_bytes_max`: the most bytes that the ledger can keep of
    their rows in a member table.
    """

    def __init__(self, run_id: str, *, members_max: int, table_bytes_max: int) -> None:
        self._run_id = run_id
        self._members_max = members_max
        self._table_bytes_max = table_bytes_max
        self._set_by: tuple[str, str, float] | None = None

    def settings_are_of(self, node: NodeInfo, now_s: float) -> None:
        """Record that this node, the first one, has set the run's settings."""
        self._set_by = (node.name, node.host, now_s)

    def refusal(
        self,
        node: NodeInfo,
        wanted: RunSettings,
        settings: RunSettings,
        roster: Roster,
        *,
        is_new: bool,
        is_scaled: bool,
        now_s: float,
    ) -> Refusal | None:
        """Why the node is refused; None if it is admitted. `is_new`: the run has had no round.

        `is_scaled`: an operator has said how many nodes the run has, so nodes need not agree.
        """
        conflicts = settings.conflicts(wanted)
        if is_scaled:
            conflicts = tuple(each for each in conflicts if each.name not in NODE_COUNTS)
        # R2: all nodes have the same settings.
        if conflicts:
            # With the name of the node that set them, a person can see which node has the mistake.
            set_by = ""
            if self._set_by is not None:
                name, host, at_s = self._set_by
                set_by = reasons.settings_set_by(name, host, now_s - at_s)
            return reasons.conflict(self._run_id, conflicts, set_by, is_new=is_new)
        known = roster.get(node.name)
        # R12: the number of members is bounded.
        if known is None and len(roster) >= self._members_max:
            return reasons.too_many_members(self._run_id, self._members_max)
        # The ledger must be able to keep a round with this node. Without this check the write of
        # the round would fail later, for all nodes.
        others = roster.table_bytes - (known.row_bytes if known is not None else 0)
        needed, room = row_bytes(node), self._table_bytes_max - others
        # R7: a round that the ledger cannot keep would never be formed.
        if needed <= room:
            return None
        return reasons.no_room(self._run_id, len(roster), needed, room, self._table_bytes_max)


def is_reusable(close: CloseRecord) -> bool:
    """Whether the id of a closed run that never had a round may be used again, after a while.

    A run that an operator closed stays closed, however late its nodes start.
    """
    if close.by_operator is None:
        return not close.by.startswith(_OPERATOR)
    # R6: a run that an operator closed stays closed.
    return not close.by_operator
