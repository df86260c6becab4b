"""Sends large answers to HTTP clients piece by piece, as the client reads them.

An answer with a hundred thousand members has up to a gigabyte. It is never in memory as a whole: if
a client does not read, only one piece is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from aiohttp import web

PIECE_BYTES: Final = 64 * 1024
SEND_S: Final = 60.0
"""The time limit for sending an answer."""


def pieces_of(body: bytes) -> Iterator[memoryview]:
    """The pieces of a body that is in memory."""
    view = memoryview(body)
    return (view[begin : begin + PIECE_BYTES] for begin in range(0, len(body), PIECE_BYTES))


async def stream(request: web.Request, pieces: Iterator[bytes | memoryview]) -> web.StreamResponse:
    """Answer with JSON in these pieces. Other tasks run between the pieces."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    try:
        async with asyncio.timeout(SEND_S):
            for piece in pieces:
                await response.write(piece)
                await asyncio.sleep(0)
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    return response
