"""When a coordinator that no node can reach gives up its runs.

This file has only the rule. Which nodes are heard and which leases exist are arguments.
"""

from __future__ import annotations

from collections.abc import Mapping


class Resignation:
    """When a coordinator resigns because no node of another process can reach it.

    A firewall or a wrong interface shows only after the election, and may appear at any later time.
    A coordinator that has heard no node for `after_s` seconds resigns if another process is ready
    to take over. Then it does not take the run for a while, so that the others can. The pause is
    `after_s` at first and doubles each time, up to four times `after_s`, because the others may be
    unable to host the run.

    If there is no other process, it keeps the run: its nodes may not have been started yet.

    Every `look_s` seconds it looks for other processes. Each of those that are alive renews its
    lease in that time.
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
        """A node of another process can be heard, or the run needs none."""
        self._since_s = None
        self._times = 0

    def unheard(self, now_s: float) -> None:
        """No node of another process can be heard."""
        if self._since_s is None:
            self._since_s = now_s

    def should_look(self, now_s: float) -> bool:
        """Whether it is time to look for other processes: twice in `after_s`, and then again."""
        if self._since_s is None:
            return False
        if now_s < max(self._since_s + self.after_s - self.look_s, self._next_look_s):
            return False
        self._next_look_s = now_s + self.look_s
        return True

    def should_resign(self, others: Mapping[str, int] | None, now_s: float) -> bool:
        """Whether to resign now.

        `others`: the lease's version for each process that may take over the run. A process is
        alive if that has changed since the last look. None: the engine cannot list leases.
        """
        before, self._seen = self._seen, others or {}
        if self._since_s is None or now_s - self._since_s < self.after_s:
            return False
        return others is None or any(before.get(p, v) != v for p, v in others.items())

    def pause_s(self) -> float:
        """For how many seconds not to take the run, if this process resigns now."""
        self._since_s = None
        self._times += 1
        return self.after_s * float(2 ** min(self._times, 2))
