"""An attacker without a token that can connect to a coordinator's port.

    python -m rallypoint.bench.stranger HOST PORT SECONDS CONNECTIONS

Each of its connections goes through all of `WAYS` in turn, beginning with a different one, until
the time is over. At the end it prints one line of JSON: how often it has connected in each way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from rallypoint.wire.messages import ATTACH_PATH

STINT_S: Final = 2.0
"""How many seconds a connection uses one way."""
BOMB_MIB: Final = 256
"""The size of a request's body after unpacking."""
HEADERS_BYTES: Final = 1024**2
SLOW_S: Final = 0.05
"""The seconds between two bytes of a slow request."""
_UPGRADE: Final = (
    f"GET {ATTACH_PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
_BAD_TOKEN: Final = "Authorization: Bearer 0123456789abcdef0123456789abcdef\r\n"
_UNMASKED: Final = b"\x82\x05hello"


def bomb() -> bytes:
    """A small body that becomes a large one when it is unpacked."""
    packer = zlib.compressobj(9)
    zeros = bytes(1024**2)
    return b"".join(packer.compress(zeros) for _ in range(BOMB_MIB)) + packer.flush()


class Stranger:
    """The attacker. Each `live` is one of its connections."""

    def __init__(self, host: str, port: int, ends_s: float, packed: bytes) -> None:
        self._host, self._port, self._ends_s, self._packed = host, port, ends_s, packed
        self.opened: Counter[str] = Counter()

    async def live(self, first: int, stint_s: float) -> None:
        """Go through all ways in turn, beginning with this number, until the time is over."""
        number, ways = first, list(WAYS.items())
        while number < first + len(ways) or time.monotonic() < self._ends_s:
            name, way = ways[number % len(ways)]
            await self._stint(name, way, stint_s)
            number += 1

    async def _stint(self, name: str, way: _Way, left_s: float) -> None:
        ends_s = time.monotonic() + left_s
        while left_s > 0:
            self.opened[name] += 1
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(left_s):
                    reader, writer = await asyncio.open_connection(self._host, self._port)
                    try:
                        await way(self, reader, writer)
                    finally:
                        writer.transport.abort()
            left_s = ends_s - time.monotonic()

    # -- its ways ------------------------------------------------------------------------------

    async def _send(self, writer: asyncio.StreamWriter, text: str, body: bytes = b"") -> None:
        writer.write(text.encode() + body)
        await writer.drain()

    async def _bomb(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (
            "POST /api/v1/runs/run/close HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Encoding: deflate\r\nContent-Length: {len(self._packed)}\r\n\r\n"
        )
        await self._send(writer, head, self._packed)
        await reader.read()

    async def _slow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in "GET /api/v1/runs HTTP/1.1\r\n" + "X-Header: slow\r\n" * 10_000:
            await self._send(writer, byte)
            await asyncio.sleep(SLOW_S)

    async def _half_open(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._send(writer, "GET /api/v1/runs HTTP/1.1\r\nHost: 127")
        writer.write_eof()
        await reader.read()

    async def _idle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def _unmasked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._send(writer, _UPGRADE + "\r\n", _UNMASKED * 1_000)
        await reader.read()

    async def _upgrade_with_a_body(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = f"{_UPGRADE}{_BAD_TOKEN}Content-Length: {len(self._packed)}\r\n\r\n"
        await self._send(writer, head, self._packed)
        await reader.read()

    async def _huge_headers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        line = "X-Header: " + "x" * 4_000 + "\r\n"
        head = f"GET {ATTACH_PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        await self._send(writer, head + line * (HEADERS_BYTES // len(line)))
        await reader.read()

    async def _bad_token(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._send(writer, f"{_UPGRADE}{_BAD_TOKEN}\r\n")
        await reader.read()

    async def _hang_up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        return


_Way = Callable[[Stranger, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

WAYS: Final[dict[str, _Way]] = {
    "bomb": Stranger._bomb,
    "slow headers": Stranger._slow,
    "half open": Stranger._half_open,
    "idle": Stranger._idle,
    "unmasked frames": Stranger._unmasked,
    "upgrade with a body": Stranger._upgrade_with_a_body,
    "huge headers": Stranger._huge_headers,
    "bad token": Stranger._bad_token,
    "connect and close": Stranger._hang_up,
}


async def _live(host: str, port: int, seconds: float, connections: int) -> dict[str, int]:
    stint_s = min(STINT_S, seconds / len(WAYS))
    packed = bomb()
    stranger = Stranger(host, port, time.monotonic() + seconds, packed)
    await asyncio.gather(*(stranger.live(index, stint_s) for index in range(connections)))
    return dict(stranger.opened)


def main() -> None:
    """See above."""
    host, port, seconds, connections = sys.argv[1:]
    opened = asyncio.run(_live(host, int(port), float(seconds), int(connections)))
    print(json.dumps(opened), flush=True)


if __name__ == "__main__":
    main()
