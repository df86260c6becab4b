"""`rallypoint`, as it is, with a node that writes down when it was told what.

    BENCHMARK_LOG=file python -m benchmarks.logged_agent run ...

A time is taken when the node's machine decides: before a message is sent, and before anybody who
waits is woken.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from rallypoint.cli.main import main
from rallypoint.client import machine as m
from rallypoint.client.node import Node
from rallypoint.launch import agent
from rallypoint.wire import messages as wire


class Log:
    """Lines of JSON at the end of a file, each written at once."""

    def __init__(self) -> None:
        path = os.environ["BENCHMARK_LOG"]
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def note(self, event: str, at_s: float | None = None, **more: Any) -> None:
        """Something has happened now, or at `at_s`."""
        line = {"event": event, "at_s": time.monotonic() if at_s is None else at_s, **more}
        os.write(self._fd, json.dumps(line).encode() + b"\n")


class LoggedNode(Node):
    """A node that writes its ready, formed, told, verdict, attached and detached."""

    log = Log()

    def _act(self, actions: list[m.Action]) -> None:
        at_s = time.monotonic()
        super()._act(actions)
        for action in actions:
            self._note(action, at_s)

    def _note(self, action: m.Action, at_s: float) -> None:
        match action:
            case m.Send(message=wire.Ready()):
                self.log.note("ready", at_s)
            case m.RoundFormed():
                self.log.note("formed", at_s, round=action.head.number)
            case m.RoundEnded():
                change = action.change
                event = "verdict" if change.confirmed else "unconfirmed"
                self.log.note("told", at_s)
                self.log.note(event, at_s, kind=change.kind, nodes=change.nodes)
            case m.Attached():
                self.log.note("attached", at_s)
            case m.Drop():
                self.log.note("dropped", at_s, reason=action.reason)


if __name__ == "__main__":
    vars(agent)["Node"] = LoggedNode
    main()
