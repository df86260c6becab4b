"""An HTTP client with a token cannot hold descriptors or memory for ever."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest

from rallypoint.coordinator import actions_api, http_requests, sending
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.server import CoordinatorServer
from tests.coordinator.peers import get
from tests.loops import opened, run_clean, served, until

pytestmark = pytest.mark.sockets

TOKEN = "a-token-with-more-than-128-bits-of-chance"
SHOWN = f"Host: a\r\nAuthorization: Bearer {TOKEN}\r\n"
ENDLESS = f"POST /api/v1/runs/run/close HTTP/1.1\r\n{SHOWN}Content-Length: 9\r\n\r\n{{".encode()
LIST = f"GET /api/v1/runs HTTP/1.1\r\n{SHOWN}\r\n".encode()


@contextlib.asynccontextmanager
async def sent(port: int, data: bytes) -> AsyncIterator[asyncio.StreamReader]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**10)
    try:
        writer.write(data)
        yield reader
    finally:
        writer.close()


def open_now(server: CoordinatorServer) -> int:
    return server._requests._open.total


def waits(server: CoordinatorServer) -> bool:
    """Whether a part of an answer is in no kernel yet."""
    assert server._runner is not None
    web = server._runner.server
    assert web is not None
    open_now = [each.transport for each in web.connections if each.transport is not None]
    return any(each.get_write_buffer_size() for each in open_now)


def test_a_body_that_never_ends_ends_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions_api, "BODY_WITHIN_S", 0.1)

    async def main() -> bytes:
        async with served(CoordinatorConfig(token=TOKEN)) as (server, port):
            async with sent(port, ENDLESS) as reader:
                said = await reader.read()
            assert open_now(server) == 0
            return said

    assert run_clean(main).startswith(b"HTTP/1.1 408 ")


def test_open_requests_are_bounded_and_nodes_can_still_connect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_requests, "OPEN_MAX", 8)

    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (server, port):
            async with contextlib.AsyncExitStack() as held:
                for _ in range(7):  # The last one is for accounts that have none.
                    await held.enter_async_context(sent(port, ENDLESS))
                await until(lambda: open_now(server) == 7, "seven are open")
                status, body, _ = await get(port, "/api/v1/runs", Authorization=f"Bearer {TOKEN}")
                assert status == 503
                assert "too many open requests: 7" in body["error"]
                async with opened(f"http://127.0.0.1:{port}", token=TOKEN) as node:
                    assert node.is_connected
            await until(lambda: open_now(server) == 0, "they have ended")
            status, _, _ = await get(port, "/api/v1/runs", Authorization=f"Bearer {TOKEN}")
            assert status == 200

    run_clean(main)


def test_unread_small_answers_end_their_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sending, "SEND_S", 0.2)

    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (server, port):
            for number in range(50):
                server.coordinator.open_run(f"{number:04d}" + "x" * 1_000)
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**10)
            assert server._runner is not None
            web = server._runner.server
            assert web is not None
            await until(lambda: web.connections, "it has connected")
            # More in all than the kernel keeps for a peer that does not read.
            with contextlib.suppress(ConnectionError):
                for _ in range(2_000):
                    writer.write(LIST)
            await until(lambda: not web.connections, "it was cut")
            assert open_now(server) == 0
            writer.close()

    with caplog.at_level(logging.INFO):
        run_clean(main)
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


def test_a_disconnect_within_a_large_answer_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (server, port):
            for number in range(1_000):
                server.coordinator.open_run(f"{number:04d}" + "x" * 1_000)
            for _ in range(3):
                async with sent(port, LIST * 20):
                    await until(lambda: waits(server), "the kernel takes no more")
            await until(lambda: open_now(server) == 0, "they have ended")
            assert server.coordinator.people.used == 0

    with caplog.at_level(logging.INFO):
        run_clean(main)
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]
