"""Bodies of HTTP requests and answers: what is read of them, and what they may hold."""

from __future__ import annotations

import asyncio
import socket
import zlib
from typing import Any

import pytest

from rallypoint.coordinator import http_api, sending
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.status import RunStatus
from rallypoint.wire import messages as wire
from tests.coordinator.peers import CLOSE_PATH, TOKEN, get, post, raw, run_of_many
from tests.loops import opened, run_clean, served, until

pytestmark = pytest.mark.sockets


BOMB = zlib.compress(b"\0" * (8 << 20), 9)
PACKED = {"Content-Encoding": "deflate"}


def test_a_body_is_never_decompressed():
    """aiohttp would decompress the body of a refused request: 1 MiB without a token cost 1 GiB."""

    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (_, port):
            assert (await post(port, CLOSE_PATH, BOMB, **PACKED))[0] == 401
            bearer = {"Authorization": f"Bearer {TOKEN}"}
            async with opened(f"http://127.0.0.1:{port}", token=TOKEN) as a:
                status, body = await post(port, CLOSE_PATH, BOMB, **PACKED, **bearer)
                assert (status, body["error"][:21]) == (400, "the body must be JSON")
                assert a.closed is None

    run_clean(main)


def test_a_body_that_does_not_fit_is_refused_with_what_does_not():
    async def main() -> None:
        async with served() as (_, port), opened(f"http://127.0.0.1:{port}") as a:
            path = CLOSE_PATH.removesuffix("close") + "scale"
            for text, said in (
                (b'{"min_nodes": 9, "max_nodes": 3}', "min_nodes (9) must not be above"),
                (b'{"min_nodes": 0, "max_nodes": 3}', "Expected `int` >= 1 - at `$.min_nodes`"),
                (b'{"min_nodes": 1}', "missing required field `max_nodes`"),
            ):
                status, body = await post(port, path, text)
                assert (status, said in body["error"]) == (400, True), body
                assert body["hint"].startswith("send JSON such as {")
            assert a.closed is None

    run_clean(main)


def test_bytes_after_a_refused_request_are_not_read():
    """aiohttp would read on for 10 s, and hold the connection as long."""
    head = f"POST {CLOSE_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n{{"

    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (_, port), asyncio.timeout(7):
            answer = await raw(port, head.encode())
            assert answer.startswith(b"HTTP/1.1 401 ")

    run_clean(main)


def test_a_deeply_nested_body_is_refused_as_no_json():
    async def main() -> None:
        async with served() as (_, port), opened(f"http://127.0.0.1:{port}"):
            deep = b'{"reason": ' + b"[" * 30_000
            assert (await post(port, CLOSE_PATH, deep))[0] == 400
            assert (await post(port, CLOSE_PATH, b"[" * 30_000))[0] == 400
            assert (await post(port, CLOSE_PATH, b'{"x": ' * 10_000))[0] == 400

    run_clean(main)


def test_no_answer_contains_a_version():
    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (_, port):
            for path in ("/healthz", "/api/v1/runs", "/none", wire.ATTACH_PATH):
                assert (await get(port, path))[2]["Server"] == "rallypoint"

    run_clean(main)


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 350])
def test_members_are_encoded_in_parts_and_are_one_answer(count: int):
    async def main() -> None:
        async with served() as (server, port):
            run_of_many(server, "run", count)
            status, told, _ = await get(port, "/api/v1/runs/run?members=340")
            assert status == 200
            assert [each["name"] for each in told["members"]] == [
                f"node{number}" for number in range(min(count, 340))
            ]
            assert told["members_total"] == count
            assert list(told) == list(RunStatus.__struct_fields__)

    run_clean(main)


def test_a_client_that_does_not_read_holds_little_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sending, "SEND_S", 0.5)

    async def main() -> None:
        async with served() as (server, port):
            run_of_many(server, "run", 20_000)
            made = 0
            encode = http_api._with_members

            def counted(*arguments: Any) -> Any:
                nonlocal made
                for piece in encode(*arguments):
                    made += len(piece)
                    yield piece

            monkeypatch.setattr(http_api, "_with_members", counted)
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            query = "GET /api/v1/runs/run?members=20000 HTTP/1.1\r\nHost: localhost\r\n\r\n"
            writer.write(query.encode())
            assert server._runner is not None
            open_ones = server._runner.server
            assert open_ones is not None
            await until(lambda: not open_ones.connections, "not cut", 20.0)
            assert 0 < made < 8 * 1024**2
            writer.close()
            del reader

    run_clean(main)


def test_a_list_of_runs_counts_until_it_is_read_and_is_limited():
    config = CoordinatorConfig(memory_bytes_max=16 * 1024**2)

    async def main() -> None:
        async with served(config) as (server, port):
            run = run_of_many(server, "run", 1)
            for number in range(200):
                run_of_many(server, f"{number}" + "x" * 200, 0)
            before = server.coordinator.budget.used
            status, told, _ = await get(port, "/api/v1/runs")
            assert status == 200
            assert told["coordinator"]["memory_bytes_max"] == 16 * 1024**2
            (shown,) = [each for each in told["runs"] if each["run_id"] == "run"]
            assert shown["memory_bytes"] == run.share.used
            assert server.coordinator.budget.used == before
            server.coordinator.people.add(14 * 1024**2)
            status, told, _ = await get(port, "/api/v1/runs")
            assert status == 503
            assert "16 MiB" in told["error"]
            assert "--memory" in told["hint"]

    run_clean(main)
