"""What is known about the step after which draining nodes leave the present round.

`agreeing` has the protocol (R14). This file keeps who drains, who takes part, and what was promised
and decided. All of it is about one round. It must not decide anything.
"""

from __future__ import annotations

from typing import Final

from rallypoint.core.values import NodeId

NO_STEP: Final = 2**62
"""A decided step that no worker reaches: all go on. Steps are below it."""


class Agreement:
    """What is known in one round. `step`: the decided one, if the ledger has it from before."""

    def __init__(self, step: int | None = None) -> None:
        self.draining: dict[NodeId, tuple[float, str]] = {}
        """When each draining node leaves at the latest, on this coordinator's clock, and why."""
        self._soonest: tuple[float, str] | None = None
        self.is_told = False
        """Whether the members know who drains, and whether they are asked."""
        self.is_asked = step is not None
        """Whether all members take part, so that they are asked for their promises."""
        self.highest = 0
        """The highest step that was promised."""
        self.step = step
        """The step that was decided."""
        self.is_step_told = step is not None
        self.taking_part: dict[NodeId, None] = {}
        self.promises: dict[NodeId, None] = {}
        self.has_news = False
        """Whether nodes drain of which only they were told, to tell all members at once soon."""
        self.is_clear = False
        """Whether a successor has heard who takes part: each member could say so."""

    @property
    def is_open(self) -> bool:
        """Whether there may be something to tell, to ask or to decide."""
        if self.step is not None:
            return bool(self.draining) and not self.is_told
        # R14: who has promised waits for the step, also if the node that drained has finished.
        return bool(self.draining) or bool(self.promises)

    def drains(self, node: NodeId, ends_s: float, reason: str) -> None:
        """This member is going to leave."""
        self.draining[node] = (ends_s, reason)
        if self._soonest is not None:
            self._soonest = min(self._soonest, (ends_s, reason))

    def soonest(self) -> tuple[float, str]:
        """When the first of them leaves at the latest, and why. O(1), mostly."""
        if self._soonest is None:
            self._soonest = min(self.draining.values())
        return self._soonest

    def forget(self, node: NodeId) -> None:
        """The workers of this member have finished: nothing waits for it."""
        if self.draining.pop(node, None) == self._soonest:
            self._soonest = None
        self.taking_part.pop(node, None)
        self.promises.pop(node, None)

    def freeze(self) -> tuple[object, ...]:
        """The state on which decisions depend, as a hashable value without times."""
        return (
            (tuple(self.draining), self.is_told, self.is_asked, self.highest, self.is_clear),
            (
                self.has_news,
                self.step,
                self.is_step_told,
                tuple(self.taking_part),
                tuple(self.promises),
            ),
        )
