"""The coordinator on a real port: people over HTTP, nodes over WebSocket, other clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import struct
import zlib
from typing import Any

import aiohttp
import msgspec
import pytest

from rallypoint import errors
from rallypoint.coordinator import http_api, sending, status
from rallypoint.coordinator import server as serving
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.listener import Listener
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.coordinator.status import RunStatus
from rallypoint.coordinator.websocket import FrameReader
from rallypoint.core import events as on
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.values import Address, Failure, FailureKind, NodeInfo, RunSettings
from rallypoint.net import bind
from rallypoint.wire import messages as wire
from tests.loops import BOOTSTRAP, node, opened, run_clean, served, until
from tests.network import stamp

pytestmark = pytest.mark.sockets

TWO = RunSettings(min_nodes=2, max_nodes=2, max_restarts=None)
TOKEN = "correct-horse"


def attach(name: str = "a") -> bytes:
    info = NodeInfo(name, 1, "host")
    return wire.encode(wire.Attach(stamp(ledger_id=""), wire.VERSION, "run", info, TWO))


async def get(port: int, path: str, **headers: str) -> tuple[int, Any, Any]:
    url = f"http://127.0.0.1:{port}{path}"
    async with aiohttp.ClientSession() as http, http.get(url, headers=headers) as answer:
        text = await answer.text()
        is_json = answer.content_type == "application/json"
        return answer.status, json.loads(text) if is_json else text, answer.headers


async def post(port: int, path: str, data: bytes = b"", **headers: str) -> tuple[int, Any]:
    url = f"http://127.0.0.1:{port}{path}"
    async with (
        aiohttp.ClientSession() as http,
        http.post(url, data=data, headers=headers) as answer,
    ):
        return answer.status, json.loads(await answer.text())


async def raw(port: int, data: bytes) -> bytes:
    """All that comes back until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await reader.read()
    finally:
        writer.close()


# -- admission -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/v1/runs", "/api/v1/runs/run", wire.ATTACH_PATH])
def test_a_token_is_asked_for_on_both_faces(path: str):
    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (_, port):
            status, body, headers = await get(port, path)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert body["error"] == "this coordinator needs a token, and the request has none"
            assert "RALLYPOINT_TOKEN" in body["hint"]
            for wrong in ("Bearer no", TOKEN[:-1], "Bearer ", f"Bearer {TOKEN}x"):
                status, body, _ = await get(port, path, Authorization=wrong)
                assert (status, body["error"]) == (401, "the token is wrong")
            status, _, _ = await get(port, path, Authorization=f"Bearer {TOKEN}")
            assert status != 401
            assert (await get(port, "/healthz"))[:2] == (200, "ok\n")

    run_clean(main)


def test_a_token_that_is_no_utf8_is_wrong_and_no_more():
    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (_, port):
            request = b"GET /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            answer = await raw(port, request + b"Authorization: Bearer \xff\xfe\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 401 ")

    run_clean(main)


@pytest.mark.parametrize(("origin", "may"), [("http://elsewhere.example", False), ("", True)])
def test_a_web_page_of_elsewhere_can_end_no_run(origin: str, may: bool):
    """A browser lets every page post to a loopback port, and open a WebSocket there."""

    async def main() -> None:
        async with served() as (server, port):
            _, writer = await upgraded(port)
            writer.write(frame(attach()))
            await until(
                lambda: server.coordinator.runs and server.coordinator.runs["run"].attached_count,
                "none",
            )
            headers = {"Origin": origin or f"http://127.0.0.1:{port}"}
            status, _ = await post(port, "/api/v1/runs/run/close", b"", **headers)
            assert status == (200 if may else 403)
            status, _, _ = await get(port, wire.ATTACH_PATH, **headers)
            assert status == (426 if may else 403)
            writer.close()

    run_clean(main)


