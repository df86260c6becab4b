"""A real Chromium that looks at the page, and coordinators for it to look at.

A page that reports an error, or that its own security policy stops, fails the test.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.server import CoordinatorServer
from rallypoint.net import bind
from tests.agent.processes import Machine, Process
from tests.cli.conftest import cli, plain_environment, serve

__all__ = ["cli", "plain_environment", "serve"]

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
WAIT_MS = 60_000
"""For what takes a second at most, on a machine that does much else."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser for the tests of a file, and no longer.

    Playwright keeps an event loop running in this thread, where later tests run theirs.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip(f"no Chromium here: none of {', '.join(NAMES)} is on PATH")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def look(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Open a page in a tab of a new profile. Its errors fail the test."""
    contexts: list[Any] = []
    problems: list[str] = []

    def heard(message: Any) -> None:
        # The browser writes a line for each answer that is no success; the page handles those.
        if message.type == "error" and "Failed to load resource" not in message.text:
            problems.append(message.text)

    def start(url: str, **options: Any) -> Any:
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("console", heard)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"a dialog: {dialog.message}"))
        page.goto(url)
        return page

    yield start
    for each in contexts:
        each.close()
    assert problems == []


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.close()


class Coordinator:
    """A coordinator in a thread of its own. `call` runs a function in that thread."""

    def __init__(self, config: CoordinatorConfig) -> None:
        self._sock = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}"
        self._loop, self._ready = asyncio.new_event_loop(), threading.Event()
        self._over = asyncio.Event()
        self.server = CoordinatorServer(config)
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        assert self._ready.wait(60)

    async def _serve(self) -> None:
        async with self.server:
            await self.server.start([self._sock])
            self._ready.set()
            await self._over.wait()

    def call(self, what: Callable[[], Any]) -> Any:
        async def run() -> Any:
            return what()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(60)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._loop.close()


@pytest.fixture
def coordinator() -> Iterator[Callable[..., Coordinator]]:
    """Start coordinators in this process."""
    started: list[Coordinator] = []

    def start(**config: Any) -> Coordinator:
        started.append(Coordinator(CoordinatorConfig(**config)))
        return started[-1]

    yield start
    for each in started:
        each.close()


def nodes(machine: Machine, endpoint: str, count: int, *more: str) -> list[Process]:
    """Agents of one run, with a round. All are in the first one, however busy the machine is."""
    all_of_them = ("--expected-nodes", str(count), "--last-call", "60")
    options = ("--run-id", "job", "--max-restarts", "3", *all_of_them, *more)
    found = [
        machine.agent(f"n{number}", *options, nnodes=f"{count - 1}:{count}", endpoint=endpoint)
        for number in range(count)
    ]
    for each in found:
        each.worker()
    return found
