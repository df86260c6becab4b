"""The process of `rallypoint serve`, which is ours alone: from its socket to its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import resource
import signal
import socket
from collections.abc import Callable
from typing import Final

from rallypoint._version import __version__
from rallypoint.cli import output
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.server import CoordinatorServer

STOP_WITHIN_S: Final = 2.5
"""How long a clean end may take; what is left then ends with the process."""


def run(sock: socket.socket, endpoint: str, token: str) -> None:
    """Coordinate on a bound socket until SIGINT or SIGTERM; `endpoint` is printed when ready."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    _allow_many_connections()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(sock, endpoint, token))


async def _serve(sock: socket.socket, endpoint: str, token: str) -> None:
    server = CoordinatorServer(CoordinatorConfig(token=token))
    try:
        await server.start([sock])
        stop = _stop_signal()
        _spare_the_collector()
        print(endpoint, flush=True)
        output.note(f"{__version__} coordinates at {endpoint}; Ctrl-C ends it")
        number = await stop
        output.note(f"{signal.Signals(number).name}: the coordinator ends")
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_WITHIN_S):
                await server.aclose()


def _stop_signal() -> asyncio.Future[int]:
    """The first SIGINT or SIGTERM. A second one ends the process at once."""
    loop = asyncio.get_running_loop()
    came: asyncio.Future[int] = loop.create_future()

    def stop(number: int) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        came.set_result(number)

    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, stop, int(each))
    return came


def _spare_the_collector() -> None:
    """Members and sessions live long: looking through all of them often would cost milliseconds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def _allow_many_connections() -> None:
    """A connection is a file, and the usual soft limit is 1024 of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS: "unlimited" is refused
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed: this process is ours alone. None: asyncio's own."""
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
