"""A real node that also writes an event log. It does not differ in any other way.

The time of an event is that of the node machine's decision, before a message is sent and before a
waiting caller is woken.
"""

from __future__ import annotations

import time

from rallypoint.bench.event_log import EventWriter
from rallypoint.client import actions as act
from rallypoint.client.node import Node
from rallypoint.wire import messages as wire


def logged(log: EventWriter) -> type[Node]:
    """A class of nodes that write ready, formed, told, verdict, attached and dropped to this log.

    Each event has the node's `name`. `told`: the node is notified that its round ended. `verdict`:
    it receives the confirmed cause of that. `attached`: `is_own`: whether the node hosts that
    coordinator itself.
    """

    class LoggedNode(Node):
        def _act(self, actions: list[act.Action]) -> None:
            at_s = time.monotonic()
            super()._act(actions)
            for action in actions:
                self._note(action, at_s)

        def _note(self, action: act.Action, at_s: float) -> None:
            name = self.info.name
            match action:
                case act.Send(message=wire.Ready()):
                    log.write("ready", at_s, name=name)
                case act.RoundFormed():
                    head = action.head
                    log.write("formed", at_s, name=name, round=head.number, nodes=head.nodes)
                case act.RoundEnded():
                    change = action.change
                    event = "verdict" if change.confirmed else "unconfirmed"
                    log.write("told", at_s, name=name, round=change.round)
                    lines = change.failure.last_lines if change.failure is not None else ()
                    found = {"cause": change.cause, "lines": lines}
                    log.write(event, at_s, name=name, kind=change.kind, nodes=change.nodes, **found)
                case act.Attached():
                    term, is_own = self._machine.stamp.term, self.is_at_own
                    log.write("attached", at_s, name=name, term=term, is_own=is_own)
                case act.Drop():
                    log.write("dropped", at_s, name=name, reason=action.reason)

    return LoggedNode
