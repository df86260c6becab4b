"""When a coordinator gives up a run, so that a process that more nodes reach may take it.

This file has only the rule. Which nodes are heard and which leases exist are arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rallypoint.core.values import FrozenStruct

LOOK_MAX_S: Final = 60.0
"""The longest time between two looks at the leases of others, in seconds."""
LONGER: Final = 2
LONGER_MAX: Final = 4
"""Without enough nodes for a round, each resignation waits so many times longer than the one
before, up to so many times `after_s`. Nothing is lost by a resignation then."""
LONGER_IN_ROUND: Final = 8
LONGER_IN_ROUND_MAX: Final = 512
"""The same while the own node is enough for a round. Each resignation may end its round."""


class Heard(FrozenStruct, frozen=True):
    """The nodes that the owner of a run hears.

    `working`: how many of them have not finished. `minimum`: how many a round needs. `in_round`:
    how many nodes the last round had. `is_alone`: no node but the owner's own one is heard.
    """

    working: int
    minimum: int
    in_round: int
    is_alone: bool

    @property
    def is_enough(self) -> bool:
        """Whether a round can be formed, or can go on, with these nodes."""
        # R3: never below the minimum.
        return self.working >= self.minimum


class Other(FrozenStruct, frozen=True):
    """Another process that may take the run, by its lease.

    `waits`: the process belongs to a node that this owner does not hear. Such a node has a lease
    only if it has no coordinator. If False, the process is a `rallypoint serve`.
    """

    process: str
    version: int
    waits: bool


class Resignation:
    """When the owner of a run resigns because it cannot be reached.

    A firewall or a wrong interface shows only after the election, and may appear at any later time.
    So the owner looks for processes that may gather more nodes, if for `after_s` seconds no other
    node was heard, and

    - more are needed; or
    - the own node is enough, but the run had others before. This owner resigns only for a larger
      group: for two nodes that wait, or for one and a `rallypoint serve`.

    If there is no such process, it keeps the run: its nodes may not have been started yet. An owner
    that hears another node keeps it in any case. Too few for a round may be all that there are: a
    round whose other nodes have finished goes on with them, and its next owner may be cut off.

    After a resignation it does not take the run for a while, so that the others can. The pause is
    twice `after_s` at first, and then four times. Coordinators that cannot reach each other at all
    would resign in favour of each other for ever. So each resignation waits longer than the one
    before, until other nodes are heard again: then the owner has the time to do without the others.

    The looks are `look_s` seconds apart, and more if they find nobody. Each process that is alive
    renews its lease in that time.
    """

    def __init__(self, after_s: float, look_s: float) -> None:
        self.after_s = after_s
        self.look_s = look_s
        self._since_s: float | None = None
        self._looked_s = float("-inf")
        self._next_look_s = 0.0
        self._gap_s = look_s
        self._seen: dict[str, int] = {}
        self._times = 0
        self._most = 0
        """The most nodes that the run has had since it was last served well."""

    @property
    def has_resigned(self) -> bool:
        """Whether this process has resigned from the run, and no other node was heard since."""
        return self._times > 0

    def won(self, now_s: float) -> None:
        """The process owns the run from now on."""
        self._begin(now_s)

    def heard(self, heard: Heard, now_s: float) -> None:
        """These nodes are heard now."""
        self._most = max(self._most, heard.in_round, heard.working)
        is_lonely = heard.is_alone and (self._most > 1 or not heard.is_enough)
        # R7: who serves the run well keeps it.
        if not is_lonely:
            self._since_s = None
            self._times, self._most = 0, heard.working
        elif self._since_s is None:
            self._begin(now_s)

    def _begin(self, now_s: float) -> None:
        self._since_s, self._next_look_s, self._gap_s = now_s, 0.0, self.look_s

    def should_look(self, heard: Heard, now_s: float) -> bool:
        """Whether it is time to look for other processes: twice before a resignation."""
        if self._since_s is None:
            return False
        first_s = self._since_s + self._waits_s(heard) - self.look_s
        if now_s < max(first_s, self._next_look_s):
            return False
        self._next_look_s = now_s + self._gap_s
        # Without a round, the owner has to be quick. Else many runs may be at rest.
        if heard.is_enough:
            self._gap_s = min(2 * self._gap_s, max(self.look_s, LOOK_MAX_S))
        return True

    def should_resign(self, others: Sequence[Other] | None, heard: Heard, now_s: float) -> bool:
        """Whether to resign now, in favour of one of these processes.

        `others`: all that may take over the run. One is alive if its lease has changed since the
        last look, which was not long ago. None: the engine cannot list leases.
        """
        before, self._seen = self._seen, {each.process: each.version for each in others or ()}
        was_long_ago, self._looked_s = now_s - self._looked_s > 2 * self.look_s, now_s
        if self._since_s is None:
            return False
        is_due = now_s - self._since_s >= self._waits_s(heard)
        if others is None:
            return is_due and not heard.is_enough
        if not _may_gather_more(others, heard):
            return False
        # Look again soon: who is alive renews its lease.
        self._gap_s, self._next_look_s = self.look_s, now_s + self.look_s
        alive = [each for each in others if before.get(each.process, each.version) != each.version]
        return is_due and not was_long_ago and _may_gather_more(alive, heard)

    def pause_s(self) -> float:
        """For how many seconds not to take the run, if this process resigns now."""
        self._since_s = None
        self._times += 1
        return self.after_s * float(2 ** min(self._times, 2))

    def _waits_s(self, heard: Heard) -> float:
        """For how long the owner has to be unreachable before it resigns."""
        longer, most = LONGER, LONGER_MAX
        if heard.is_enough:
            longer, most = LONGER_IN_ROUND, LONGER_IN_ROUND_MAX
        return self.after_s * float(min(longer ** min(self._times, 10), most))


def _may_gather_more(others: Sequence[Other], heard: Heard) -> bool:
    """Whether one of these processes may be reached by more nodes than this owner."""
    waiting = sum(each.waits for each in others)
    if heard.is_enough:
        has_replica = waiting < len(others)
        # R7: the larger group of nodes goes on.
        return waiting > heard.working or (waiting > 0 and has_replica)
    # R7: nothing is lost, as this owner forms no round.
    return bool(others)
