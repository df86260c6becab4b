"""Frames of a WebSocket as a server sends them: whole, binary, without a mask (RFC 6455)."""

from __future__ import annotations

import struct
from typing import Final

BINARY: Final = 0x82
"""The first byte of a whole binary message."""
PONG: Final = 0x8A
_SHORT_HEADERS: Final = tuple(bytes((BINARY, size)) for size in range(126))


def frame_header(size: int) -> bytes:
    """The header of a whole frame with a payload of `size` bytes, as a server sends it."""
    if size < 126:
        return _SHORT_HEADERS[size]
    if size < 65_536:
        return struct.pack("!BBH", BINARY, 126, size)
    return struct.pack("!BBQ", BINARY, 127, size)


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping, which has at most 125 bytes."""
    return bytes((PONG, len(payload))) + payload


def binary_frame(payload: bytes) -> bytes:
    """The payload as one whole frame, as a server sends it."""
    size = len(payload)
    if size < 126:
        return _SHORT_HEADERS[size] + payload
    return frame_header(size) + payload
