"""Finds out which kind of store listens at a port, before one of torch's clients connects to it.

torch's TCPStore client cannot be stopped: it retries in C++ until its timeout even if another
program has the port, and then prints its stack. One question on a separate connection shows the
kind.
"""

from __future__ import annotations

import enum
import socket
import struct
from typing import Final

from rallypoint.rendezvous._store_server import GREETING_BYTES_MAX, Greeting, decode_from_server
from rallypoint.wire import local
from rallypoint.wire.messages import MalformedError

# The first bytes of torch's TCPStore protocol, from TCPStoreBackend.hpp (torch 2.4 to 2.13): the
# byte 0 and a magic number, then 13, which asks to repeat the four bytes after it.
_TORCH_PONG: Final = b"rlyp"
_TORCH_PING: Final = b"\x00" + struct.pack("=I", 0x3C85F7CE) + b"\x0d" + _TORCH_PONG


class StoreKind(enum.Enum):
    """The kind of server at a port."""

    OURS = "a Rallypoint store"
    TORCH = "a PyTorch TCPStore"
    UNKNOWN = "an unknown kind of server"


def kind_at(host: str, port: int, timeout_s: float) -> StoreKind:
    """The kind of the store that answers there.

    Blocks for at most `timeout_s` for each address of the host, and again for the first answer.
    Raises OSError if no connection is accepted.
    """
    with socket.create_connection((host, port), timeout_s) as sock:
        try:
            # Rallypoint's store sends first, and torch's answers. Both messages fit into one
            # packet.
            sock.sendall(_TORCH_PING)
            return _kind(sock.recv(GREETING_BYTES_MAX))
        except OSError:
            return StoreKind.UNKNOWN


def _kind(words: bytes) -> StoreKind:
    if words == _TORCH_PONG:
        return StoreKind.TORCH
    try:
        for body in local.Unframer(GREETING_BYTES_MAX).feed(words):
            is_first_word = isinstance(decode_from_server(body), Greeting | local.Denied)
            return StoreKind.OURS if is_first_word else StoreKind.UNKNOWN
    except MalformedError:
        pass
    return StoreKind.UNKNOWN
