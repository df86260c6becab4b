"""Connections without sockets: bytes go to the shipped protocol, and its answers are kept."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import Any, cast


class _Socket:
    """What protocols ask of a connection's socket."""

    family = socket.AF_INET

    def setsockopt(self, *arguments: object) -> None:
        pass

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        """SO_PEERCRED: this process is the peer, as another one of this user would be."""
        return struct.pack("3i", os.getpid(), os.geteuid(), os.getegid())

    def fileno(self) -> int:
        return -1


class MemoryTransport(asyncio.Transport):
    """The server's end of a connection whose other end is this fuzzer.

    `bring` gives the protocol bytes as a socket would: not once it is closed, and kept back while
    reading is paused. `written` holds what the protocol answered, until `take`.
    """

    def __init__(self, protocol: asyncio.BaseProtocol, peer: tuple[str, int]) -> None:
        super().__init__({"peername": peer, "sockname": ("127.0.0.1", 29_400), "socket": _Socket()})
        self._protocol = protocol
        self._peer = peer
        self._is_closing = False
        self._is_paused = False
        self._held: list[bytes] = []
        self.written: list[bytes] = []
        self.is_gone = False
        self._loop = asyncio.get_running_loop()
        protocol.connection_made(self)

    def bring(self, data: bytes) -> None:
        if self._is_closing or self.is_gone:
            return
        if self._is_paused:
            self._held.append(data)
            return
        protocol = self._protocol
        if not isinstance(protocol, asyncio.BufferedProtocol):
            cast(asyncio.Protocol, protocol).data_received(data)
            return
        part = memoryview(protocol.get_buffer(len(data)))[: len(data)]
        part[:] = data[: len(part)]
        protocol.buffer_updated(len(part))
        if len(data) > len(part):  # which may be another protocol's by now
            self.bring(data[len(part) :])

    def end(self, error: Exception | None = None) -> None:
        """The peer ends it: by FIN, or by a reset where there is an error."""
        if self.is_gone or self._is_closing:
            return
        if error is None and cast(asyncio.Protocol, self._protocol).eof_received():
            return  # the protocol keeps its side open
        self._is_closing = True
        self._loop.call_soon(self._gone, error)

    def take(self) -> bytes:
        data = b"".join(self.written)
        self.written.clear()
        return data

    def _gone(self, error: Exception | None) -> None:
        if not self.is_gone:
            self.is_gone = True
            self._protocol.connection_lost(error)

    # -- asyncio.Transport ---------------------------------------------------------------------

    def write(self, data: Any) -> None:
        if not self._is_closing:
            self.written.append(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._loop.call_soon(self._gone, None)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._is_closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def get_write_buffer_size(self) -> int:
        return 0

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return 0, 65_536

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        self._is_paused = False
        held, self._held = self._held, []
        for data in held:
            self.bring(data)

    def is_reading(self) -> bool:
        return not self._is_paused
