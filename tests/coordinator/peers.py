"""Peers of a coordinator on a real port: requests over HTTP, and a WebSocket by hand.

What must not be here: a test, or an answer that a single test expects.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp

from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.core import events as on
from rallypoint.core.values import NodeInfo, RunSettings
from rallypoint.wire import messages as wire
from tests.network import stamp

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


def decoded(answer: tuple[int, bytes]) -> Any:
    return wire.decode_from_coordinator(answer[1])


CLOSE_PATH = "/api/v1/runs/run/close"


def run_of_many(server: CoordinatorServer, run_id: str, count: int) -> HostedRun:
    """A run with so many members, whose connections are gone already."""
    run = server.coordinator.open_run(run_id)
    for number in range(count):
        node = NodeInfo(f"node{number}", 1, "host", labels={"label": "x" * 200})
        run.post(on.NodeAttached(node, RunSettings(min_nodes=9_999, max_nodes=9_999), 0, b""))
    return run
