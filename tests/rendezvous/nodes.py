"""Nodes in threads: handlers of the backend `rallypoint` for tests, against a real coordinator."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rallypoint.rendezvous import RendezvousInfo, RendezvousParameters, _torch_bridge
from rallypoint.rendezvous._node_handler import NodeRendezvousHandler
from rallypoint.rendezvous.rallypoint_rendezvous import create_handler
from tests.agent.processes import Machine, Process
from tests.ports import free_port

WITHIN_S = 30.0
QUICK = {"last_call": 1, "settle": 0, "scale_up_delay": 0, "reconnect_grace": 0.1}


class Nodes:
    """The nodes of one run. `start`ed calls run in threads of their own."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._pool = ThreadPoolExecutor(16)
        self._made: list[NodeRendezvousHandler] = []
        self.run_id = "run"
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.serving: Process | None = None

    def serve(self) -> Process:
        """A coordinator in a process of its own, once it listens."""
        self.serving = self._machine.command("serve", "--port", str(self.port))
        self.serving.line("is ready at")
        return self.serving

    def handler(
        self, nnodes: str = "2:3", *, ends_process: bool = False, **config: Any
    ) -> NodeRendezvousHandler:
        """One more node, which has not called anybody yet."""
        least, _, most = nnodes.partition(":")
        params = RendezvousParameters(
            "rallypoint",
            self.endpoint,
            self.run_id,
            int(least),
            int(most or least),
            local_addr="127.0.0.1",
            **{"node_name": f"n{len(self._made)}", "join_timeout": WITHIN_S, **QUICK, **config},
        )
        self._made.append(create_handler(params, ends_process=ends_process))
        return self._made[-1]

    def start(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self._pool.submit(call, *arguments)

    def meet(self, *handlers: NodeRendezvousHandler) -> list[RendezvousInfo]:
        """All ask for the next round; returns what each of them gets, in their order."""
        calls = [self.start(each.next_rendezvous) for each in handlers]
        return [call.result(WITHIN_S) for call in calls]

    def freeze(self) -> None:
        assert self.serving is not None
        self._machine.freeze(self.serving.pid)
        # The signal alone takes a moment; until then one of its threads could still answer.
        os.waitid(os.P_PID, self.serving.pid, os.WSTOPPED | os.WNOWAIT)

    def vanish(self, handler: NodeRendezvousHandler) -> None:
        """As when its machine is lost: its connection ends without a word, for good."""
        node, door = handler._node, handler._portal
        assert node is not None
        assert door is not None
        self._made.remove(handler)
        door.run(node.aclose(linger=False))

    def close(self) -> None:
        if self.serving is not None and self.serving.popen.poll() is None:
            self._machine.thaw(self.serving.pid)
        for handler in reversed(self._made):
            handler.shutdown()
        self._pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def nodes_of(folder: Path, *, serves: bool = True, endpoint: str = "") -> Iterator[Nodes]:
    """Nodes with a coordinator of their own, or in a new run of the coordinator at `endpoint`."""
    machine = Machine(folder)
    nodes = Nodes(machine)
    try:
        if endpoint:
            nodes.endpoint = endpoint
            nodes.run_id = f"run-{secrets.token_hex(4)}"
        elif serves:
            nodes.serve()
        yield nodes
    finally:
        nodes.close()
        machine.close()


def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not imported torch, whatever other tests have imported here."""
    monkeypatch.setattr(_torch_bridge, "loaded", lambda: False)
    monkeypatch.delitem(sys.modules, _torch_bridge.TORCH_ERRORS, raising=False)
