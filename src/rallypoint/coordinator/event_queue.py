"""Events of a run that wait: for the one that is being taken, or for the run to be claimed.

A ledger may be away for hours, and nodes may come and go meanwhile as often as they like. So the
queue is kept short: see `connection_lost`.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from rallypoint.core import events as on

KEPT_FEW: Final = 64
"""So many connections that have ended may be left in the queue of a run that is not claimed."""
_OF_A_CONNECTION: Final = (on.NodeAttached, on.ConnectionLost)


class EventQueue(deque[on.Event]):
    """The events, oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self._lost = 0

    def connection_lost(self) -> None:
        """The event was queued that a connection has ended. Drops nodes that came and went.

        A node that was a member keeps its grace all the same, from the takeover on. O(1) over many.
        """
        self._lost += 1
        if self._lost <= max(KEPT_FEW, len(self) // 4):
            return
        self._lost = 0
        gone = {each.connection_id for each in self if isinstance(each, on.ConnectionLost)}
        events = list(self)
        self.clear()
        self.extend(
            each
            for each in events
            if not (isinstance(each, _OF_A_CONNECTION) and each.connection_id in gone)
        )

    def take_attached(self) -> list[on.NodeAttached]:
        """The nodes that wait to attach. The queue is empty then."""
        events = [each for each in self if isinstance(each, on.NodeAttached)]
        self.clear()
        return events
