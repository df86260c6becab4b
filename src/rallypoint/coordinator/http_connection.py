"""One connection as aiohttp reads it, with what it answers by itself where no handler is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.web_protocol import _ErrInfo

from rallypoint.coordinator.strangers import HTTP_LOG

SERVER_NAME: Final = "rallypoint"
"""What every answer says of the server: a stranger need not learn which releases answer."""
HEADERS_MAX: Final = 64
KEEPALIVE_S: Final = 15.0
"""How long a connection for people may idle between two requests."""


class HttpConnection(web.RequestHandler):
    """Answers a request that cannot be read as a handler would: without the names of releases.

    What follows such a request is not read: aiohttp would keep an error for each piece of it.
    """

    __slots__ = ("_is_unreadable",)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._is_unreadable = False

    def data_received(self, data: bytes) -> None:
        """Read on, unless a request could not be read."""
        if self._is_unreadable:
            return
        super().data_received(data)
        if self._messages and isinstance(broken := self._messages[-1][0], _ErrInfo):
            self._is_unreadable = True
            # Its frames hold the error in turn, and what was read. Such a cycle lasts until the
            # next collection of garbage, and so many of them were 100 MiB within seconds.
            broken.exc.__traceback__ = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """aiohttp's own answer. The application's signals do not see it."""
        if isinstance(exc, ConnectionResetError):
            # Its sender has gone before aiohttp could say "100 Continue".
            response = web.Response(status=400)
            response.force_close()
            return response
        if isinstance(exc, UnicodeEncodeError):
            # An answer that repeats bytes of the request that are no UTF-8, such as aiohttp's to an
            # Expect that it does not know.
            exc = BadHttpMessage("a header has bytes that are no text")
            status, message = 400, exc.message
        answer = super().handle_error(request, status, exc, message)
        answer.headers["Server"] = SERVER_NAME
        return answer


def connections_of(server: web.Server) -> Callable[[], HttpConnection]:
    """Makes the server's connections. For the event loop that runs now."""
    loop = asyncio.get_running_loop()

    def connection() -> HttpConnection:
        return HttpConnection(
            server,
            loop=loop,
            logger=HTTP_LOG,
            access_log=None,
            keepalive_timeout=KEEPALIVE_S,
            # Bodies are small and plain. aiohttp would unpack one of a request that was refused: a
            # megabyte from a stranger cost a gigabyte. The rest of such a body is not read either.
            auto_decompress=False,
            lingering_time=0,
            # Of at most 8 KiB each: what a stranger can have us keep.
            max_headers=HEADERS_MAX,
        )

    return connection
