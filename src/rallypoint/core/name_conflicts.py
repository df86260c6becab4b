"""Two nodes of one name: who wants a name that another start of the node still has.

The older one is asked whether it lives. If it does, the newcomer is refused; if it does not
answer in time, or its process has ended, or it leaves, the newcomer has the name. An older one
whose connection is closed answers by attaching, within what is left of its grace. This file only
remembers who waits for which name; what follows is for `membership`.
"""

from __future__ import annotations

from rallypoint.core.effects import TimerKind
from rallypoint.core.events import NodeAttached
from rallypoint.core.timers import Timers
from rallypoint.core.values import NodeId


class NameConflicts:
    """At most one newcomer for each name that is taken, in order of arrival."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self.waiting: dict[str, NodeAttached] = {}
        """Who waits, by name. Only this class changes it."""
        self._due_s: dict[str, float] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.waiting

    def get(self, name: str) -> NodeAttached | None:
        """Who waits for the name, if anybody does."""
        return self.waiting.get(name)

    def wait(self, event: NodeAttached, due_s: float) -> None:
        """The older node was asked to answer by `due_s`, on the judging clock."""
        self.waiting[event.node.name] = event
        self._due_s[event.node.name] = due_s

    def due_s(self, name: str) -> float:
        """By when the older node ought to have answered. Somebody waits for the name."""
        return self._due_s[name]

    def redialled(self, event: NodeAttached) -> None:
        """The same newcomer is back on another connection; the question stands."""
        self.waiting[event.node.name] = event

    def pop(self, name: str) -> NodeAttached | None:
        """Take the newcomer out: it is let in or refused."""
        self._due_s.pop(name, None)
        self._timers.cancel(TimerKind.NAME, name)
        return self.waiting.pop(name, None)

    def drop(self, node: NodeId, connection_id: int | None = None) -> None:
        """The newcomer has gone itself: said goodbye, or closed this connection."""
        waiting = self.waiting.get(node.name)
        if waiting and waiting.node.id == node and connection_id in (None, waiting.connection_id):
            self.pop(node.name)

    def pop_all(self) -> list[NodeAttached]:
        """Take all of them out."""
        return [event for name in self.names() if (event := self.pop(name)) is not None]

    def names(self) -> tuple[str, ...]:
        """The names that somebody waits for."""
        return tuple(self.waiting)
