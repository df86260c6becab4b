"""Running a test's coroutine so that whatever it leaves open fails it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from rallypoint.client.node import Node
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.core.values import Address, RunSettings
from rallypoint.net import bind
from rallypoint.settings import NodeSettings, parse_endpoint

T = TypeVar("T")
BOOTSTRAP = Address("127.0.0.1", 29_500)


def run_clean(main: Callable[[], Coroutine[Any, Any, T]], limit_s: float = 30.0) -> T:
    """Run it in a loop of its own. No task and no socket may be left; nothing may take longer."""

    async def whole() -> T:
        before = open_sockets()
        async with asyncio.timeout(limit_s):
            result = await main()
            # A connection that is closing takes a few turns of the loop more.
            await until(lambda: len(asyncio.all_tasks()) == 1, "tasks are left")
            await until(lambda: not open_sockets() - before, "sockets are left open")
        return result

    result = asyncio.run(whole())
    gc.collect()  # so that a ResourceWarning is this test's
    return result


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes only when all wait, and then at once: a machine that pauses is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 1_000.0
        self._look = self._selector.select  # type: ignore[attr-defined]
        self._selector.select = self._wait  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now_s

    def _wait(self, timeout_s: float | None) -> Any:
        found = self._look(timeout_s and 0)
        self._now_s += 0.0 if found else timeout_s or 0.0
        return found


class ManualClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run it in virtual time. For what uses the loop's clock, and neither threads nor peers."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def open_sockets() -> set[str]:
    """The sockets of this process. Empty where the system does not list them."""
    found: set[str] = set()
    for entry in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            target = os.readlink(entry)  # noqa: PTH115
            if target.startswith("socket:"):
                found.add(target)
    return found


async def until(is_so: Callable[[], object], what: str, limit_s: float = 20.0) -> None:
    """Look until something is so."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            while not is_so():  # noqa: ASYNC110 - the condition sets no event
                await asyncio.sleep(0.002)
    assert is_so(), what


@contextlib.asynccontextmanager
async def served(
    config: CoordinatorConfig | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[CoordinatorServer, int]]:
    """A coordinator on loopback, and its port."""
    sock = bind(host, 0)
    port = sock.getsockname()[1]
    async with CoordinatorServer(config) as server:
        await server.start([sock])
        yield server, port


def node(endpoint: str, run: RunSettings | None = None, run_id: str = "run", **own: Any) -> Node:
    """A node that has yet to be opened. Without a token unless one is given: see `insecure`."""
    own.setdefault("insecure", not own.get("token"))
    settings = NodeSettings(endpoint=parse_endpoint(endpoint), run_id=run_id, **own)
    return Node(settings, run or RunSettings(max_restarts=None))


@contextlib.asynccontextmanager
async def opened(
    endpoint: str, run: RunSettings | None = None, run_id: str = "run", **own: Any
) -> AsyncIterator[Node]:
    """A node that is attached, and says goodbye at the end."""
    found = node(endpoint, run, run_id, **own)
    await found.open()
    try:
        yield found
    finally:
        found.goodbye("the test is over")
        await found.aclose(linger=False)


needs_ipv6 = pytest.mark.skipif(
    not socket.has_dualstack_ipv6() or not Path("/proc/net/if_inet6").exists(),
    reason="this machine has no IPv6",
)


class SteppedLoop:
    """As much of an event loop as `Turns` needs, turn by turn."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.delays: list[float] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        self.delays.append(delay)
        self.soon.append(callback)

    def turn(self) -> None:
        soon, self.soon = self.soon, []
        for each in soon:
            each()
