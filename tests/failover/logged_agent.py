"""`rallypoint`, as it is, with a node that writes down when it was attached, and by which term.

FAILOVER_LOG=file python logged_agent.py run ...
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from rallypoint.cli.main import main
from rallypoint.client import actions as act
from rallypoint.client.node import Node
from rallypoint.core.values import Address
from rallypoint.launch import agent
from rallypoint.wire import messages as wire

_fd = os.open(os.environ["FAILOVER_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)


def note(event: str, **more: Any) -> None:
    """One line of JSON, at once."""
    line = {"event": event, "at_s": time.monotonic(), **more}
    os.write(_fd, json.dumps(line).encode() + b"\n")


class LoggedNode(Node):
    """A node that writes what its machine decides."""

    def _act(self, actions: list[act.Action]) -> None:
        super()._act(actions)
        for action in actions:
            self._note(action)

    def _note(self, action: act.Action) -> None:
        stamp = self._machine.stamp
        match action:
            case act.Attached():
                hosts = self.hosted is not None
                note("attached", term=stamp.term, round=stamp.round, hosts=hosts)
            case act.RoundFormed():
                head = action.head
                told = {"nodes": head.nodes, "size": head.size, "node_rank": action.seat.node_rank}
                note("formed", term=head.term, round=head.number, digest=head.digest, **told)
            case act.RoundEnded(change=change):
                kind, nodes = str(change.kind), change.nodes
                note("ended", round=change.round, kind=kind, nodes=nodes, detail=change.detail)
            case act.Send(message=wire.Ready()):
                note("ready", term=stamp.term, round=stamp.round)


def note_sightings() -> None:
    """Write down what the node remembers of other hosts. An older release remembers nothing."""
    try:
        from rallypoint.client import sightings, witness
    except ImportError:
        return

    class LoggedSightings(sightings.Sightings):
        def tried(self, address: Address, *, has_answered: bool) -> None:
            super().tried(address, has_answered=has_answered)
            note("tried", host=address.host, has_answered=has_answered)

    vars(witness)["Sightings"] = LoggedSightings


if __name__ == "__main__":
    note_sightings()
    vars(agent)["Node"] = LoggedNode
    main()
