"""The clocks of a simulated machine, as functions of the world's time.

A monotonic clock has a rate of its own and stands still while the machine is suspended. A wall
clock shows that plus an offset that can be stepped. No process sees the world's time.
"""

from __future__ import annotations

import msgspec


class MachineClock(msgspec.Struct):
    """The monotonic clock of one machine. All times in seconds.

    `rate`: seconds of this clock in one second of the world, above 0. `offset_s`: what it shows
    when the world begins, so that clocks of two machines cannot be compared by accident.
    """

    rate: float = 1.0
    offset_s: float = 0.0
    wall_offset_s: float = 0.0
    """Add it to the monotonic clock for Unix time."""
    _since_s: float = 0.0
    _shown_s: float = 0.0
    _is_suspended: bool = False

    def shown_s(self, world_s: float) -> float:
        """What the clock shows at a time of the world."""
        passed_s = 0.0 if self._is_suspended else (world_s - self._since_s) * self.rate
        return self.offset_s + self._shown_s + passed_s

    def world_s(self, shown_s: float) -> float:
        """When the clock will show this, if nothing changes until then.

        Infinite while the machine is suspended.
        """
        if self._is_suspended:
            return float("inf")
        return self._since_s + (shown_s - self.offset_s - self._shown_s) / self.rate

    def set_rate(self, world_s: float, rate: float) -> None:
        """From now on, the clock runs at this rate. It does not jump."""
        self._fix(world_s)
        self.rate = rate

    def suspend(self, world_s: float) -> None:
        """The machine sleeps: its monotonic clock stands still, and its wall clock does not."""
        self._fix(world_s)
        self._is_suspended = True

    def resume(self, world_s: float) -> None:
        """The machine wakes. Its wall clock is right again."""
        if self._is_suspended:
            slept_s = world_s - self._since_s
            self._since_s, self._is_suspended = world_s, False
            self.wall_offset_s += slept_s * self.rate

    def _fix(self, world_s: float) -> None:
        self._shown_s = self.shown_s(world_s) - self.offset_s
        self._since_s = world_s
