"""How long survivors of a round may take to stop their workers while they keep their places.

Every node sends at attach how long it takes to stop its workers (`NodeInfo.stop_s`). The time
begins when the node is told of the end of its round: at once, or if its connection was closed, when
it attaches again. This file only keeps the deadlines. `formation` and `gathering` use them.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Final

from rallypoint.core.roster import Member, Roster
from rallypoint.core.values import Reachability

STOP_MARGIN_S: Final = 3.0
"""This is added to each stop time: signals, the end of killed processes and a busy machine take
time, too."""

_DISCONNECTED = Reachability.DISCONNECTED


class Stopping:
    """The deadlines of the survivors of one round."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._ends: list[tuple[float, list[str]]] = []
        """Deadlines and names; a heap. Nearly all nodes have the same stop time, so it is short."""
        self._last_s = 0.0

    def begin(self, survivors: Iterable[Member], now_s: float) -> None:
        """The round of these members has ended. The time of connected ones begins now. O(N)."""
        self.clear()
        names: dict[float, list[str]] = {}  # by stop time
        for member in survivors:
            member.is_late = False
            # R7: it has not been told yet.
            if member.reachability is _DISCONNECTED:
                member.stop_ends_s = None
                continue
            stop_s = member.info.stop_s
            if stop_s not in names:
                names[stop_s] = []
            names[stop_s].append(member.name)
            # R7: the announced time, and a margin.
            member.stop_ends_s = now_s + stop_s + STOP_MARGIN_S
        self._ends = [(now_s + stop_s + STOP_MARGIN_S, each) for stop_s, each in names.items()]
        self._last_s = max((ends_s for ends_s, _ in self._ends), default=0.0)
        heapify(self._ends)

    def told(self, member: Member, now_s: float) -> None:
        """A survivor has attached. Its time begins now, if it has not begun before."""
        # R7: its time does not begin twice.
        if member.stop_ends_s is None:
            member.stop_ends_s = now_s + member.info.stop_s + STOP_MARGIN_S
            self._last_s = max(self._last_s, member.stop_ends_s)
            heappush(self._ends, (member.stop_ends_s, [member.name]))

    def next_end_s(self) -> float | None:
        """The nearest deadline; None if there is none."""
        return self._ends[0][0] if self._ends else None

    def left_s(self, now_s: float) -> float:
        """How long until the last deadline, in seconds."""
        return max(0.0, self._last_s - now_s)

    def end_due(self, now_s: float) -> None:
        """Mark as late the survivors that are past their deadline and not ready."""
        # R7: a stop time that has passed holds no place.
        while self._ends and self._ends[0][0] <= now_s:
            for member in map(self._roster.get, heappop(self._ends)[1]):
                if member is not None and member.survivor and member.stop_ends_s is not None:
                    # R7: by its own deadline, not that of another in the group.
                    member.is_late = member.stop_ends_s <= now_s
                    self._roster.reindex(member)

    def clear(self) -> None:
        """Another round has begun."""
        self._ends.clear()
        self._last_s = 0.0
