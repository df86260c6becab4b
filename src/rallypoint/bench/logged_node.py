"""A real node that writes down when it was told what, and is otherwise as it is.

A time is taken when the node's machine decides: before a message is sent, and before anybody who
waits is woken.
"""

from __future__ import annotations

import time

from rallypoint.bench.notes import Writer
from rallypoint.client import machine as m
from rallypoint.client.node import Node
from rallypoint.wire import messages as wire


def logged(notes: Writer) -> type[Node]:
    """A class of nodes that write their ready, formed, told, verdict, attached and dropped there.

    `told` is any word that the round has ended; `verdict` the one that says why for good.
    """

    class LoggedNode(Node):
        def _act(self, actions: list[m.Action]) -> None:
            at_s = time.monotonic()
            super()._act(actions)
            for action in actions:
                self._note(action, at_s)

        def _note(self, action: m.Action, at_s: float) -> None:
            match action:
                case m.Send(message=wire.Ready()):
                    notes.note("ready", at_s)
                case m.RoundFormed():
                    notes.note("formed", at_s, round=action.head.number)
                case m.RoundEnded():
                    change = action.change
                    event = "verdict" if change.confirmed else "unconfirmed"
                    notes.note("told", at_s)
                    notes.note(event, at_s, kind=change.kind, nodes=change.nodes)
                case m.Attached():
                    name, term = self.info.name, self._machine.stamp.term
                    notes.note("attached", at_s, name=name, term=term)
                case m.Drop():
                    notes.note("dropped", at_s, reason=action.reason)

    return LoggedNode
