"""Events of a run that wait until the event before them is done, or until the run is claimed.

A ledger may be unreachable for hours, in which nodes may connect and disconnect without limit. So
the queue is kept short: see `connection_lost`.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from rallypoint.core import events as on

KEPT_FEW: Final = 64
"""How many ended connections may stay in the queue of a run that is not claimed."""
_OF_A_CONNECTION: Final = (on.NodeAttached, on.ConnectionLost)


class EventQueue(deque[on.Event]):
    """The events, oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self._lost = 0

    def connection_lost(self) -> None:
        """The end of a connection was queued. Drop the events of nodes that came and went.

        A node that was a member still has its grace, from the takeover on. O(1) amortised.
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
        """Take out the attach events of the nodes that wait. The queue is empty afterwards."""
        events = [each for each in self if isinstance(each, on.NodeAttached)]
        self.clear()
        return events
