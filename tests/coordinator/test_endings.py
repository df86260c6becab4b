"""How the end of a node's connection reaches the run: over real sockets, in both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from rallypoint.client.sockets import ResettingSocket
from rallypoint.client.transport import Connection, connect
from rallypoint.clock import SETTLED_S, StallProofClock
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.core import events as on
from rallypoint.core.values import Address, ConnectionEnd, NodeInfo, RunSettings, Stamp
from rallypoint.launch.guard import Guard
from rallypoint.net import bind
from rallypoint.security.access import Access
from rallypoint.security.authority import new_host_token
from rallypoint.wire import messages as wire
from tests.loops import needs_ipv6, until

pytestmark = pytest.mark.sockets

uvloop = pytest.importorskip("uvloop")
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
RUN = RunSettings(min_nodes=1, max_nodes=2, reconnect_grace_s=600.0)

Main = Callable[[], Coroutine[Any, Any, None]]
TOKENS = {"clear": "", "tls": new_host_token()}
TOKEN = contextvars.ContextVar("TOKEN", default="")


@pytest.fixture(params=TOKENS, autouse=True)
def token(request: pytest.FixtureRequest) -> Iterator[None]:
    """The token of each coordinator and node here: without one in clear, and with one by TLS."""
    before = TOKEN.set(TOKENS[request.param])
    yield
    TOKEN.reset(before)


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Main], None]:
    """Run a coroutine in each event loop."""

    def in_loop(main: Main) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await main()

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(bounded())

    return in_loop


class Ends:
    """The ended connections that runs got as events: (node, how), in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: list[tuple[str, ConnectionEnd]] = []
        self.said: list[str] = []
        post = HostedRun.post

        def noted(run: HostedRun, event: on.Event) -> None:
            if isinstance(event, on.ConnectionLost):
                self.found.append((event.node.name, event.how))
            if isinstance(event, on.NodeLeft):
                self.said.append(event.reason)
            post(run, event)

        monkeypatch.setattr(HostedRun, "post", noted)

    async def of(self, name: str) -> ConnectionEnd:
        await until(lambda: name in dict(self.found), f"no end of {name} was told")
        [how] = [how for each, how in self.found if each == name]
        return how


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    return Ends(monkeypatch)


@contextlib.asynccontextmanager
async def served(
    host: str | None = "127.0.0.1", clock: StallProofClock | None = None
) -> AsyncIterator[tuple[CoordinatorServer, int]]:
    sock = bind(host, 0)
    port = sock.getsockname()[1]
    async with CoordinatorServer(CoordinatorConfig(token=TOKEN.get())) as server:
        if clock is not None:
            server.coordinator.clock = clock
        await server.start([sock])
        yield server, port


class Raw:
    """A node of which the test sees the socket."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection = connection
        self.name = name
        self.heard: list[wire.FromCoordinator] = []
        connection.on_message = lambda data: self.heard.append(wire.decode_from_coordinator(data))

    @property
    def sock(self) -> ResettingSocket:
        return self.connection._socket

    def send(self, kind: type, *fields: object) -> None:
        self.connection.send(wire.encode(kind(self.heard[-1].stamp, *fields)))

    def die(self) -> None:
        """As the kernel does it for a process that has ended: a FIN, and not a word."""
        self.sock.ends_in_order = True
        assert self.connection._transport is not None
        self.connection._transport.abort()

    async def says(self, kind: type) -> None:
        await until(lambda: any(isinstance(each, kind) for each in self.heard), f"no {kind}")


async def attached(
    port: int, name: str = "a", host: str = "127.0.0.1", source: Address | None = None
) -> Raw:
    address = Address(host, port)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    connection = await connect(address, (host, port), family, Access(TOKEN.get()))
    node = Raw(connection, name)
    info = NodeInfo(name, 1, "host")
    attach = wire.Attach(
        Stamp(), wire.VERSION, "run", info, RUN, source=source or connection.source
    )
    connection.send(wire.encode(attach))
    await node.says(wire.Welcome)
    return node


class Source:
    """The machine's clock, with what a test adds to it."""

    def __init__(self) -> None:
        self.added_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.added_s


# -- what the transport saw ------------------------------------------------------------------------


def test_r8_a_fin_of_a_direct_node_means_its_process_ended(run: Any, ends: Ends) -> None:
    async def main() -> None:
        async with served() as (server, port):
            node = await attached(port)
            node.die()
            assert await ends.of("a") is ConnectionEnd.PROCESS_ENDED
            roster = server.coordinator.runs["run"].membership.roster
            await until(lambda: "a" not in roster, "it was not lost")

    run(main)


