"""A process that only runs a coordinator, like a node of a HOST:PORT endpoint.

    python -m rallypoint.bench.embedded [--token-file FILE]

The event loop and the garbage collector are those of a program that joins, without tuning. The
process prints its port, and ends when its stdin ends.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.net import bind


async def _serve(token: str) -> None:
    sock = bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    async with CoordinatorServer(CoordinatorConfig(token=token)) as server:
        await server.start([sock])
        print(port, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[2]).read_text().strip() if sys.argv[1:] else ""))
