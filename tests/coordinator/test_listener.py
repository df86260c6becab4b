"""Connections without a token are limited, and a client with the token is still admitted."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import resource
import socket
import time
from collections.abc import AsyncIterator

import pytest

from rallypoint.coordinator import listener as listening
from rallypoint.coordinator import server as serving
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.http_connection import HttpConnection
from rallypoint.security.authority import new_host_token
from tests.loops import opened, run_clean, run_virtual, served, until

pytestmark = pytest.mark.sockets

TOKEN = "correct-horse"
ASK = b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n"
ASK_WITH_TOKEN = ASK.replace(b"\r\n\r\n", f"\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())


@contextlib.asynccontextmanager
async def connections_without_token(port: int, count: int) -> AsyncIterator[list[socket.socket]]:
    """Connections that send nothing."""
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    try:
        yield held
    finally:
        for each in held:
            each.close()


def open_count(server: serving.CoordinatorServer) -> int:
    assert server._runner is not None
    assert server._runner.server is not None
    return len(server._runner.server.connections)


def test_connections_without_a_token_are_bounded_and_a_token_still_connects() -> None:
    config = CoordinatorConfig(token=TOKEN, strangers_max=8, attach_timeout_s=0.5)

    async def main() -> None:
        most = 0
        async with served(config) as (server, port), connections_without_token(port, 40):
            endpoint = f"http://127.0.0.1:{port}"
            await until(lambda: open_count(server) == 8, "the bound is not used")
            joining = asyncio.create_task(_join(endpoint))
            while not joining.done():
                most = max(most, open_count(server))
                await asyncio.sleep(0.01)
            await joining
        assert most <= 9  # and the node

    async def _join(endpoint: str) -> None:
        async with opened(endpoint, token=TOKEN):
            pass

    run_clean(main)


async def until_closed(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    sock.setblocking(False)
    with contextlib.suppress(ConnectionResetError):
        assert await loop.sock_recv(sock, 1) == b""


def test_at_the_bound_connections_without_a_token_have_less_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listening, "CROWDED_S", 0.6)
    config = CoordinatorConfig(token=TOKEN, strangers_max=2, attach_timeout_s=600.0)

    async def main() -> None:
        async with served(config) as (_, port), connections_without_token(port, 2) as held:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(20.0):  # A silent connection has 600 s otherwise.
                # When the first one is closed there is room again, and the second may stay.
                await until_closed(loop, held[0])
                async with connections_without_token(port, 1):
                    await until_closed(loop, held[1])

    run_clean(main)


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_at_the_bound_a_silent_handshake_has_less_time_too(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A connection in its TLS handshake takes up as much room as one that is silent after it."""
    uvloop = pytest.importorskip("uvloop")
    factory = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}[kind]
    monkeypatch.setattr(listening, "CROWDED_S", 0.6)
    token = new_host_token()
    config = CoordinatorConfig(token=token, strangers_max=2, attach_timeout_s=600.0)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with served(config) as (server, port), connections_without_token(port, 2) as held:
            async with asyncio.timeout(20.0):  # A handshake has 600 s otherwise.
                await until_closed(loop, held[0])
                async with opened(f"http://127.0.0.1:{port}", token=token):
                    pass
            assert server._listener is not None
            held[1].close()
            await server._listener.entered()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


def test_a_connection_that_is_cut_as_its_handshake_ends_is_closed() -> None:
    class Owner(asyncio.Protocol):
        ends = 0

        def connection_lost(self, error: Exception | None) -> None:
            self.ends += 1

    async def main() -> None:
        owner, (near, far) = Owner(), socket.socketpair()
        limits = listening.ListenerLimits()
        listener = listening.Listener((), lambda: owner, lambda: 0, limits)
        stranger = listener._new_stranger(near)
        with far:
            stranger.cut()
            await asyncio.get_running_loop().connect_accepted_socket(lambda: stranger, near)
            await until(lambda: owner.ends == 1, "it is open")
            assert not listener._strangers

    run_clean(main)


def test_small_requests_without_a_token_keep_no_connection() -> None:
    """Each /healthz without a token is answered, and its connection closed."""

    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(ASK)
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"Connection: close" in answer
            writer.close()

    run_clean(main)


def test_a_connection_that_showed_the_token_stays() -> None:
    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN, attach_timeout_s=0.6)) as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            async with connections_without_token(port, 1):
                writer.write(ASK_WITH_TOKEN)
                assert b" 200 " in await reader.readuntil(b"ok\n")
                await until(lambda: open_count(server) == 1, "the stranger was not cut")
            writer.write(ASK_WITH_TOKEN)
            assert b" 200 " in await reader.readuntil(b"ok\n")
            writer.close()

    run_clean(main)


def test_a_token_that_came_during_a_stall_is_read_first() -> None:
    """R8: a stall of the coordinator does not count as time of any peer."""

    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN, attach_timeout_s=0.6)) as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await until(lambda: open_count(server) == 1, "it was not taken")
            writer.write(ASK_WITH_TOKEN)
            time.sleep(1.5)  # noqa: ASYNC251 - the stall itself
            assert b" 200 " in await reader.readuntil(b"ok\n")
            writer.close()

    run_clean(main)


