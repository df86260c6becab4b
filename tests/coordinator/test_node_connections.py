"""A coordinator's connections to nodes, and to peers that are none or that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct

import pytest

from rallypoint.coordinator import frames
from rallypoint.coordinator import server as serving
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.websocket import FrameReader
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.values import Address, NodeInfo
from rallypoint.wire import messages as wire
from tests.coordinator.peers import (
    TWO,
    UPGRADE,
    answered,
    attach,
    decoded,
    frame,
    get,
    raw,
    refusal_of,
    upgraded,
)
from tests.loops import BOOTSTRAP, opened, run_clean, served, until
from tests.network import stamp

pytestmark = pytest.mark.sockets


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
def test_messages_that_no_node_sends_are_refused_with_a_reason(frames: tuple[bytes | str, ...]):
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


def test_messages_in_fragments_are_read_before_aiohttp_too():
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
            assert isinstance(outlet, frames.WebSocketOutlet)
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
def test_bytes_that_come_with_the_handshake_are_read_by_one_reader(halves: bool):
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
                assert "part of a frame" in refused.refusal.message
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


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_node_that_disconnects_before_its_answer_is_no_error(
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


def test_half_a_message_is_not_awaited():
    async def main() -> None:
        async with served(CoordinatorConfig(attach_timeout_s=0.3)) as (server, port):
            reader, writer = await upgraded(port)
            writer.write(frame(attach())[:20])
            assert b"did not attach in time" in await reader.read()
            writer.close()
            await until(lambda: not server.coordinator.sessions, "the session is still there")

    run_clean(main)


@pytest.mark.parametrize("start", [b"", b"GET /v1/attach HTTP/1.1\r\nHost: here\r\n"])
def test_a_connection_without_a_request_is_cut(start: bytes):
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
    for module in (serving, frames):
        monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.3)

    async def main() -> None:
        async with served() as (server, port):
            reader, writer = await upgraded(port)
            writer.write(frame(b"\xff"))
            await until(lambda: not server.coordinator.sessions, "the session is still there")
            await reader.read()  # until the coordinator has closed the connection
            writer.close()

    run_clean(main)


def test_a_peer_that_does_not_read_is_cut(monkeypatch):
    for module in (serving, frames):
        monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.3)

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


@pytest.mark.parametrize("run_id", [".", "..", "a\n"])
def test_a_bad_run_id_is_refused_with_a_reason(run_id: str):
    async def main() -> None:
        async with served() as (server, port):
            info = NodeInfo("a", 1, "host")
            message = wire.Attach(stamp(ledger_id=""), wire.VERSION, run_id, info, TWO)
            refused, _ = await refusal_of(port, wire.encode(message))
            assert refused is not None
            assert refused.refusal.code is RefusalCode.MALFORMED
            assert "--run-id" in refused.refusal.hint
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