@needs_ipv6
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_socket_of_both_families_sees_ipv4_peers_as_they_are(
    run: Any, ends: Ends, host: str
) -> None:
    async def main() -> None:
        async with served(None) as (_, port):
            (await attached(port, host=host)).die()
            assert await ends.of("a") is ConnectionEnd.PROCESS_ENDED

    run(main)


def test_messages_before_the_fin_count_first(run: Any, ends: Ends) -> None:
    async def main() -> None:
        async with served() as (server, port):
            node = await attached(port)
            await attached(port, "b")
            node.send(wire.Goodbye, "last words")
            node.die()
            await ends.of("a")
            assert ends.said == ["last words"]
            change = server.coordinator.runs["run"].membership.departure_history.change("a")
            assert change is not None
            assert change.detail == "last words"

    run(main)


def test_a_fin_of_a_node_behind_a_proxy_proves_nothing(run: Any, ends: Ends) -> None:
    async def main() -> None:
        async with served() as (server, port):
            proxy = await asyncio.start_server(lambda r, w: relay(r, w, port), "127.0.0.1", 0)
            async with proxy:
                node = await attached(proxy.sockets[0].getsockname()[1])
                node.die()
                assert await ends.of("a") is ConnectionEnd.FIN
                assert "a" in server.coordinator.runs["run"].membership.roster

    run(main)


async def relay(up: asyncio.StreamReader, down: asyncio.StreamWriter, port: int) -> None:
    there, back = await asyncio.open_connection("127.0.0.1", port)

    async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                sink.write(data)
            sink.close()

    await asyncio.gather(carry(up, back), carry(there, down))


def test_a_node_of_an_older_release_has_the_grace(run: Any, ends: Ends) -> None:
    """It tells no address, and closes by a FIN whenever it likes."""

    async def main() -> None:
        async with served() as (_, port):
            node = await attached(port, source=Address("", 0))
            node.die()
            assert await ends.of("a") is ConnectionEnd.FIN

    run(main)


def test_a_websocket_close_is_no_death(run: Any, ends: Ends) -> None:
    async def main() -> None:
        async with served() as (server, port):
            node = await attached(port)
            node.connection.close("as agreed")
            await node.connection.wait_closed()
            assert await ends.of("a") is ConnectionEnd.CLOSE
            assert "a" in server.coordinator.runs["run"].membership.roster

    run(main)


def test_a_node_that_drops_its_connection_sends_a_reset(run: Any, ends: Ends) -> None:
    async def main() -> None:
        async with served() as (server, port):
            node = await attached(port)
            node.connection.abort("silence")
            assert await ends.of("a") is ConnectionEnd.RESET
            assert "a" in server.coordinator.runs["run"].membership.roster

    run(main)


def test_a_connection_ended_by_the_coordinator_counts_as_its_own_end(run: Any, ends: Ends) -> None:
    async def main() -> None:
        async with served() as (server, port):
            node, other = await attached(port), await attached(port, "b")
            sessions = {s.node.name: s for s in server.coordinator.sessions.values() if s.node}
            sessions["a"].close("not any more")
            sessions["b"].outlet.abort()
            assert await ends.of("a") is ConnectionEnd.OURS
            assert await ends.of("b") is ConnectionEnd.OURS
            await node.connection.wait_closed()
            await other.connection.wait_closed()

    run(main)


def test_a_fin_after_a_stall_of_the_coordinator_proves_nothing(run: Any, ends: Ends) -> None:
    async def main() -> None:
        source = Source()
        async with served(clock=StallProofClock(source)) as (server, port):
            nodes = [await attached(port, name) for name in ("a", "b")]
            source.added_s += 30.0
            for node in nodes:
                node.send(wire.Heartbeat)
            await nodes[0].says(wire.Beat)
            nodes[0].die()
            assert await ends.of("a") is ConnectionEnd.FIN

            for _ in range(int(SETTLED_S / 0.1) + 1):  # it runs again, and hears the node again
                source.added_s += 0.1
                server.coordinator.now_s()
            nodes[1].heard.clear()
            nodes[1].connection.send(wire.encode(wire.Heartbeat(Stamp())))
            await nodes[1].says(wire.Beat)
            nodes[1].die()
            assert await ends.of("b") is ConnectionEnd.PROCESS_ENDED

    run(main)


def test_an_unreachable_peer_is_a_timeout(run: Any, ends: Ends) -> None:
    async def main() -> None:
        async with served() as (server, port):
            node = await attached(port)
            [session] = server.coordinator.sessions.values()
            transport: Any = session.outlet._transport  # type: ignore[attr-defined]
            transport.get_protocol().connection_lost(TimeoutError(110, "Connection timed out"))
            assert await ends.of("a") is ConnectionEnd.TIMEOUT
            node.connection.abort("the test is over")

    run(main)


