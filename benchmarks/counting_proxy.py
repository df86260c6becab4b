"""A proxy between nodes and their coordinator that counts what passes: bytes and WebSocket frames.

Rallypoint's own counters are not asked. Bytes are TCP payload; headers of TCP and IP come on top.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field
from typing import Final

_CHUNK_BYTES: Final = 65_536


@dataclass
class Direction:
    """What went one way over one connection since its handshake. Frames may be cut anywhere."""

    frames: int = 0
    payload_bytes: int = 0
    _buffer: bytearray = field(default_factory=bytearray)
    _in_handshake: bool = True

    def feed(self, data: bytes) -> None:
        """Count what has passed."""
        self._buffer += data
        if self._in_handshake:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            del self._buffer[: end + 4]
            self._in_handshake = False
            data = bytes(self._buffer)
        self.payload_bytes += len(data)
        while (length := _frame_bytes(self._buffer)) is not None and length <= len(self._buffer):
            del self._buffer[:length]
            self.frames += 1


def _frame_bytes(data: bytearray) -> int | None:
    """How long the frame is that begins here (RFC 6455, section 5.2); None: not known yet."""
    if len(data) < 2:
        return None
    masked, length, header = data[1] >> 7, data[1] & 0x7F, 2
    if length >= 126:
        size = 2 if length == 126 else 8
        header += size
        if len(data) < header:
            return None
        length = int.from_bytes(data[2:header], "big")
    return header + 4 * masked + length


@dataclass
class Link:
    """One connection: from the node, and to it."""

    up: Direction = field(default_factory=Direction)
    down: Direction = field(default_factory=Direction)


class CountingProxy:
    """Listens on 127.0.0.1 in a thread of its own and passes everything on to `port` there."""

    def __init__(self, port: int) -> None:
        self.links: list[Link] = []
        self.port = 0
        self._target = port
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def __enter__(self) -> CountingProxy:
        self._thread.start()
        self._is_up.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    @property
    def endpoint(self) -> str:
        """For nodes."""
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=1_024)
        self.port = server.sockets[0].getsockname()[1]
        self._is_up.set()
        await self._stop.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link()
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self.links.append(link)
        with contextlib.suppress(OSError):
            await asyncio.gather(_copy(reader, back, link.up), _copy(there, writer, link.down))


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counted: Direction
) -> None:
    try:
        while data := await reader.read(_CHUNK_BYTES):
            counted.feed(data)
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
