"""A coordinator in a process of its own, for tests that stop it. Prints its port."""

from __future__ import annotations

import asyncio

from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.net import bind


async def main() -> None:
    sock = bind("127.0.0.1", 0)
    async with CoordinatorServer() as server:
        await server.start([sock])
        print(sock.getsockname()[1], flush=True)
        await asyncio.Event().wait()


asyncio.run(main())
