"""R8 on a slow machine: a node is not lost while its message waits in the kernel."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from rallypoint.client.transport import Connection, connect
from rallypoint.clock import StallProofClock
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.coordinator.session import Session
from rallypoint.core.values import Address, NodeId, NodeInfo, Reachability, RunSettings, Stamp
from rallypoint.net import bind
from rallypoint.security.access import Access
from rallypoint.wire import messages as wire
from tests.loops import VirtualLoop, until

pytestmark = pytest.mark.sockets

RUN = RunSettings(min_nodes=2, max_nodes=2)


class SlowLoop(VirtualLoop):
    """Each of its turns takes `turn_s`, in virtual time."""

    turn_s = 0.0

    def _wait(self, timeout_s: float | None) -> Any:
        found = super()._wait(timeout_s)
        self._now_s += self.turn_s
        return found


class Raw:
    def __init__(self, port: int, name: str) -> None:
        self.port, self.name = port, name
        self.heard: list[wire.FromCoordinator] = []
        self.connection: Connection | None = None

    async def dial(self) -> None:
        here = ("127.0.0.1", self.port)
        self.connection = await connect(Address(*here), here, 2, Access())
        self.connection.on_message = lambda data: self.heard.append(
            wire.decode_from_coordinator(data)
        )
        info = NodeInfo(self.name, 1, "host")
        stamp = self.heard[-1].stamp if self.heard else Stamp()
        self.send(wire.Attach(stamp, wire.VERSION, "run", info, RUN))

    def send(self, message: wire.Message) -> None:
        assert self.connection is not None
        self.connection.send(wire.encode(message))

    async def says(self, kind: type) -> None:
        while not any(isinstance(each, kind) for each in self.heard):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("turn_s", [0.0, 0.1, 0.3, 0.6, 0.9, 3.0])
def test_a_node_that_reconnects_is_admitted_despite_slow_turns(
    turn_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the coordinator's slow loop are the node's turns too: more than it takes in truth."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SlowLoop)
        sock = bind("127.0.0.1", 0)
        async with CoordinatorServer() as server:
            server.coordinator.clock = StallProofClock(loop.time)
            await server.start([sock])
            nodes = [Raw(sock.getsockname()[1], name) for name in "ab"]
            for node in nodes:
                await node.dial()
                await node.says(wire.Welcome)
                node.send(wire.Ready(node.heard[-1].stamp, 0, Address("h", 1), 1))
            for node in nodes:
                await node.says(wire.Formed)
            a, b = nodes
            roster = server.coordinator.runs["run"].membership.roster
            assert b.connection is not None
            b.heard = b.heard[-1:]
            b.connection.abort("it blinks")
            while roster.get("b").reachability is not Reachability.DISCONNECTED:  # type: ignore[union-attr] # noqa: ASYNC110
                await asyncio.sleep(0)
            loop.turn_s = turn_s
            await b.dial()
            await b.says(wire.Welcome)
            loop.turn_s = 0.0
            for _ in range(10):  # longer than the grace
                for node in nodes:
                    node.send(wire.Heartbeat(node.heard[-1].stamp))
                await asyncio.sleep(1.0)
            assert not any(isinstance(each, wire.Broken) for each in a.heard)
            for node in nodes:
                assert node.connection is not None
                node.connection.close("the test is over")
                await node.connection.wait_closed()

    with asyncio.Runner(loop_factory=SlowLoop) as runner:
        runner.run(main())


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_messages_that_came_in_a_stall_count_before_any_judgement(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop runs the timers that are due before it looks for input."""
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        sock = bind("127.0.0.1", 0)
        async with CoordinatorServer() as server:
            await server.start([sock])
            nodes = [Raw(sock.getsockname()[1], name) for name in "ab"]
            for node in nodes:
                await node.dial()
                await node.says(wire.Welcome)
            run = server.coordinator.runs["run"]
            order: list[str] = []
            tick, heard = server.coordinator.tick, run.connections.heard

            def noting_tick(until_s: float) -> None:
                order.append("judged")
                tick(until_s)

            def noting_heard(session: Session, node: NodeId) -> None:
                order.append(node.name)
                heard(session, node)
                if node.name == "b":
                    # While one is read the other speaks, and a tick becomes due.
                    order.clear()
                    nodes[0].send(wire.Heartbeat(nodes[0].heard[-1].stamp))
                    time.sleep(1.2)

            monkeypatch.setattr(server.coordinator, "tick", noting_tick)
            monkeypatch.setattr(run.connections, "heard", noting_heard)
            nodes[1].send(wire.Heartbeat(nodes[1].heard[-1].stamp))
            await until(lambda: "a" in order, "it was not heard")
            await until(lambda: "judged" in order, "nobody was judged")
            assert order[0] == "a"
            for node in nodes:
                assert node.connection is not None
                node.connection.close("the test is over")
                await node.connection.wait_closed()

    factory = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}[kind]
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
