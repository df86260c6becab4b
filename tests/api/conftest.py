from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.net import bind
from tests.api.adapters import AsyncApi, BlockingApi


@pytest.fixture(params=[BlockingApi, AsyncApi], ids=["blocking", "async"])
def api(request: pytest.FixtureRequest) -> Iterator[BlockingApi | AsyncApi]:
    found = request.param()
    yield found
    found.close()


@pytest.fixture
def coordinator() -> Iterator[str]:
    """The endpoint of a coordinator in a thread of its own."""
    sock = bind("127.0.0.1", 0)
    loop, ready, over = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with CoordinatorServer() as server:
            await server.start([sock])
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    port = sock.getsockname()[1]
    thread.start()
    assert ready.wait(20)
    yield f"http://127.0.0.1:{port}"
    loop.call_soon_threadsafe(over.set)
    thread.join(20)
    assert not thread.is_alive()
    loop.close()
