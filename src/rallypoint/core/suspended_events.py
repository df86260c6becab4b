"""The events that are kept while a run is SUSPENDED, until its ledger is back.

Most events of nodes need no ledger and are handled at once. Two kinds are kept: a request to close
the run, and a second node of one name, because the first one is not judged meanwhile. Their number
is bounded: one close, and one connection of each node.
"""

from __future__ import annotations

from collections.abc import Iterator

from rallypoint.core import events as on
from rallypoint.core.values import NodeId, NodeInfo


class SuspendedEvents:
    """Events in the order in which they first came."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], on.Event] = {}

    def keep(self, event: on.Event) -> None:
        """Keep an event. A repeat replaces the earlier one, except that the first close counts.

        Of evictions and admissions, the last one counts.
        """
        key = _key(event)
        # R6: the first close counts.
        if isinstance(event, on.CloseRequested) and key in self._kept:
            return
        # R4: an operator who evicts, admits and evicts a node again wants it out.
        if isinstance(event, on.EvictRequested | on.AdmitRequested):
            self._kept.pop(key, None)
        self._kept[key] = event

    def attached(self, node: NodeId) -> on.NodeAttached | None:
        """The kept attach of this node, if there is one."""
        kept = self._kept.get(("NodeAttached", node.name, str(node.incarnation)))
        return kept if isinstance(kept, on.NodeAttached) else None

    def forget_attached(self, node: NodeId, connection_id: int | None = None) -> None:
        """Drop the attach of a node that has said goodbye or closed this connection."""
        key = ("NodeAttached", node.name, str(node.incarnation))
        kept = self._kept.get(key)
        if isinstance(kept, on.NodeAttached) and connection_id in (None, kept.connection_id):
            del self._kept[key]

    def take_attached(self, name: str) -> on.NodeAttached | None:
        """Take out the first attach for this name, which is now free."""
        for key, kept in self._kept.items():
            if isinstance(kept, on.NodeAttached) and kept.node.name == name:
                del self._kept[key]
                return kept
        return None

    def take(self) -> list[on.Event]:
        """Take out all of them."""
        kept, self._kept = self._kept, {}
        return list(kept.values())

    def __iter__(self) -> Iterator[on.Event]:
        return iter(self._kept.values())


def _key(event: on.Event) -> tuple[str, ...]:
    key: tuple[str, ...] = (type(event).__name__,)
    node = getattr(event, "node", None)
    if isinstance(node, NodeId | NodeInfo):
        key += (node.name, str(node.incarnation))
    return key
