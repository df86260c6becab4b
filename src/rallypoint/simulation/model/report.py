"""What a search found."""

from __future__ import annotations

import msgspec

from rallypoint.simulation.model.limits import Limits


class Report(msgspec.Struct):
    """`is_whole`: no state is left. `is_progress_whole`: for each state it was decided whether it
    is stuck; else `samples` runs without faults were made from some of them.

    `violation`: the broken rule, or ""; `path`: the moves to it, as few as any.
    """

    states: int = 0
    moves: int = 0
    depth: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    is_whole: bool = False
    is_progress_whole: bool = False
    samples: int = 0
    violation: str = ""
    path: list[tuple[str, int, int]] = msgspec.field(default_factory=list)

    def __str__(self) -> str:
        """One line: how much was explored, and at which rate."""
        what = "for all" if self.is_progress_whole else f"by {self.samples} runs from samples"
        whole = ", all there are" if self.is_whole else ""
        rate = self.states / max(0.001, self.cpu_seconds)
        return (
            f"{self.states:,} states{whole}, {self.moves:,} moves, depth {self.depth}, "
            f"{self.seconds:.1f} s ({self.cpu_seconds:.1f} s of CPU, {rate:,.0f} states/s), "
            f"progress checked {what}"
        )

    def verdict(self, name: str, limits: Limits) -> str:
        """The last line of a search that found nothing: what was covered, and what held there."""
        if self.is_whole:
            how_far = f"all {self.states:,} states of this world, up to {self.depth} moves deep"
        else:
            how_far = (
                f"the {self.states:,} states that are nearest to the start, {self.depth} moves deep"
            )
        held = "no rule broken, no state stuck"
        if not self.is_progress_whole:
            held = f"no rule broken, and no run without faults stuck, of {self.samples} tried"
        return f"{name}: {held}. Covered: {how_far}, in {self.seconds:.1f} s. World: {limits}."
