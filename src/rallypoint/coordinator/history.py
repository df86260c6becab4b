"""The last rounds of a run: who was in them, how long each phase took, why they ended.

An observer: it watches the effects of the core go by and changes nothing.
"""

from __future__ import annotations

from collections import deque

import msgspec

from rallypoint.core import effects as do
from rallypoint.core import reasons
from rallypoint.core.effects import Effect
from rallypoint.core.values import Change, RoundRecord

NAMES_KEPT_MAX = 64


class RoundHistory(msgspec.Struct, kw_only=True):
    """One round, for people. Durations in seconds; None while it is not over.

    `gathering_s` runs from the end of the round before (or the first node's arrival) to the
    sealing, `committing_s` to the ledger's answer, `active_s` to the end; without the time in which
    the coordinator itself stood still. `formed_at` (the sealing) and `ended_at` are its wall clock
    (seconds since 1970), for display only (R9).
    """

    number: int
    nodes: int
    size: int
    restart_count: int
    members: list[str]
    gathering_s: float
    committing_s: float
    formed_at: float
    published: bool = True
    active_s: float | None = None
    ended_at: float | None = None
    ended: str = ""
    change: Change | None = None


class History:
    """The last rounds of one run, oldest first."""

    def __init__(self, rounds_max: int, now_s: float) -> None:
        self.rounds: deque[RoundHistory] = deque(maxlen=rounds_max)
        self._gathering_since_s = now_s
        self._sealed_s = now_s
        self._began_s = now_s

    def observe(self, effects: list[Effect], now_s: float, wall_s: float) -> None:
        """Note what one step of the core decided."""
        for effect in effects:
            if isinstance(effect, do.Commit) and isinstance(effect.record, RoundRecord):
                self._sealed(effect.record, now_s, wall_s)
            elif isinstance(effect, do.Publish):
                self._published(now_s)
            elif isinstance(effect, do.Break):
                self._ended(effect.change, now_s, wall_s)
            elif isinstance(effect, do.Verdict):
                self._explain(effect.change)
            elif isinstance(effect, do.Announce):
                self._closed(effect, now_s, wall_s)

    def restored(self, record: RoundRecord, now_s: float, wall_s: float) -> None:
        """A round that was formed by an earlier coordinator goes on under this one."""
        self._gathering_since_s = now_s
        self._sealed(record, now_s, wall_s)
        self._published(now_s)

    def first_arrival(self, now_s: float) -> None:
        """The gathering for the first round begins when the first node is there."""
        self._gathering_since_s = now_s

    def _sealed(self, record: RoundRecord, now_s: float, wall_s: float) -> None:
        head = record.head
        self._sealed_s = now_s
        self.rounds.append(
            RoundHistory(
                number=head.number,
                nodes=head.nodes,
                size=head.size,
                restart_count=head.restart_count,
                members=[member.name for member in record.members[:NAMES_KEPT_MAX]],
                gathering_s=now_s - self._gathering_since_s,
                committing_s=0.0,
                formed_at=wall_s,
                published=False,
            )
        )

    def _published(self, now_s: float) -> None:
        self._began_s = now_s
        if self.rounds:
            self.rounds[-1].published = True
            self.rounds[-1].committing_s = now_s - self._sealed_s

    def _ended(self, change: Change, now_s: float, wall_s: float) -> None:
        self._gathering_since_s = now_s
        self._over(now_s, wall_s)
        self._explain(change)

    def _over(self, now_s: float, wall_s: float) -> None:
        if self.rounds:
            self.rounds[-1].active_s = now_s - self._began_s
            self.rounds[-1].ended_at = wall_s

    def _explain(self, change: Change) -> None:
        """A verdict may come when the next round is sealed already."""
        for each in reversed(self.rounds):
            if each.number == change.round:
                each.change, each.ended = change, reasons.describe(change)
                return

    def _closed(self, effect: do.Announce, now_s: float, wall_s: float) -> None:
        if self.rounds and self.rounds[-1].active_s is None and self.rounds[-1].published:
            self._over(now_s, wall_s)
            self.rounds[-1].ended = reasons.describe_close(effect.close)
