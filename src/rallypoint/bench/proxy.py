"""A TCP proxy on loopback that counts bytes, and can be cut like a cable.

While it is cut, it passes no bytes in either direction, and neither side notices. After the repair,
sent bytes are delivered, as TCP does after a cut. New connections are accepted meanwhile, and
continue after the repair. A node behind the proxy has no direct connection to the coordinator, so
the end of the connection does not prove the end of the node's process.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Final

_CHUNK_BYTES: Final = 65_536
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: close with a reset."""


class Proxy:
    """Passes all bytes on to `port` of 127.0.0.1, in its own thread, within a `with` block.

    `down_bytes` came from that port, and `up_bytes` went to it: payload of TCP.
    """

    def __init__(self, port: int) -> None:
        self.port = 0
        self.up_bytes = self.down_bytes = 0
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._is_up = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._is_up.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Stop passing bytes. Neither side notices."""
        self._do(self._is_whole.clear)

    def mend(self) -> None:
        """Pass bytes again, including those that were sent meanwhile."""
        self._do(self._is_whole.set)

    def reset(self) -> None:
        """Reset every connection, as a firewall does when it has lost its table."""

        def close() -> None:
            for writer in list(self._writers):  # Both sides of each.
                sock = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()

        self._do(close)

    def _do(self, what: Callable[[], None]) -> None:
        done = threading.Event()

        def do() -> None:
            what()
            done.set()

        self._loop.call_soon_threadsafe(do)
        done.wait()

    async def _serve(self) -> None:
        self._stop, self._is_whole = asyncio.Event(), asyncio.Event()
        self._is_whole.set()
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
        self._writers.add(writer)
        there: asyncio.StreamWriter | None = None
        try:
            await self._is_whole.wait()
            source, there = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(there)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._copy(reader, there, is_up=True))
                both.create_task(self._copy(source, writer, is_up=False))
        except* OSError:
            # The other side does not notice while the cable is cut, except by `reset`.
            await self._is_whole.wait()
        finally:
            for each in filter(None, (writer, there)):
                self._writers.discard(each)
                each.transport.abort()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_up: bool
    ) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            await self._is_whole.wait()
            if is_up:
                self.up_bytes += len(data)
            else:
                self.down_bytes += len(data)
            writer.write(data)
            await writer.drain()
        await self._is_whole.wait()
        if writer.can_write_eof():
            writer.write_eof()
