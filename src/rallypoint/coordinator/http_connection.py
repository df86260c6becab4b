"""One HTTP connection: aiohttp's, with lower limits, and without release names in answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.web_protocol import _ErrInfo

from rallypoint.coordinator import response_headers
from rallypoint.coordinator.strangers import HTTP_LOG, other_scheme

_TLS_HANDSHAKE: Final = b"\x16\x03"
"""The type of a TLS record, and the first byte of its version: RFC 8446, 5.1."""
HEADERS_MAX: Final = 64
KEEPALIVE_S: Final = 15.0
"""How long a connection may be idle between two requests."""


class HttpConnection(web.RequestHandler):
    """Answers a request that cannot be read, without naming releases.

    Bytes after such a request are not read, because aiohttp would keep an error for each piece.
    """

    __slots__ = ("_has_begun", "_is_unreadable")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._is_unreadable = self._has_begun = False

    def data_received(self, data: bytes) -> None:
        """Pass on the bytes, unless an earlier request could not be read."""
        if self._is_unreadable:
            return
        is_first, self._has_begun = not self._has_begun, True
        if is_first and data.startswith(_TLS_HANDSHAKE) and self.transport is not None:
            peer = self.transport.get_extra_info("peername")
            other_scheme(str(peer[0]) if isinstance(peer, tuple) else None, has_tls=False)
        super().data_received(data)
        if self._messages and isinstance(broken := self._messages[-1][0], _ErrInfo):
            self._is_unreadable = True
            # The traceback's frames refer to the error and to the bytes that were read. Such cycles
            # stay until the garbage collector runs: they were 100 MiB within seconds.
            broken.exc.__traceback__ = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer that aiohttp makes by itself, without a signal to the application."""
        if isinstance(exc, ConnectionResetError):
            # The peer had disconnected before aiohttp could send "100 Continue".
            response = web.Response(status=400)
            response.force_close()
            return response
        if isinstance(exc, UnicodeEncodeError):
            # aiohttp's answer repeats bytes of the request that are not UTF-8, as for an unknown
            # Expect header.
            exc = BadHttpMessage("a header has bytes that are not text")
            status, message = 400, exc.message
        answer = super().handle_error(request, status, exc, message)
        response_headers.add_to(answer)
        return answer


def connections_of(server: web.Server) -> Callable[[], HttpConnection]:
    """A function that makes the server's connections, in the running event loop."""
    loop = asyncio.get_running_loop()

    def connection() -> HttpConnection:
        return HttpConnection(
            server,
            loop=loop,
            logger=HTTP_LOG,
            access_log=None,
            keepalive_timeout=KEEPALIVE_S,
            # Bodies are small and not compressed. aiohttp would decompress the body of a refused
            # request: 1 MB from a stranger took 1 GB. The rest of such a body is not read either.
            auto_decompress=False,
            lingering_time=0,
            # Lines of at most 8 KiB bound the memory for a connection without a token.
            max_headers=HEADERS_MAX,
        )

    return connection
