"""Giving up a lease that no node can reach."""

from __future__ import annotations

from collections.abc import Mapping


class Resignation:
    """When a coordinator that no node of another process can reach should let another try.

    A firewall or a wrong interface shows only after the election, and may come at any time later.
    Who has heard nobody for `after_s`, and sees that another process stands by, lets go of the run
    and stays away, each time twice as long (up to 2**2 times: the others may not be able to host).
    Who would yield to nobody stays: whom it waits for may only not have been started yet.

    Others are looked for every `look_s`, in which a living process renews its lease.
    """

    def __init__(self, after_s: float, look_s: float) -> None:
        self.after_s = after_s
        self.look_s = look_s
        self._since_s: float | None = None
        self._next_look_s = 0.0
        self._seen: Mapping[str, int] = {}
        self._times = 0

    def won(self, now_s: float) -> None:
        """The lease begins."""
        self._since_s = now_s

    def heard(self) -> None:
        """A node of another process can be heard, or none is needed."""
        self._since_s = None
        self._times = 0

    def unheard(self, now_s: float) -> None:
        """No node of another process can be heard."""
        if self._since_s is None:
            self._since_s = now_s

    def should_look(self, now_s: float) -> bool:
        """Whether it is time to see who stands by: twice before `after_s` is over, then again."""
        if self._since_s is None:
            return False
        if now_s < max(self._since_s + self.after_s - self.look_s, self._next_look_s):
            return False
        self._next_look_s = now_s + self.look_s
        return True

    def should_yield(self, others: Mapping[str, int] | None, now_s: float) -> bool:
        """Whether to let go now. `others`: the version of the lease of each that may take the run.

        Only one that has moved since the last look is alive. None: the engine cannot list them.
        """
        before, self._seen = self._seen, others or {}
        if self._since_s is None or now_s - self._since_s < self.after_s:
            return False
        return others is None or any(before.get(p, v) != v for p, v in others.items())

    def pause_s(self) -> float:
        """How long to stay away after yielding now, in seconds."""
        self._since_s = None
        self._times += 1
        return self.after_s * float(2 ** min(self._times, 2))
