"""What one worker knows about the drains of its world, and the wait for the step to stop at (R14).

`step_gate` decides whether a step may begin. This file waits for what it cannot decide yet.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, SupportsIndex

import msgspec

from rallypoint import errors, runtime
from rallypoint.client.step_gate import Pass, StepGate
from rallypoint.core.values import Change, ChangeKind, Drain

LATE_S: Final = 10.0
"""How many seconds after the deadline of a drain a worker gives up the wait for the decision.

The draining node has left by then, so the round is over, and no coordinator has told so.
"""


class WorldDrain(msgspec.Struct, frozen=True):
    """Nodes that are going to leave this world; it goes on until then.

    `nodes`: the names of at most 8; `count`: how many there are. `reason`: why the first one
    leaves. `deadline_s`: when it leaves at the latest, on this process's `time.monotonic()`.
    """

    nodes: tuple[str, ...]
    count: int
    reason: str
    deadline_s: float

    @property
    def left_s(self) -> float:
        """How many seconds are left until the deadline; 0 when it has passed."""
        return max(0.0, self.deadline_s - runtime.here().monotonic_s())


class Steps:
    """The steps of one worker in one world. All calls are for the event loop, except of `gate`."""

    def __init__(self, number: int) -> None:
        self.gate = StepGate()
        self.drain: WorldDrain | None = None
        self.is_asked = False
        """Whether the worker is asked for its promise."""
        self._number = number
        self._ends_s = 0.0
        self._change: Change | None = None
        self._changed = asyncio.Event()

    def told(self, drain: Drain) -> None:
        """Nodes of the round are going to leave it."""
        deadline_s = runtime.here().monotonic_s() + drain.left_s
        self.is_asked = self.is_asked or drain.is_asked
        self.drain = WorldDrain(drain.nodes, drain.count, drain.reason, deadline_s)
        self._ends_s = asyncio.get_running_loop().time() + drain.left_s + LATE_S
        self._changed.set()

    def decided(self, step: int) -> None:
        """All workers of the round stop at this step."""
        self.gate.decide(step)
        self._changed.set()

    def ended(self, change: Change) -> None:
        """The round has ended: nothing will be decided any more."""
        self._change = change
        self._changed.set()

    async def is_last(self, step: SupportsIndex) -> bool:
        """Whether the worker stops at this step. Waits for the decision, if it has promised.

        Raises RoundBrokenError if the round ends meanwhile, or if LATE_S have passed since the
        deadline of the drain; and UsageError for a step that goes backwards.
        """
        while (passed := self.gate.enter(step)) is Pass.WAIT:
            if self._change is not None:
                raise errors.RoundBrokenError(self._change)
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._ends_s):
                    await self._changed.wait()
            # R14: a promise is never taken back, so this step does not begin.
            if not self._changed.is_set():
                raise errors.RoundBrokenError(self._undecided())
        return passed is Pass.STOP

    def _undecided(self) -> Change:
        nodes, count = (self.drain.nodes, self.drain.count) if self.drain else ((), 0)
        detail = f"its time was over {LATE_S:.0f} s ago, and no coordinator has told a step"
        return Change(ChangeKind.NODE_LEFT, self._number, nodes, count, detail)
