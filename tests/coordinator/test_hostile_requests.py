"""Requests that no client of ours makes, for which aiohttp has its own answers and logs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging

import pytest
from aiohttp.http_exceptions import HttpProcessingError

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.wire import messages as wire
from tests.fuzz.watching import Watch
from tests.fuzz.world import TOKEN as FUZZ_TOKEN
from tests.fuzz.world import World, turns
from tests.loops import opened, run_clean, run_virtual, served, until

pytestmark = pytest.mark.sockets

TOKEN = "a-token-with-more-than-128-bits-of-chance"
UPGRADE = (
    f"GET {wire.ATTACH_PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
)
PLAIN = UPGRADE.replace("Upgrade\r\nSec", "Upgrade, close\r\nSec")
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


async def answer(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        is_open = head.startswith(b"HTTP/1.1 101 ")
        return head if is_open else head + await reader.read()
    finally:
        writer.close()


BELOW_THE_APPLICATION = {
    "no method": b"\x1b[31m\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "another version": b"GET / HTTP/9.9\r\n\r\n",
    "no header": b"GET / HTTP/1.1\r\nHost\r\n\r\n",
    "a length that is none": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a chunk that is none": b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n",
    "a long line": b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n\r\n",
    "a long header": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 9_000 + b"\r\n\r\n",
    "a name in the path": b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}
WITHIN_IT = {
    "health": b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "nothing there": b"GET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "a method": b"DELETE /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "an expectation": b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: x\r\n\r\n",
    "a WebSocket": (UPGRADE + KEY + "\r\n").encode(),
}


@pytest.mark.parametrize("token", ["", TOKEN], ids=["open", "token"])
@pytest.mark.parametrize(
    "data",
    [*BELOW_THE_APPLICATION.values(), *WITHIN_IT.values()],
    ids=[*BELOW_THE_APPLICATION, *WITHIN_IT],
)
def test_no_answer_names_a_release(data: bytes, token: str) -> None:
    async def main() -> bytes:
        async with served(CoordinatorConfig(token=token)) as (_, port):
            return await answer(port, data)

    told = run_clean(main)
    heads = [part for part in told.split(b"HTTP/1.1 ") if part]
    assert heads
    for head in heads:
        is_on_the_way = head.startswith(b"100 ")
        assert is_on_the_way or b"\r\nServer: rallypoint\r\n" in head
    assert b"aiohttp" not in told
    assert b"Python/" not in told


@pytest.mark.parametrize(
    "key",
    ["", "Sec-WebSocket-Key: é\r\n", "Sec-WebSocket-Key: =\r\n", "Sec-WebSocket-Key: eA==\r\n"],
    ids=["none", "no ASCII", "no base64", "short"],
)
def test_a_handshake_with_a_bad_key_is_refused(key: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> bytes:
        async with served() as (_, port):
            return await answer(port, (PLAIN + key + "\r\n").encode())

    with caplog.at_level(logging.INFO):
        assert run_clean(main).startswith(b"HTTP/1.1 426 ")
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


def test_a_peer_that_pings_and_disconnects_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """By the time that a ping is answered, the connection may be closing."""

    async def main() -> None:
        async with served() as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write((UPGRADE + KEY + "\r\n").encode())
            await reader.readuntil(b"\r\n\r\n")
            (session,) = server.coordinator.sessions.values()
            protocol = session.outlet._transport.get_protocol()  # type: ignore[attr-defined]
            ping = b"\x89\x80\0\0\0\0"
            protocol.data_received(ping)
            session.outlet.abort()
            protocol.data_received(ping)
            assert await reader.read() in (b"", b"\x8a\x00")
            writer.close()

    with caplog.at_level(logging.INFO):
        run_clean(main)
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


NO_TEXT = {
    "an expectation": b"Expect: \xa0\r\n",
    "an origin": b"Origin: http://\xa0\r\n",
    "a host": b"X-Forwarded-Host: \xff\r\n",
    "a token": b"Authorization: Bearer \xff\r\n",
}


@pytest.mark.parametrize("path", [b"/healthz", b"/api/v1/runs", b"/nowhere/\xff"])
@pytest.mark.parametrize("header", NO_TEXT.values(), ids=NO_TEXT)
@pytest.mark.parametrize("token", ["", TOKEN], ids=["open", "token"])
def test_bytes_that_are_no_text_cause_no_error_of_ours(
    header: bytes, path: bytes, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An answer that repeats them was a 500 with a traceback, even without a token."""

    async def main() -> bytes:
        async with served(CoordinatorConfig(token=token)) as (_, port):
            head = b"GET " + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            return await answer(port, head + header + b"\r\n")

    with caplog.at_level(logging.INFO):
        told = run_clean(main)
    assert told.split(b" ")[1] in (b"200", b"400", b"401", b"403", b"404", b"417")
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "rest",
    [b"Content-Length: 9\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", b"\r\n"],
    ids=["a part", "a chunk", "none"],
)
def test_a_disconnect_within_a_body_is_no_error(
    rest: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with served() as (server, port), opened(f"http://127.0.0.1:{port}"):
            count = len(server.coordinator.sessions)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /api/v1/runs/run/close HTTP/1.1\r\nHost: 127.0.0.1\r\n" + rest)
            assert server._runner is not None
            assert server._runner.server is not None
            connections = server._runner.server
            await until(lambda: connections.requests_count > 1, "the request has not come")
            writer.transport.abort()
            await until(lambda: len(connections.connections) == count, "it is still there")
            assert await reader.read() is not None

    with caplog.at_level(logging.INFO):
        run_clean(main)
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


LARGE = {
    "headers without an end": (UPGRADE + ("X-Header: " + "x" * 4_000 + "\r\n") * 260).encode(),
    "frames behind a request": (UPGRADE + KEY + "\r\n").encode() + b"\x82\x05hello" * 1_000,
}


@pytest.mark.parametrize(
    "data",
    [*BELOW_THE_APPLICATION.values(), *LARGE.values()],
    ids=[*BELOW_THE_APPLICATION, *LARGE],
)
def test_an_unreadable_request_leaves_nothing_behind(data: bytes) -> None:
    """An error whose traceback leads to itself lasts until garbage is collected, with all it read.

    Collections are rare in a coordinator: 200 such requests took 100 MiB.
    """

    async def ask(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        with contextlib.suppress(OSError):
            await reader.read()
        writer.transport.abort()

    def errors() -> list[object]:
        # By its type: some objects of other libraries warn when they are asked for their class.
        return [each for each in gc.get_objects() if issubclass(type(each), HttpProcessingError)]

    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (_, port):
            gc.collect()
            gc.disable()
            try:
                for _ in range(3):
                    await ask(port)
                await until(lambda: not errors(), "an error is kept")
            finally:
                gc.enable()

    run_clean(main)


def test_a_disconnect_before_100_continue_is_no_error() -> None:
    """aiohttp answers an expectation before any handler is asked."""

    async def main() -> None:
        async with World() as world:
            transport = world.connect()
            transport.bring(b"POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n")
            transport.close()
            await turns(20)

    with Watch() as watch:
        run_virtual(main())
        watch.check()


@pytest.mark.parametrize("count", range(8))
def test_a_disconnect_at_any_time_before_the_body_was_read_is_no_error(count: int) -> None:
    """Also when the handler asks for the body after the connection has ended."""
    head = (
        f"POST /api/v1/runs/x/close HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {FUZZ_TOKEN}\r\n"
    )

    async def main() -> None:
        async with World() as world:
            transport = world.connect()
            transport.bring(f"{head}Content-Length: 9\r\n\r\n{{".encode())
            await turns(count)
            transport.end(ConnectionResetError(104, "reset"))
            await turns(20)

    with Watch() as watch:
        run_virtual(main())
        watch.check()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/api/v1/runs/", 404),
        ("POST", "/api/v1/runs/r/nothing", 404),
        ("DELETE", "/api/v1/runs", 405),
        ("POST", "/", 405),
    ],
)
@pytest.mark.parametrize("token", ["", TOKEN], ids=["open", "token"])
def test_what_aiohttp_refuses_is_an_error_in_json_as_all_others(
    method: str, path: str, status: int, token: str
) -> None:
    request = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Authorization: Bearer {TOKEN}\r\n\r\n"
    )

    async def main() -> bytes:
        async with served(CoordinatorConfig(token=token)) as (_, port):
            return await answer(port, request.encode())

    head, _, body = run_clean(main).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert (b"\r\nAllow: " in head) == (status == 405)
    found = json.loads(body)
    assert found["error"]
    assert found["hint"]