def test_a_close_asks_for_the_token():
    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (_, port):
            endpoint = f"http://127.0.0.1:{port}"
            async with opened(endpoint, token=TOKEN) as a:
                assert (await post(port, "/api/v1/runs/run/close"))[0] == 401
                assert a.closed is None

    run_clean(main)


@pytest.mark.parametrize("token", ["", "wrong"])
def test_a_node_is_told_about_its_token(token: str):
    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (_, port):
            with pytest.raises(errors.TokenError, match="token") as caught:
                await node(f"http://127.0.0.1:{port}", token=token).open()
            assert "--token-file" in caught.value.hint

    run_clean(main)


def test_a_node_with_the_token_is_let_in():
    async def main() -> None:
        async with (
            served(CoordinatorConfig(token=TOKEN)) as (_, port),
            opened(f"http://127.0.0.1:{port}", token=TOKEN) as a,
        ):
            assert await a.next_round(BOOTSTRAP) is not None

    run_clean(main)


# -- what people ask -------------------------------------------------------------------------------


def test_the_path_for_nodes_says_so_to_people():
    async def main() -> None:
        async with served() as (_, port):
            status, body, headers = await get(port, wire.ATTACH_PATH)
            assert (status, headers["Upgrade"]) == (426, "websocket")
            assert (
                body["hint"] == "nodes attach here over WebSocket; for people there is /api/v1/runs"
            )

    run_clean(main)


def test_a_run_as_people_see_it():
    async def main() -> None:
        async with served() as (_, port):
            endpoint = f"http://127.0.0.1:{port}"
            empty = (await get(port, "/api/v1/runs"))[1]
            assert empty["runs"] == []
            assert list(empty["coordinator"]) == [
                "software",
                "ledger_id",
                "connections",
                "host",
                "memory_bytes",
                "memory_bytes_max",
            ]
            async with (
                opened(endpoint, TWO, node_name="a", labels={"zone": "z"}) as a,
                opened(endpoint, TWO, node_name="b") as b,
            ):
                one = (await get(port, "/api/v1/runs"))[1]["runs"][0]
                assert (one["phase"], one["attached"]) == ("gathering", 2)
                assert one["waiting"]["minimum"] == 2
                assert one["reason"].startswith("0 of at least 2 nodes ready")
                await asyncio.gather(a.next_round(BOOTSTRAP), b.next_round(BOOTSTRAP))
                a.failed(Failure(FailureKind.EXCEPTION, "ValueError: no", 0))
                await a.cause(10)
                await asyncio.gather(a.next_round(BOOTSTRAP), b.next_round(BOOTSTRAP))
                check_detail((await get(port, "/api/v1/runs/run"))[1])
                few = (await get(port, "/api/v1/runs/run?members=1"))[1]
                assert (len(few["members"]), few["members_total"]) == (1, 2)
                assert (await get(port, "/api/v1/runs/run?members=x"))[0] == 400

    run_clean(main)


def check_detail(run: dict[str, Any]) -> None:
    msgspec.convert(run, status.RunStatus)  # every field, and no other
    assert (run["phase"], run["round"], run["size"]) == ("active", 2, 2)
    assert run["settings"]["min_nodes"] == 2
    assert run["bootstrap"] == str(BOOTSTRAP)
    first, second = run["members"]
    assert [(m["name"], m["node_rank"], m["ranks"]) for m in (first, second)] == [
        ("a", 0, [0]),
        ("b", 1, [1]),
    ]
    assert (first["state"], first["link"], first["labels"]) == (
        "active",
        "connected",
        {"zone": "z"},
    )
    ended, present = run["rounds"]
    assert ended["ended"] == "a worker failed on a: rank 0 failed (ValueError: no)"
    assert (ended["change"]["kind"], ended["change"]["confirmed"]) == ("worker_failed", True)
    assert ended["members"] == ["a", "b"]
    assert 0 <= ended["active_s"] < 20
    assert ended["formed_at"] <= ended["ended_at"] <= run["shown_at"]
    assert 0 <= ended["gathering_s"] < 20
    assert (present["ended"], present["active_s"], present["ended_at"]) == ("", None, None)
    assert present["restart_count"] == 1


