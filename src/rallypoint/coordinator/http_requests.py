"""How many requests of people are open at once, and how long their answers may take to be read.

Who holds a token may ask. A request that never ends, or whose answer is never read, must not keep a
descriptor from the nodes for ever. Connections of nodes are no requests.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from rallypoint.coordinator import sending
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.http_api import json_error
from rallypoint.core.quotas import Account, Holdings

OPEN_MAX: Final = 256
"""Requests that are being answered, of all accounts. The last eighth is for those that have few."""
OPEN_FEW: Final = 8
"""So many may be open however few descriptors there are."""


class Requests:
    """The requests of one coordinator that are being answered. Owned by one event loop."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._open = Holdings()

    async def answer(
        self, request: web.Request, handler: Handler, account: Account, *, is_last: bool
    ) -> web.StreamResponse:
        """Let the handler answer, and send that. `is_last`: close the connection then."""
        open_max = min(OPEN_MAX, max(OPEN_FEW, self._coordinator.descriptors_max // 4))
        if not self._open.has_room(account, open_max):
            said = f"{self._open.total} requests are open here, and this one is too many"
            refused = json_error(503, said, "ask again when others have their answer")
            refused.force_close()
            return refused
        self._open.take(account)
        try:
            if request.transport is not None:
                # An answer counts as sent once the kernel has all of it, and not a rest before.
                request.transport.set_write_buffer_limits(high=0)
            response = await handler(request)
            if is_last:
                response.force_close()
            if not response.prepared:
                await _send(request, response)
            return response
        finally:
            self._open.give_back(account)


async def _send(request: web.Request, response: web.StreamResponse) -> None:
    """Send a small answer. aiohttp would wait without a limit for a peer that reads nothing."""
    try:
        async with asyncio.timeout(sending.SEND_S):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
