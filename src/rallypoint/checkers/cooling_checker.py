"""Which nodes have to stay out: the checker's own account of the nodes that broke rounds.

`run_checker` feeds it. It must not share state with `core/cooling.py`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from rallypoint.core.blame import BLAME_BYTES_MAX, OFFENDERS_MAX, Blame
from rallypoint.core.values import Change, ChangeKind, RoundRecord, RunSettings

ROUNDING_S: Final = 0.002
"""Seconds in the ledger are whole milliseconds, and timers fire a little early or late."""

FULL_BYTES: Final = BLAME_BYTES_MAX - 1_024
"""From this size on, the next node may have found no room."""

LATE_S: Final = 2.0
"""How late the timer of a node may fire that is in again."""


class _Node:
    def __init__(self, rounds: int, until_s: float, forgiven_s: float) -> None:
        self.rounds = rounds
        self.until_s = until_s
        self.forgiven_s = forgiven_s


class CoolingChecker:
    """Counts the rounds that each node broke. Times are those of the run's clock, in seconds."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}

    def restored(self, blame: Blame, now_s: float) -> None:
        """Another coordinator begins with what the ledger has."""
        self._nodes = {
            each.name: _Node(
                each.rounds, now_s + each.left_s, now_s + each.left_s + each.forgiven_s
            )
            for each in blame.offenders
        }

    def ended(self, change: Change, settings: RunSettings, now_s: float) -> None:
        """The confirmed cause of a round's end."""
        limit = settings.max_restarts_per_node
        is_fault = change.charged or change.kind is ChangeKind.NODE_LOST
        if limit is None or not is_fault or len(change.nodes) != 1 or change.count != 1:
            return
        name = change.nodes[0]
        node = self._nodes.get(name)
        rounds = node.rounds + 1 if node is not None and now_s < node.forgiven_s else 1
        until_s = now_s
        if rounds > limit:
            times = 2.0 ** min(rounds - limit - 1, 60)
            until_s += min(settings.cooldown_max_s, settings.cooldown_s * times)
        window_s = settings.restart_window_s
        later_s = settings.cooldown_max_s if window_s is None else window_s
        self._nodes[name] = _Node(rounds, until_s, until_s + later_s)

    def forgiven(self, name: str, now_s: float) -> str:
        """The node is in again. Returns what is wrong, in words; "" if nothing is."""
        is_early = self.is_out(name, now_s)
        # A node may be forgotten early if so many others are remembered.
        if is_early and len(self._nodes) <= OFFENDERS_MAX:
            return f"{name} is in again, and has to stay out still"
        if is_early:
            del self._nodes[name]
        return ""

    def is_out(self, name: str, now_s: float) -> bool:
        """Whether the node surely has to stay out."""
        node = self._nodes.get(name)
        return node is not None and now_s < node.until_s - ROUNDING_S

    def may_be_out(self, name: str, now_s: float) -> bool:
        """Whether it may be kept out."""
        node = self._nodes.get(name)
        return node is not None and now_s < node.until_s + LATE_S

    def of_ledger(self, blame: Blame, now_s: float) -> str:
        """The marks are given to the ledger, with this: a successor must know who stays out."""
        known = {each.name for each in blame.offenders}
        lost = [name for name in self._nodes if self.is_out(name, now_s) and name not in known]
        if len(known) == OFFENDERS_MAX or len(msgspec.msgpack.encode(blame)) > FULL_BYTES:
            return ""  # There was no room for more.
        return f"the ledger is not told that {lost} have to stay out" if lost else ""

    def of_round(self, record: RoundRecord, minimum: int, now_s: float) -> str:
        """A new round is given to the ledger. Returns what is wrong, in words; "" if nothing is."""
        out = [row.name for row in record.members if self.is_out(row.name, now_s)]
        if out and record.head.nodes > minimum:
            return f"round {record.head.number} has {out}, and would be large enough without"
        return ""