@pytest.mark.parametrize("run_id", ["no", "%ff", "a%2Fb", "%7Bx%7D", "%20"])
def test_a_run_that_is_not_here(run_id: str):
    async def main() -> None:
        async with served() as (_, port), opened(f"http://127.0.0.1:{port}", run_id="other"):
            status, body, _ = await get(port, f"/api/v1/runs/{run_id}")
            assert (status, body["hint"]) == (404, "runs on this coordinator: other")

    run_clean(main)


def test_a_run_is_closed_for_all():
    async def main() -> None:
        async with served() as (_, port):
            endpoint = f"http://127.0.0.1:{port}"
            async with opened(endpoint) as a:
                await a.next_round(BOOTSTRAP)
                path = "/api/v1/runs/run/close"
                for bad in (b"[]", b"{", b'{"reason": 5}', b"\xff"):
                    assert (await post(port, path, bad))[0] == 400
                said = await post(port, path, b'{"reason": "maintenance"}')
                assert said == (200, {"run_id": "run", "was_closed": False})
                await until(lambda: a.closed, "the node was not told")
                assert a.closed is not None
                assert (a.closed.reason, a.closed.by) == (
                    "maintenance",
                    "operator at 127.0.0.1",
                )
                assert (await post(port, path))[1]["was_closed"] is True
                run = (await get(port, "/api/v1/runs/run"))[1]
                assert run["closed"]["reason"] == "maintenance"
                assert run["rounds"][-1]["ended"].startswith("stopped: maintenance")
                with pytest.raises(errors.RunClosedError, match="maintenance"):
                    await node(endpoint).open()
            assert (await post(port, "/api/v1/runs/no/close"))[0] == 404

    run_clean(main)


def test_an_operator_is_named_by_the_address_that_people_know(caplog: pytest.LogCaptureFixture):
    """A socket of both families shows IPv4 peers as ::ffff:127.0.0.1."""

    async def main() -> None:
        config = CoordinatorConfig(token=TOKEN)
        async with serving.CoordinatorServer(config) as server:
            sock = bind(None, 0)
            port = sock.getsockname()[1]
            await server.start([sock])
            async with opened(f"http://127.0.0.1:{port}", token=TOKEN) as a:
                assert (await get(port, "/api/v1/runs"))[0] == 401
                path, own = "/api/v1/runs/run/close", f"Bearer {TOKEN}"
                assert (await post(port, path, Authorization=own))[0] == 200
                await until(lambda: a.closed, "the node was not told")
                assert a.closed is not None
                assert a.closed.by == "operator at 127.0.0.1"
                assert not any(
                    "ffff" in each.outlet.peer for each in server.coordinator.sessions.values()
                )

    run_clean(main)
    assert any("a request from 127.0.0.1 was refused" in each for each in caplog.messages)


# -- clients that are no nodes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"\0" * 100, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), b"hello\r\n\r\n"],
    ids=["zeros", "TLS", "text"],
)
def test_garbage_on_the_port_ends_its_own_connection_only(data: bytes):
    async def main() -> None:
        async with served() as (_, port), opened(f"http://127.0.0.1:{port}") as a:
            assert (await raw(port, data)).startswith(b"HTTP/1.")
            assert await a.next_round(BOOTSTRAP) is not None

    run_clean(main)


async def refusal_of(port: int, *frames: bytes | str) -> tuple[wire.Refused | None, int | None]:
    """What a WebSocket client that sends these is refused with, and the closing code."""
    url = f"ws://127.0.0.1:{port}{wire.ATTACH_PATH}"
    found: wire.Refused | None = None
    async with aiohttp.ClientSession() as http, http.ws_connect(url, max_msg_size=0) as ws:
        for frame in frames:
            send = ws.send_str(frame) if isinstance(frame, str) else ws.send_bytes(frame)
            await send
        async for message in ws:
            decoded = wire.decode_from_coordinator(message.data)
            if isinstance(decoded, wire.Refused):
                found = decoded
        return found, ws.close_code


