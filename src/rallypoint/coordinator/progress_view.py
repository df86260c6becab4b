"""How far the workers of a run are, for people: the newest steps, their age and their pace.

The core keeps what the nodes report (`core/progress.py`), and decides when a round hangs. This file
only says in words and numbers what is known. It must not decide anything.
"""

from __future__ import annotations

from heapq import nlargest
from typing import Final

from rallypoint.core import reasons
from rallypoint.core.membership import Membership
from rallypoint.core.progress import NodeProgress, RunProgress
from rallypoint.core.values import NAMES_SHOWN_MAX, Phase

STILL_MIN_S: Final = 10.0
"""Workers that have not advanced for this long, and for STILL_STEPS usual steps, stand still."""
STILL_STEPS: Final = 5
STILL_UNKNOWN_S: Final = 60.0
"""The same while no pace is known."""
BEHIND_MIN_S: Final = 1.0
"""A node is behind if the others were at its step at least so long ago."""


class ProgressView:
    """The progress of one run's present round at one time. `is_known`: whether there is any."""

    def __init__(self, membership: Membership, now_s: float) -> None:
        self._now_s = now_s
        self._progress: RunProgress = membership.progress
        settings = membership.settings
        self._late_s = settings.suspect_after_s if settings is not None else STILL_MIN_S
        pace = self._progress.pace
        self._usual = pace.steps_per_s if pace is not None else None
        is_of_round = self._progress.round == membership.number
        is_active = membership.phase_of_work is Phase.ACTIVE
        self.is_known = is_active and is_of_round and bool(self._progress.nodes)

    @property
    def step(self) -> int | None:
        """The highest step that a node has reported."""
        return self._progress.step

    @property
    def still_s(self) -> float:
        """For how long no worker has advanced, in seconds."""
        return max(0.0, self._progress.still_s(self._now_s))

    @property
    def is_still(self) -> bool:
        """Whether nobody has advanced for longer than usual."""
        return self.is_asking or _is_still(self.still_s, self._usual, self.hang_timeout_s)

    @property
    def is_asking(self) -> bool:
        """Whether the nodes are asked where their workers stand."""
        return self._progress.is_asking

    @property
    def hang_timeout_s(self) -> float | None:
        """After how long without progress the round ends; None: never."""
        return self._progress.timeout_s

    @property
    def steps_per_s(self) -> float | None:
        """The pace of the quickest node; 0 while nobody advances; None if it is unknown."""
        if self._usual is None:
            return None
        return 0.0 if self.is_still else self._usual

    def in_words(self) -> str:
        """All of this as one sentence."""
        if self.is_asking:
            return reasons.where_do_they_stand(self.still_s)
        if self.is_still:
            return reasons.nobody_advances(self.still_s, self.step, self.hang_timeout_s)
        return reasons.advances(self.step, self._usual)

    # -- its nodes -------------------------------------------------------------------------------

    def node(self, name: str) -> NodeProgress | None:
        """What is known of a member; None if nothing is."""
        return self._progress.nodes.get(name) if self.is_known else None

    def ago_s(self, node: NodeProgress) -> float:
        """How long ago a worker of this node advanced, in seconds."""
        return self._progress.ago_s(node, self._now_s)

    def pace_of(self, node: NodeProgress) -> float | None:
        """The node's steps in a second; 0 if it stands still; None if it is unknown."""
        steps_per_s = node.pace.steps_per_s if node.pace is not None else None
        if steps_per_s is None:
            return None
        return 0.0 if _is_still(self.ago_s(node), steps_per_s, None) else steps_per_s

    def steps_behind(self, node: NodeProgress) -> int | None:
        """By how many steps the node is behind the first one; None if it has reported no step.

        Nodes report with their heartbeats, one after the other. So what counts is what was known
        when the node reported, until its next report should be here.
        """
        if node.step is None or self.step is None:
            return None
        is_late = self.ago_s(node) > self._late_s
        return self.step - node.step if is_late else node.steps_behind

    def is_behind(self, node: NodeProgress) -> bool:
        """Whether the others were at its step long ago."""
        steps, usual = self.steps_behind(node), self._usual
        return bool(steps and usual and steps / usual >= BEHIND_MIN_S)

    def behind(self) -> tuple[list[str], int]:
        """Some names of members that stand behind, the furthest first, and how many they are."""
        if not self.is_known:
            return [], 0
        found = [
            (self.steps_behind(node) or 0, name)
            for name, node in self._progress.nodes.items()
            if self.is_behind(node)
        ]
        return [name for _, name in nlargest(NAMES_SHOWN_MAX, found)], len(found)


def _is_still(still_s: float, usual: float | None, timeout_s: float | None) -> bool:
    least_s = STILL_UNKNOWN_S if usual is None else max(STILL_MIN_S, STILL_STEPS / usual)
    return still_s >= (least_s if timeout_s is None else min(least_s, timeout_s / 2))
