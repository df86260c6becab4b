"""When a node heard its coordinator, and when it sends the next heartbeat."""

from __future__ import annotations

from typing import Final

LATE_TICK_S: Final = 0.05
"""A tick is late by more than this only if this process did not run."""
LOOK_AGAIN_S: Final = 0.01
"""After a late tick, this process has read within this time what had arrived by then."""
HEARTBEAT_MIN_S: Final = 0.01


class Heartbeats:
    """The heartbeats of one node, and the signs of life of its coordinator. All times in seconds.

    `silence_s`: a coordinator that is silent for longer is lost. It ticks at least three times in
    that time, as the answers to heartbeats keep it from passing.

    It must not send anything, and must not depend on rounds or requests. The machine sets `heard_s`
    at each message, and the beat and its times at each beat.
    """

    def __init__(self, silence_s: float) -> None:
        self.silence_s = silence_s
        self.heard_s = 0.0
        """When the coordinator was heard last."""
        self.led_s = 0.0
        """When a coordinator that holds its lease was heard last."""
        self.next_tick_s: float | None = None
        """When `tick` has something to do; None while there is no connection."""
        self._every_s = self._often_s = max(HEARTBEAT_MIN_S, silence_s / 3)
        self.beat = 0
        """The coordinator's last beat, which changes as long as it renews its lease."""
        self.beat_heard_s = 0.0
        """When a beat came last."""
        self._looks_again = False

    @property
    def beat_stood_still_s(self) -> float:
        """How long the coordinator has not renewed its lease, as its beats say."""
        return self.beat_heard_s - self.led_s

    def connected(self, now_s: float) -> None:
        """A connection is open; the node is not attached yet."""
        self.heard_s = now_s
        self._every_s = self._often_s
        self.next_tick_s = now_s + self._every_s

    def attached(self, heartbeat_s: float, now_s: float) -> None:
        """The coordinator admitted the node, and asks for a heartbeat every `heartbeat_s`."""
        self.led_s = self.beat_heard_s = now_s
        self._every_s = min(self._often_s, max(HEARTBEAT_MIN_S, heartbeat_s))
        self.next_tick_s = now_s + self._every_s

    def tick(self, now_s: float) -> float | None:
        """The next heartbeat is due. For how long the coordinator is silent, if for too long."""
        assert self.next_tick_s is not None
        late_s = now_s - self.next_tick_s
        if late_s > LATE_TICK_S:
            # This process did not run, so that time is no silence of the coordinator.
            self.heard_s = min(now_s, self.heard_s + late_s)
        self.next_tick_s = now_s + self._every_s
        silent_s = now_s - self.heard_s
        if silent_s <= self.silence_s:
            self._looks_again = False
            return None
        if late_s > LATE_TICK_S and not self._looks_again:
            # Messages of the coordinator may have arrived meanwhile, and not been read yet.
            self._looks_again, self.next_tick_s = True, now_s + LOOK_AGAIN_S
            return None
        return silent_s