@pytest.mark.parametrize(
    "frames",
    [
        ("hello",),
        (b"",),
        (b"\xff\xff",),
        (wire.encode(wire.Heartbeat(stamp())),),
        (attach(), attach()),
        (attach(), "hello"),
        (attach(), b"\xff"),
    ],
    ids=["text", "nothing", "garbage", "not attached", "twice", "text later", "garbage later"],
)
def test_what_a_node_would_not_send_is_refused_with_a_reason(frames: tuple[bytes | str, ...]):
    async def main() -> None:
        async with served() as (server, port):
            refused, code = await refusal_of(port, *frames)
            assert refused is not None
            assert refused.refusal.code is RefusalCode.MALFORMED
            assert code == 1008
            await until(lambda: not server.coordinator.sessions, "the session is still there")

    run_clean(main)


def test_a_message_that_is_too_long_ends_the_connection():
    async def main() -> None:
        async with served() as (server, port), opened(f"http://127.0.0.1:{port}") as a:
            with contextlib.suppress(ConnectionError):  # cut while it was being sent
                assert await refusal_of(port, bytes(wire.MESSAGE_BYTES_MAX + 1)) == (None, 1009)
            await until(lambda: len(server.coordinator.sessions) == 1, "the session is still there")
            assert await a.next_round(BOOTSTRAP) is not None

    run_clean(main)


UPGRADE = (
    f"GET {wire.ATTACH_PATH} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
).encode()


