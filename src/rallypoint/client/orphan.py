"""Ends the round of a node that has no coordinator for too long (R13).

A node that is cut off cannot learn that its round is superseded, so its workers must stop after
`orphan_s`. By default only the loss of the whole run ends the round.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from rallypoint.settings import LOST_ORPHAN_S


class OrphanTimer:
    """One node's timer. `end_round` is called with the seconds that it had no coordinator."""

    def __init__(self, orphan_s: float | None, end_round: Callable[[float], None]) -> None:
        self.orphan_s = orphan_s
        self._end_round = end_round
        self._handle: asyncio.TimerHandle | None = None
        self._since_s: float | None = None
        """Since when the node has no coordinator; None while it has one."""

    def start(self, since_s: float) -> None:
        """The node has had no coordinator since this time of the loop's clock."""
        self._since_s = since_s
        if self.orphan_s is not None:
            self._start_at(since_s + self.orphan_s, since_s)

    def run_lost(self, nodes: int) -> None:
        """The run is lost, while the node is in a round of `nodes` nodes.

        The others may begin the run again. A node that is alone in its round has no such conflict.
        """
        if self.orphan_s is None and nodes > 1:
            now_s = asyncio.get_running_loop().time()
            # The node was without a coordinator before it knew that the run is lost.
            since_s = now_s if self._since_s is None else self._since_s
            self._start_at(now_s + LOST_ORPHAN_S, since_s)

    @property
    def left_s(self) -> float | None:
        """In how many seconds the round ends; None if it does not."""
        if self._handle is None:
            return None
        return max(0.0, self._handle.when() - asyncio.get_running_loop().time())

    def cancel(self) -> None:
        """The node has a coordinator, or has ended."""
        self._since_s = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def check(self, led_s: float, ttl_s: float) -> None:
        """`led_s`: when the coordinator was last heard to renew its lease. `ttl_s`: the lease's.

        A coordinator that is cut off from its ledger cannot know whether it still owns the run.
        Until its lease has expired, it is one, and it renews the lease only a few times in a ttl.
        """
        unled_s = asyncio.get_running_loop().time() - led_s
        if self.orphan_s is not None and unled_s > max(self.orphan_s, ttl_s):
            self._end_round(unled_s)

    def _start_at(self, when_s: float, since_s: float) -> None:
        if self._handle is None and not math.isinf(when_s):
            loop = asyncio.get_running_loop()
            self._handle = loop.call_at(when_s, self._on_time, since_s)

    def _on_time(self, since_s: float) -> None:
        self._end_round(asyncio.get_running_loop().time() - since_s)
