"""The kinds of tests, and what holds a test to its kind.

    pure        no marker: starts no process, opens no connection, loads no torch
    processes   starts real processes
    sockets     binds or connects real sockets in the test's own process
    torch       loads torch in the test's own process
    docs        reads the whole source: the tests in tests/docsite
    verify      long by nature: many seeds, chaos, partitions, matrices of real processes, models

`make unit` runs the pure tests, `make test` all but `verify`, and `make verify` the rest. A pure
test that starts a process, binds or connects a socket, or loads torch fails here, whichever of them
runs it. So an unmarked test is pure.

What must not be here: what a single test needs.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

NOT_PURE = ("processes", "sockets", "torch", "docs", "verify")
UNIT, TEST, VERIFY = f"not ({' or '.join(NOT_PURE)})", "not verify", "verify"
"""What the Makefile gives to pytest's -m."""
LONG = os.environ.get("RALLYPOINT_TEST_LONG", "0") not in ("", "0")
"""`make verify LONG=1`: more seeds, more examples, more nodes."""
only_long = pytest.mark.skipif(not LONG, reason="takes long: make verify LONG=1 runs it")
"""For what other tests of `make verify` also find, so that it ends within half an hour."""
LONGER = 10

MARKER_OF_EVENT = {
    "os.exec": "processes",
    "os.fork": "processes",
    "os.forkpty": "processes",
    "os.posix_spawn": "processes",
    "os.spawn": "processes",
    "os.system": "processes",
    "subprocess.Popen": "processes",
    "socket.bind": "sockets",
    "socket.connect": "sockets",
    "socket.sendto": "sockets",
}
"""Audit events of Python. A loop's own pair of sockets is neither bound nor connected."""


def seeds(count: int, verify: int, long: int) -> list[Any]:
    """Parameters 0, 1, ...: `count` for `make test`, as many as `verify` and it together, or `long`
    with LONG=1."""
    later = pytest.mark.verify
    assert count <= verify <= long
    whole = range(long if LONG else verify)
    return [pytest.param(seed, marks=later if seed >= count else ()) for seed in whole]


def examples(count: int) -> int:
    """How many examples hypothesis tries; `make verify LONG=1` runs these tests, too."""
    return count * LONGER if LONG else count


class Purity:
    """The plugin: fails a pure test that does what its missing marker would say."""

    def __init__(self) -> None:
        self._is_pure = False
        self._other_threads: set[int] = set()
        self._found: dict[str, str] = {}
        sys.addaudithook(self._heard)  # for the whole process: a hook cannot be removed

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        yield from self._watched(item)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        yield from self._watched(item)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Files with processes come first: they take longest, and `-n` gives out file by file.

        With LONG=1 the tests of hypothesis are long, too.
        """
        if LONG:
            for each in items:
                if getattr(getattr(each, "obj", None), "is_hypothesis_test", False):
                    each.add_marker("verify")
        slow = {each.path for each in items if each.get_closest_marker("processes")}
        items.sort(key=lambda item: item.path not in slow)

    def _watched(self, item: pytest.Item) -> Iterator[None]:
        # Threads that an earlier test has left behind do not count.
        self._other_threads = {each.ident or 0 for each in threading.enumerate()}
        self._other_threads.discard(threading.get_ident())
        self._found.clear()
        self._is_pure = not any(item.get_closest_marker(name) for name in NOT_PURE)
        outcome: Any = yield
        self._is_pure = False
        if self._found and outcome.excinfo is None:
            text = problem(self._found)
            outcome.force_exception(pytest.fail.Exception(text, pytrace=False))

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_pure or threading.get_ident() in self._other_threads:
            return
        marker = MARKER_OF_EVENT.get(event)
        if event == "import" and arguments[0] == "torch":
            marker = "torch"
        if marker is not None:
            self._found[marker] = f"{event} {arguments[:2]}"


def problem(found: dict[str, str]) -> str:
    """The message for the author of a test."""
    events = ", ".join(f"{marker} ({what})" for marker, what in found.items())
    return f"this test has no marker but is not pure. Add a marker: {events}. See tests/kinds.py."
