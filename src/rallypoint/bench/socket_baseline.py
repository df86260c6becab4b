"""The floor: the time of this machine's sockets for the traffic of a meeting, without a protocol.

    python -m rallypoint.bench.socket_baseline NODES

The process listens and counts. When NODES messages of REQUEST_BYTES have arrived, it answers each
connection with ANSWER_BYTES. The other side is `FloorFleet`, in a process of virtual nodes
(fleet.py). No protocol over these sockets can be faster than this in Python.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any, Final, cast

from rallypoint.bench.counting import Count, new_event_loop

REQUEST_BYTES: Final = 120
ANSWER_BYTES: Final = 200
BACKLOG: Final = 4_096
CONNECTS_AT_ONCE: Final = 512


class _Server(asyncio.Protocol):
    """One connection. All share `state`: the connections, and the number of received messages."""

    def __init__(self, state: _State) -> None:
        self._state = state
        self._bytes = 0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._state.connections.append(self)

    def data_received(self, data: bytes) -> None:
        self._bytes += len(data)
        while self._bytes >= REQUEST_BYTES:
            self._bytes -= REQUEST_BYTES
            self._state.one()

    def connection_lost(self, error: Exception | None) -> None:
        self._state.connections.remove(self)


class _State:
    def __init__(self, nodes: int) -> None:
        self.connections: list[_Server] = []
        self._nodes = nodes
        self._seen = 0

    def one(self) -> None:
        self._seen += 1
        if self._seen == self._nodes:
            self._seen = 0
            answer = b"." * ANSWER_BYTES
            for each in self.connections:
                assert each.transport is not None
                each.transport.write(answer)


class _Client(asyncio.Protocol):
    def __init__(self, answered: Callable[[], None]) -> None:
        self._answered = answered
        self._bytes = 0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._bytes += len(data)
        if self._bytes >= ANSWER_BYTES:
            self._bytes -= ANSWER_BYTES
            self._answered()


class FloorFleet:
    """The other side: as many bare connections as there would be nodes."""

    def __init__(self) -> None:
        self._clients: list[_Client] = []
        self._answers: Count | None = None

    async def connect(self, port: int, nodes: int) -> dict[str, Any]:
        """Connect and meet once: a cold meeting without a protocol."""
        loop = asyncio.get_running_loop()
        self._answers = Count(nodes)
        gate = asyncio.Semaphore(CONNECTS_AT_ONCE)

        async def one() -> None:
            async with gate:
                _, client = await loop.create_connection(
                    lambda: _Client(self._answered), "127.0.0.1", port
                )
            self._clients.append(client)
            assert client.transport is not None
            client.transport.write(b"." * REQUEST_BYTES)

        began_s = time.monotonic()
        await asyncio.gather(*(one() for _ in range(nodes)))
        await self._answers.all("were answered")
        return {"began_s": began_s, "formed_s": self._answers.last_s}

    def _answered(self) -> None:
        assert self._answers is not None
        self._answers.one()

    async def meet(self) -> dict[str, Any]:
        """Send one message on each connection, and wait for the answer on each."""
        self._answers = Count(len(self._clients))
        cpu_s, began_s = time.process_time(), time.monotonic()
        for client in self._clients:
            assert client.transport is not None
            client.transport.write(b"." * REQUEST_BYTES)
        await self._answers.all("were answered")
        return {
            "began_s": began_s,
            "formed_s": self._answers.last_s,
            "cpu_s": time.process_time() - cpu_s,
        }


async def _serve(nodes: int) -> None:
    loop = asyncio.get_running_loop()
    state = _State(nodes)
    server = await loop.create_server(lambda: _Server(state), "127.0.0.1", 0, backlog=BACKLOG)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)  # until the driver ends it


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1])))
