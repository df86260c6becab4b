"""The connections of a world: what is on the way in both directions, and which sides are open.

A side that has ended a connection need not be noticed by the other one for long. What was sent
before it ended arrives, unless the connection was cut.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec.structs import replace

from rallypoint.core.values import ConnectionEnd

OFF: Final = "off"
"""How the node's side ended if its host has lost power: the coordinator notices nothing."""
OPEN: Final = "open"
CLOSED: Final = "closed"
"""The coordinator closed it with a WebSocket Close."""
ANSWERED: Final = "answered"
"""The same, as the answer to a goodbye."""
GONE: Final = "gone"
"""The coordinator's process has ended."""


class Link(msgspec.Struct, frozen=True):
    """One connection. Messages are numbers. `node_end`: how the node's side ended; "": it has not.

    `coordinator_side`: OPEN, CLOSED, ANSWERED or GONE.
    """

    coordinator: int
    to_coordinator: tuple[int, ...] = ()
    to_node: tuple[int, ...] = ()
    node_end: str = ""
    coordinator_side: str = OPEN


class Links:
    """All links that there are in any state, each under a number; 0 is none."""

    def __init__(self) -> None:
        self.all: list[Link | None] = [None]
        self._numbers: dict[Link, int] = {}
        self._changed: dict[tuple[object, ...], int] = {}
        self._saved = 1

    def number(self, link: Link) -> int:
        """The number of this link; 0 if both sides have ended it."""
        if link.node_end and link.coordinator_side != OPEN:
            return 0
        if link.node_end:
            link = replace(link, to_node=())
        if link.coordinator_side != OPEN:
            link = replace(link, to_coordinator=())
        number = self._numbers.get(link)
        if number is None:
            number = self._numbers[link] = len(self.all)
            self.all.append(link)
        return number

    def added(self) -> list[Link | None]:
        """What was added since the last call."""
        first, self._saved = self._saved, len(self.all)
        return self.all[first:]

    def add_saved(self, added: list[Link]) -> None:
        """Add what an earlier call of `added` returned, in the same order."""
        for link in added:
            self.number(link)
        self._saved = len(self.all)

    def changed(self, number: int, what: str, detail: object = None) -> int:
        """The link after a change of it."""
        key = (number, what, detail)
        found = self._changed.get(key)
        if found is None:
            found = self._changed[key] = self._change(number, what, detail)
        return found

    def _change(self, number: int, what: str, detail: object) -> int:
        link = self.all[number]
        assert link is not None
        match what:
            case "to coordinator":
                link = replace(link, to_coordinator=link.to_coordinator + detail)  # type: ignore[operator]
            case "to node":
                link = replace(link, to_node=(*link.to_node, detail))
            case "coordinator reads":
                link = replace(link, to_coordinator=link.to_coordinator[1:])
            case "node hears":
                link = replace(link, to_node=link.to_node[1:])
            case "coordinator ends":
                link = replace(link, coordinator_side=str(detail))
            case "node ends":
                link = replace(link, node_end=str(detail))
            case "cut":
                link = replace(
                    link, to_coordinator=(), to_node=(), node_end=ConnectionEnd.RESET.value
                )
            case _:
                raise AssertionError(what)
        return self.number(link)