def test_connections_are_bounded_by_spare_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger and the workers need descriptors too. A waiting client is admitted later."""
    monkeypatch.setattr(serving, "connections_max", lambda: 4)

    async def main() -> None:
        async with served() as (server, port), connections_without_token(port, 10) as held:
            await until(lambda: open_count(server) == 4, "the bound is not used")
            last = held[-1]
            last.sendall(ASK)
            last.setblocking(False)
            for each in held[:-1]:
                each.close()
            loop = asyncio.get_running_loop()
            assert (await loop.sock_recv(last, 100)).startswith(b"HTTP/1.1 200 ")

    run_clean(main)


@pytest.mark.parametrize(
    ("soft", "left"), [(16, 4), (256, 192), (1_024, 768), (20_000, 19_488), (-1, 1_000_000)]
)
def test_a_part_of_the_descriptors_is_reserved(
    monkeypatch: pytest.MonkeyPatch, soft: int, left: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    assert listening.connections_max() == left


def test_without_descriptors_the_listener_waits_and_logs_it_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Full(socket.socket):
        """A listening socket of a process that has no descriptor left."""

        is_full = True
        tries = 0

        def _accept(self) -> tuple[int, object]:
            if self.is_full:
                self.tries += 1
                raise OSError(errno.EMFILE, "Too many open files")
            taken: tuple[int, object] = super()._accept()  # type: ignore[misc]
            return taken

    class Greeter(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.WriteTransport)
            transport.write(b"hello")
            transport.close()

    async def main() -> None:
        with Full() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            sock.setblocking(False)
            limits = listening.ListenerLimits()
            listener = listening.Listener([sock], Greeter, lambda: 0, limits)
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            listener.start()
            reader, writer = await asyncio.open_connection(*sock.getsockname())
            await until(lambda: sock.tries >= 2, "it did not try again")
            assert loop.time() - began_s >= 0.99  # Another try would fail, and costs time.
            sock.is_full = False
            assert await reader.read() == b"hello"
            writer.close()
            listener.close()
            await listener.entered()

    with caplog.at_level(logging.ERROR, "rallypoint.coordinator"):
        run_clean(main)
    told = [r.message for r in caplog.records if r.name == "rallypoint.coordinator"]
    assert told == [
        "no connection can be accepted: Too many open files; "
        "raise this process's limit on open files"
    ]


def test_without_connections_to_check_no_timer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator in a node must not wake its machine without need."""
    looks: list[object] = []
    monkeypatch.setattr(listening.Listener, "_look", lambda self: looks.append(self))

    async def main() -> None:
        limits = listening.ListenerLimits()
        idle = listening.Listener((), asyncio.Protocol, lambda: 0, limits)
        idle.start()
        await asyncio.sleep(100 * listening.LOOK_S)
        assert not looks
        idle.close()

    run_virtual(main())


def test_little_of_a_request_is_read_before_its_head_is_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loop that reads 256 KiB at once would keep that much for each of 512 connections."""
    taken: list[int] = []
    take = HttpConnection.data_received

    def data_received(self: HttpConnection, data: bytes) -> None:
        taken.append(len(data))
        take(self, data)

    monkeypatch.setattr(HttpConnection, "data_received", data_received)
    size = 4 << 20
    head = f"POST /api/v1/runs/x/close HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"

    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.encode() + bytes(size))
            assert b" 401 " in await reader.readline()
            writer.transport.abort()

    run_clean(main)
    assert 0 < max(taken) <= listening.STRANGER_READ_BYTES
    assert sum(taken) < 32 * listening.STRANGER_READ_BYTES


def test_a_request_in_many_pieces_is_read_whole() -> None:
    """The token, or a body, may follow after more bytes than are read at once."""
    padding = "".join(f"X-{number}: {'a' * 4_000}\r\n" for number in range(8))
    body = b'{"reason":"' + b"x" * 30_000 + b'"}'
    head = (
        f"POST /api/v1/runs/run/close HTTP/1.1\r\nHost: a\r\n{padding}"
        f"Authorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
    )

    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            async with opened(f"http://127.0.0.1:{port}", token=TOKEN):
                writer.write(head.encode() + body)
                assert b" 200 " in await reader.readline()
            writer.close()

    run_clean(main)


def test_listeners_in_two_threads_read_into_different_buffers() -> None:
    """A thread that reads lets the other one run before it hands on what it has read."""

    async def buffer() -> memoryview:
        limits = listening.ListenerLimits()
        listener = listening.Listener((), asyncio.Protocol, lambda: 0, limits)
        with socket.socket() as connection:
            return listener._new_stranger(connection).get_buffer(-1)

    one, another = asyncio.run(buffer()), asyncio.run(buffer())
    one[:5], another[:5] = b"first", b"other"
    assert bytes(one[:5]) == b"first"


def test_an_ended_connection_without_a_token_leaves_no_garbage() -> None:
    """A transport that lasts until garbage is collected makes a long collection of thousands."""

    def all_gone() -> list[object]:
        name = "_SelectorSocketTransport"
        return [o for o in gc.get_objects() if type(o).__name__ == name and o.is_closing()]

    def gone() -> list[object]:
        return [o for o in all_gone() if not any(o is each for each in before)]

    gc.collect()
    before = all_gone()  # what other tests have left, and something else keeps

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            sock.setblocking(False)
            came = 0

            class Counter(asyncio.Protocol):
                def connection_made(self, transport: asyncio.BaseTransport) -> None:
                    nonlocal came
                    came += 1

            listener = listening.Listener([sock], Counter, lambda: 0, listening.ListenerLimits())
            listener.start()
            gc.collect()
            gc.disable()
            try:
                for _ in range(3):
                    socket.create_connection(sock.getsockname()).close()
                await until(lambda: came == 3, "not all were let in")
                await until(lambda: not listener._strangers, "a stranger has not gone")
                await until(lambda: not gone(), "its transport is kept")
            finally:
                gc.enable()
            listener.close()
            await listener.entered()

    run_clean(main)
