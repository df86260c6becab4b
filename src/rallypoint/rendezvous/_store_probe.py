"""What kind of store listens somewhere: asked before a client is made that cannot be stopped.

torch's TCPStore client retries in C++ until its timeout, whoever else has the port, and prints its
stack when that is over. One question on a connection of its own tells the kinds apart.
"""

from __future__ import annotations

import enum
import socket
import struct
from typing import Final

from rallypoint.rendezvous._store_server import GREETING_BYTES_MAX, Greeting, decode_from_server
from rallypoint.wire import local
from rallypoint.wire.messages import MalformedError

# The opening of torch's TCPStore protocol, as TCPStoreBackend.hpp has it (torch 2.4 to 2.13): the
# byte 0 and a magic number, then 13, which asks to repeat the four bytes after it.
_TORCH_PONG: Final = b"rlyp"
_TORCH_PING: Final = b"\x00" + struct.pack("=I", 0x3C85F7CE) + b"\x0d" + _TORCH_PONG


class StoreKind(enum.Enum):
    """Who answers at a port."""

    OURS = "a store of Rallypoint's"
    TORCH = "a TCPStore of PyTorch's"
    UNKNOWN = "something that says nothing that is known"


def kind_at(host: str, port: int, timeout_s: float) -> StoreKind:
    """What kind of store answers there.

    Blocks for `timeout_s` at most for each address of the host, once more for its first words.
    Raises OSError if nobody takes the connection.
    """
    with socket.create_connection((host, port), timeout_s) as sock:
        try:
            # Ours speaks first, and torch's when it is asked. Either is far smaller than what the
            # network carries in one piece.
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
