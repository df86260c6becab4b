"""Servers of the store over TCP in this process, their clients, and a peer that misbehaves.

What must not be here: a test.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

from rallypoint.client.blocking import portal
from rallypoint.rendezvous import _store_server as wire
from rallypoint.rendezvous._store_client import TcpStore, open_store
from rallypoint.rendezvous._store_server import StoreServer
from rallypoint.wire import local

SRC = Path(__file__).parents[2] / "src"


def in_portal(work: Callable[[], None]) -> None:
    """Call it in the portal's loop, and wait for its end."""

    async def call() -> None:
        work()

    portal().run(call())


def connect(server: StoreServer, timeout_s: float = 10.0) -> TcpStore:
    return open_store(portal(), "localhost", server.port, timeout_s)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what is on its way through the portal's loop."""
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        portal().run(asyncio.sleep(0.001))


# -- peers that misbehave (R12) ------------------------------------------------------------------


class Peer:
    """A connection that says what it likes."""

    def __init__(self, server: StoreServer, *, greets: bool = True) -> None:
        self._sock = socket.create_connection(("localhost", server.port), 20)
        self._unframer = local.Unframer()
        self._bodies: list[bytes] = []
        assert isinstance(self.next(), wire.Greeting)
        if greets:
            self.send(wire.Greeting(wire.VERSION))

    def send(self, message: local.LocalMessage) -> None:
        self.send_bytes(local.encode(message))

    def send_bytes(self, data: bytes) -> None:
        self._sock.sendall(data)

    def next(self) -> wire.FromServer | None:
        """What the server says next; None if it has closed the connection."""
        while not self._bodies:
            try:
                data = self._sock.recv(65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._bodies += self._unframer.feed(data)
        return wire.decode_from_server(self._bodies.pop(0))

    def refusal(self) -> str:
        """Why the server ended the connection."""
        told = self.next()
        assert isinstance(told, local.Denied)
        assert self.next() is None
        return told.message

    def close(self) -> None:
        self._sock.close()


def frame(body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + body