def test_r8_a_death_is_known_even_if_a_write_fails_first(run: Any, ends: Ends) -> None:
    """What is sent to a dead peer comes back as a reset, and the next write fails, with the FIN and
    what the node said before it still unread."""

    async def main() -> None:
        async with served() as (server, port):
            nodes = [await attached(port, name) for name in ("a", "b", "c")]
            outlets = [session.outlet for session in server.coordinator.sessions.values()]
            for node in nodes:
                node.connection._transport.pause_reading()  # type: ignore[union-attr]
            nodes[1].send(wire.Goodbye, "last words")
            for node in nodes:
                # As its kernel does it; and not the event loop, which would read in between.
                node.sock.shutdown(socket.SHUT_WR)
                node.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                close_the_number_of(node.sock)
            for _ in range(2):
                for outlet in outlets:
                    outlet.send(b"x")
            if TOKEN.get():
                # The rest of a TLS connection cannot be read then, so nothing is proved.
                expected, said = ConnectionEnd.RESET, []
            else:
                expected, said = ConnectionEnd.PROCESS_ENDED, ["last words"]
            assert await ends.of("a") is expected
            assert await ends.of("c") is expected
            await ends.of("b")
            assert ends.said == said
            for node in nodes:
                node.connection.abort("the test is over")

    run(main)


# -- a live agent, of whose connection a guard has a copy ------------------------------------------


@contextlib.asynccontextmanager
async def guarded(port: int) -> AsyncIterator[tuple[Raw, Guard]]:
    """An attached node, and a guard process that has a copy of its connection."""
    guard = Guard()
    guard.start()
    try:
        node = await attached(port)
        node.connection.keep_with(guard)
        await has_a_copy(guard, node)
        yield node, guard
    finally:
        await guard.close(20.0)


async def has_a_copy(guard: Guard, node: Raw) -> None:
    name = os.readlink(f"/proc/self/fd/{node.sock.fileno()}")  # noqa: PTH115
    await until(lambda: name in sockets_of(guard), "the guard has no copy")


def sockets_of(guard: Guard) -> list[str]:
    """Each descriptor of the guard that is a socket; none while there is no guard."""
    found = []
    for entry in Path(f"/proc/{guard.pid or 0}/fd").glob("*"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(entry))  # noqa: PTH115
    return [each for each in found if each.startswith("socket:")]


async def is_heard(node: Raw) -> None:
    """The coordinator answers on this connection."""
    node.heard.clear()
    node.connection.send(wire.encode(wire.Heartbeat(Stamp())))
    await node.says(wire.Beat)


@pytest.mark.processes
def test_r8_a_live_agent_drops_its_connection_by_a_reset_in_spite_of_its_guard(
    run: Any, ends: Ends
) -> None:
    async def main() -> None:
        async with served() as (_, port), guarded(port) as (node, guard):
            node.connection.abort("silence")
            assert await ends.of("a") is ConnectionEnd.RESET
            await until(lambda: len(sockets_of(guard)) == 1, "the guard has kept its copy")

    run(main)


@pytest.mark.processes
def test_r8_a_guard_that_reads_late_ends_no_connection_of_a_live_agent(
    run: Any, ends: Ends
) -> None:
    async def main() -> None:
        async with served() as (_, port), guarded(port) as (node, guard):
            assert guard.pid is not None
            os.kill(guard.pid, signal.SIGSTOP)
            node.connection.abort("silence")
            await until(lambda: node.sock.fileno() < 0, "the connection is not closed here")
            os.kill(guard.pid, signal.SIGCONT)
            assert await ends.of("a") is ConnectionEnd.RESET

    run(main)


@pytest.mark.processes
def test_r8_the_end_of_a_guard_ends_no_connection_of_a_live_agent(run: Any, ends: Ends) -> None:
    async def main() -> None:
        async with served() as (_, port), guarded(port) as (node, guard):
            first = guard.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            await until(lambda: guard.pid not in (None, first), "there is no new guard")
            await has_a_copy(guard, node)
            await is_heard(node)
            await guard.close(20.0)
            await is_heard(node)
            assert ends.found == []
            node.connection.abort("the test is over")
            assert await ends.of("a") is ConnectionEnd.RESET

    run(main)


RESET = struct.pack("ii", 1, 0)


def close_the_number_of(sock: socket.socket) -> None:
    """Close the socket's descriptor, as the end of its process does."""
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), sock.fileno(), inheritable=False)
