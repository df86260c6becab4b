"""Limits for HTTP requests: how many are open at once, and how long sending may take.

A client with a token may send any request. But a request that never ends, or an answer that is not
read, must not hold a descriptor for ever, because nodes need descriptors. Connections of nodes do
not count here.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from rallypoint.coordinator import sending
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.http_api import ACCOUNT, json_error
from rallypoint.core.quotas import Account, Holdings

OPEN_MAX: Final = 256
"""The most open requests of all accounts. The last eighth is reserved for accounts with few."""
OPEN_FEW: Final = 8
"""This many may be open even if the process has few descriptors."""


class Requests:
    """The open requests of one coordinator. Owned by one event loop."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._open = Holdings()

    async def answer(
        self, request: web.Request, handler: Handler, account: Account, *, is_last: bool
    ) -> web.StreamResponse:
        """Call the handler, and send its answer. `is_last`: close the connection afterwards."""
        open_max = min(OPEN_MAX, max(OPEN_FEW, self._coordinator.admission.descriptors_max // 4))
        if not self._open.has_room(account, open_max):
            said = f"too many open requests: {self._open.total}"
            refused = json_error(503, said, "try again when some of them are answered")
            refused.force_close()
            return refused
        self._open.take(account)
        request[ACCOUNT] = account
        try:
            if request.transport is not None:
                # With this limit, sending ends only when the kernel has the whole answer.
                request.transport.set_write_buffer_limits(high=0)
            response = await _answered(request, handler)
            if is_last:
                response.force_close()
            if not response.prepared:
                await _send(request, response)
            return response
        finally:
            self._open.give_back(account)


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The handler's answer. What aiohttp refuses by itself is an error in JSON as all others."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        message, hint = _REFUSED.get(error.status, (error.reason, ""))
        response = json_error(error.status, message, hint)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response


_REFUSED: Final = {
    404: ("there is no such path", "the paths of the API are in docs/http-api.md"),
    405: ("this path does not take requests of this method", "the header Allow has those it takes"),
    413: ("the body of the request is too long", "give a shorter reason"),
}
"""The error and the hint of a status that aiohttp answers by itself."""


async def _send(request: web.Request, response: web.StreamResponse) -> None:
    """Send a small answer in limited time. aiohttp has no limit for a peer that does not read."""
    try:
        async with asyncio.timeout(sending.SEND_S):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