async def upgraded(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A WebSocket by hand, so that it can misbehave."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(UPGRADE)
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


def frame(payload: bytes) -> bytes:
    """A binary frame, masked with zeros."""
    assert len(payload) < 65_536
    return b"\x82\xfe" + len(payload).to_bytes(2, "big") + bytes(4) + payload


async def answered(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The next frame: its first byte, and its payload."""
    first, length = await reader.readexactly(2)
    if length == 126:
        length = int.from_bytes(await reader.readexactly(2))
    return first, await reader.readexactly(length)


def test_messages_are_read_in_front_of_aiohttp_in_fragments_too():
    """In the order in which they came. aiohttp would keep fragments that are not counted."""
    beat = wire.encode(wire.Heartbeat(stamp()))
    ping = b"\x89\x82" + bytes(4) + b"hi"
    first_half = b"\x02" + frame(beat[:3])[1:]
    last_half = b"\x80" + frame(beat[3:])[1:]

    async def main() -> None:
        async with served() as (server, port):
            reader, writer = await upgraded(port)
            writer.write(frame(attach()) + ping + frame(beat))
            assert isinstance(decoded(await answered(reader)), wire.Welcome)
            kinds = [await answered(reader), await answered(reader)]
            assert (0x8A, b"hi") in kinds
            outlet = server.coordinator.sessions[1].outlet
            assert isinstance(outlet, serving.WebSocketOutlet)
            transport = outlet._transport
            assert isinstance(transport.get_protocol(), FrameReader)
            writer.write(frame(beat) + first_half + ping + last_half + frame(beat))
            kinds = [await answered(reader) for _ in range(4)]
            assert (0x8A, b"hi") in kinds
            beats = [decoded(each).beat for each in kinds if each[0] == 0x82]
            assert beats == sorted(beats)
            assert len(beats) == 3
            assert isinstance(reading := transport.get_protocol(), FrameReader)
            assert not reading.is_aside
            writer.close()
            await until(lambda: not server.coordinator.sessions, "the session is still there")

    run_clean(main)


@pytest.mark.parametrize("halves", [False, True], ids=["whole", "half"])
def test_what_comes_with_the_handshake_is_read_by_one_reader(halves: bool):
    """With two readers, a frame inside a frame would become a message that was never sent."""
    smuggled = wire.encode(
        wire.Attach(stamp(ledger_id=""), wire.VERSION, "smuggled", NodeInfo("a", 1, "host"), TWO)
    )
    text = b"\x81" + frame(b"A" * 20 + frame(smuggled))[1:]
    sent = frame(attach()) + text

    async def main() -> None:
        async with served() as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            cut = len(sent) - len(frame(smuggled)) if halves else len(sent)
            writer.write(UPGRADE + sent[:cut])
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
            writer.write(sent[cut:])
            assert isinstance(decoded(await answered(reader)), wire.Welcome)
            if halves:
                refused = decoded(await answered(reader))
                assert isinstance(refused, wire.Refused)
                assert "half a frame" in refused.refusal.message
            else:  # aiohttp ends a text that is no text
                assert (await answered(reader))[0] == 0x88
            assert list(server.coordinator.runs) == ["run"]
            writer.close()

    run_clean(main)


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("Content-Length: 30", frame(attach())),
        ("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n"),
    ],
)
def test_a_request_for_a_websocket_has_no_body(header: str, body: bytes):
    async def main() -> None:
        async with served() as (server, port):
            request = UPGRADE.replace(b"Host: localhost", f"Host: localhost\r\n{header}".encode())
            answer = await raw(port, request + body)
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert not server.coordinator.runs

    run_clean(main)


def test_a_message_without_a_mask_is_refused_by_its_reason():
    async def main() -> None:
        async with served() as (server, port):
            reader, writer = await upgraded(port)
            plain = frame(attach())
            writer.write(plain[:1] + bytes([plain[1] & 0x7F]) + plain[2:4] + plain[8:])
            refused = decoded(await answered(reader))
            assert isinstance(refused, wire.Refused)
            assert "mask" in refused.refusal.message
            assert not server.coordinator.runs
            writer.close()

    run_clean(main)


def decoded(answer: tuple[int, bytes]) -> Any:
    return wire.decode_from_coordinator(answer[1])


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_node_that_hung_up_before_it_was_answered_is_no_error(
    how: str, caplog: pytest.LogCaptureFixture
):
    """As after a time in which the coordinator's process was stopped."""

    async def main() -> None:
        async with served() as (server, port):
            for _ in range(8):  # with no other work in this loop, so that it is gone by then
                with socket.create_connection(("127.0.0.1", port)) as sock:
                    sock.sendall(UPGRADE)
                    linger = struct.pack("ii", 1, 0)
                    if how == "RST":
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            assert (await get(port, "/healthz"))[0] == 200
            await until(lambda: not server.coordinator.sessions, "a session is still there")

    run_clean(main)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_half_a_message_and_then_nothing_is_not_waited_for():
    async def main() -> None:
        async with served(CoordinatorConfig(attach_timeout_s=0.3)) as (server, port):
            reader, writer = await upgraded(port)
            writer.write(frame(attach())[:20])
            assert b"did not attach in time" in await reader.read()
            writer.close()
            await until(lambda: not server.coordinator.sessions, "the session is still there")

    run_clean(main)


@pytest.mark.parametrize("start", [b"", b"GET /v1/attach HTTP/1.1\r\nHost: here\r\n"])
def test_a_connection_that_never_asks_for_anything_is_cut(start: bytes):
    """Each holds a descriptor. Without free descriptors no client could connect."""

    async def main() -> None:
        async with served(CoordinatorConfig(attach_timeout_s=0.2)) as (server, port):
            _, writer = await upgraded(port)
            writer.write(frame(attach()))
            reader, mute = await asyncio.open_connection("127.0.0.1", port)
            mute.write(start)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            mute.close()
            assert (
                server.coordinator.runs["run"].attached_count == 1
            )  # a client that has made a request stays
            writer.close()

    run_clean(main)


def test_a_peer_that_never_answers_the_closing_handshake_is_cut(monkeypatch):
    monkeypatch.setattr(serving, "CLOSE_TIMEOUT_S", 0.3)

    async def main() -> None:
        async with served() as (server, port):
            reader, writer = await upgraded(port)
            writer.write(frame(b"\xff"))
            await until(lambda: not server.coordinator.sessions, "the session is still there")
            await reader.read()  # until the coordinator has closed the connection
            writer.close()

    run_clean(main)


def test_a_peer_that_does_not_read_is_cut(monkeypatch):
    monkeypatch.setattr(serving, "CLOSE_TIMEOUT_S", 0.3)

    async def main() -> None:
        async with served(CoordinatorConfig(backlog_bytes_max=2**30)) as (server, port):
            _, writer = await upgraded(port)
            writer.write(frame(attach()))
            await until(
                lambda: server.coordinator.runs and server.coordinator.runs["run"].attached_count,
                "none",
            )
            (session,) = server.coordinator.sessions.values()
            session.send(bytes(50 * 1024**2))
            assert session.outlet.backlog_bytes() > 1024**2
            session.close("enough")
            await until(lambda: not server.coordinator.sessions, "the session is still there", 9.0)
            writer.close()

    run_clean(main)


def test_closing_the_coordinator_is_bounded_whatever_its_peers_do(monkeypatch):
    monkeypatch.setattr(serving, "CLOSE_TIMEOUT_S", 0.5)

    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with served(CoordinatorConfig(backlog_bytes_max=2**30)) as (server, port):
            writers = [(await upgraded(port))[1] for _ in range(3)]
            writers.append((await asyncio.open_connection("127.0.0.1", port))[1])
            writers[0].write(frame(attach()))
            await until(
                lambda: server.coordinator.runs and server.coordinator.runs["run"].attached_count,
                "none",
            )
            for session in server.coordinator.sessions.values():
                session.send(bytes(20 * 1024**2))
            began_s = loop.time()
            await server.aclose()
            await server.aclose()
            took_s = loop.time() - began_s
            for writer in writers:
                writer.close()
            return took_s

    assert run_clean(main) < 15.0


def test_a_coordinator_that_cannot_start_leaves_nothing_open(monkeypatch):
    async def main() -> None:
        def fails(listener: object) -> None:
            raise OSError("no")

        monkeypatch.setattr(Listener, "start", fails)
        with pytest.raises(OSError, match="no"):
            async with served():
                pytest.fail("it started")

    run_clean(main)


BOMB = zlib.compress(b"\0" * (8 << 20), 9)
CLOSE_PATH = "/api/v1/runs/run/close"
PACKED = {"Content-Encoding": "deflate"}


def test_a_body_is_never_unpacked():
    """aiohttp would unpack what a refused request carries: 1 MiB from a stranger cost 1 GiB."""

    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (_, port):
            assert (await post(port, CLOSE_PATH, BOMB, **PACKED))[0] == 401
            bearer = {"Authorization": f"Bearer {TOKEN}"}
            async with opened(f"http://127.0.0.1:{port}", token=TOKEN) as a:
                status, body = await post(port, CLOSE_PATH, BOMB, **PACKED, **bearer)
                assert (status, body["error"][:21]) == (400, "the body must be JSON")
                assert a.closed is None

    run_clean(main)


def test_what_follows_a_refused_request_is_not_read():
    """aiohttp would read on for 10 s, and hold the connection as long."""
    head = f"POST {CLOSE_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n{{"

    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (_, port), asyncio.timeout(7):
            answer = await raw(port, head.encode())
            assert answer.startswith(b"HTTP/1.1 401 ")

    run_clean(main)


def test_a_body_that_is_nested_without_end_is_no_json():
    async def main() -> None:
        async with served() as (_, port), opened(f"http://127.0.0.1:{port}"):
            deep = b'{"reason": ' + b"[" * 30_000
            assert (await post(port, CLOSE_PATH, deep))[0] == 400
            assert (await post(port, CLOSE_PATH, b"[" * 30_000))[0] == 400
            assert (await post(port, CLOSE_PATH, b'{"x": ' * 10_000))[0] == 400

    run_clean(main)


def test_no_answer_tells_a_version():
    async def main() -> None:
        async with served(CoordinatorConfig(token=TOKEN)) as (_, port):
            for path in ("/healthz", "/api/v1/runs", "/none", wire.ATTACH_PATH):
                assert (await get(port, path))[2]["Server"] == "rallypoint"

    run_clean(main)


# -- names -----------------------------------------------------------------------------------------

BAD_INFOS = {
    "a name": NodeInfo("a\n2026 INFO", 1, "host"),
    "a host": NodeInfo("a", 1, "h\x1b[2J"),
    "an address": NodeInfo("a", 1, "host", ("a\0b",)),
    "a label": NodeInfo("a", 1, "host", labels={"x": "a\nb"}),
    "fat labels": NodeInfo("a", 1, "host", labels={f"{n:02}": "😀" * 250 for n in range(64)}),
}


@pytest.mark.parametrize("info", BAD_INFOS.values(), ids=BAD_INFOS)
def test_a_node_with_a_bad_name_is_refused_with_a_reason(info: NodeInfo):
    async def main() -> None:
        async with served() as (server, port):
            message = wire.Attach(stamp(ledger_id=""), wire.VERSION, "run", info, TWO)
            refused, _ = await refusal_of(port, wire.encode(message))
            assert refused is not None
            assert refused.refusal.code is RefusalCode.MALFORMED
            assert refused.refusal.message.isprintable()
            assert not server.coordinator.runs

    run_clean(main)


@pytest.mark.parametrize("host", ["a\0b", "a\nb", "a=b", "", "-x"])
def test_a_bad_bootstrap_host_reaches_no_other_node(host: str):
    async def main() -> None:
        async with served() as (_, port), opened(f"http://127.0.0.1:{port}", TWO) as a:
            asking = asyncio.ensure_future(a.next_round(BOOTSTRAP))
            ready = wire.Ready(stamp(), 0, Address(host, 1), 1)
            refused, _ = await refusal_of(port, attach("!first"), wire.encode(ready))
            assert refused is not None
            assert refused.refusal.code is RefusalCode.MALFORMED
            assert "bootstrap host" in refused.refusal.message
            async with opened(f"http://127.0.0.1:{port}", TWO) as b:
                found = await asyncio.gather(asking, b.next_round(BOOTSTRAP))
                assert [each.head.bootstrap for each in found if each] == [BOOTSTRAP, BOOTSTRAP]

    run_clean(main)


def crowd(server: CoordinatorServer, run_id: str, count: int) -> HostedRun:
    """A run with so many members, whose connections are gone already."""
    run = server.coordinator.open_run(run_id)
    for number in range(count):
        node = NodeInfo(f"node{number}", 1, "host", labels={"label": "x" * 200})
        run.post(on.NodeAttached(node, RunSettings(min_nodes=9_999, max_nodes=9_999), 0, b""))
    return run


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 350])
def test_members_are_made_some_at_a_time_and_are_one_answer(count: int):
    async def main() -> None:
        async with served() as (server, port):
            crowd(server, "run", count)
            status, told, _ = await get(port, "/api/v1/runs/run?members=340")
            assert status == 200
            assert [each["name"] for each in told["members"]] == [
                f"node{number}" for number in range(min(count, 340))
            ]
            assert told["members_total"] == count
            assert list(told) == list(RunStatus.__struct_fields__)

    run_clean(main)


def test_who_does_not_read_an_answer_holds_little_of_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sending, "SEND_S", 0.5)

    async def main() -> None:
        async with served() as (server, port):
            crowd(server, "run", 20_000)
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


def test_a_list_of_runs_counts_until_it_is_read_and_has_its_limit():
    config = CoordinatorConfig(memory_bytes_max=16 * 1024**2)

    async def main() -> None:
        async with served(config) as (server, port):
            run = crowd(server, "run", 1)
            for number in range(200):
                crowd(server, f"{number}" + "x" * 200, 0)
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
