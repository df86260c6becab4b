"""Pauses at random moments of tests, for finding those that a slow machine fails.

    pytest --stalls 7 tests/client/test_node.py

The pauses come before some lines of a test's own file, and at some calls within the package. The
seed and the test's name decide where. A pause stops the present thread, one of the processes that
the test has started, or all of them, for up to STALL_S_MAX. A busy machine does that to a test
once in a hundred runs. The same seed gives the same pauses, as far as the test does the same. A
test that fails lists its pauses; a person decides whether the test or the product has the race. A
process that the test itself has stopped is left alone.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

PACKAGE = str(Path(__file__).parents[1] / "src")
LINES_SHARE, LINES_MAX = 0.12, 3
"""Of the lines that a test comes to, and how many of them at most."""
CALLS_SHARE, CALLS_MAX = 0.01, 1
"""Of the calls of functions of the package: the 1st, 2nd, 4th, 8th, ... of each. One pause at most:
several within one call of the product would be a longer one than any test has to bear."""
STALL_S_MIN, STALL_S_MAX = 0.3, 3.0
WHO = ("this thread", "its processes", "one process", "everybody")


class Stalls:
    """The plugin: one `Pauses` for each test."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._now: Pauses | None = None

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        self._now = Pauses(f"{self._seed} {item.nodeid}", str(item.path))
        with self._now.tracing():
            yield

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Iterator[None]:
        outcome: Any = yield
        report = outcome.get_result()
        if report.when == "call" and self._now is not None and report.failed:
            report.sections.append((f"stalls {self._seed}", "\n".join(self._now.had)))


class Pauses:
    """What one test has to bear."""

    def __init__(self, seed: str, path: str) -> None:
        self._seed, self._path = seed, path
        self._lines: set[tuple[CodeType, int]] = set()
        self._calls: Counter[CodeType] = Counter()
        self._left = {"line": LINES_MAX, "call": CALLS_MAX}
        self._stopped_by_test: set[int] = set()
        self._timers: list[threading.Timer] = []
        self.had: list[str] = []

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        kill = os.kill

        def noted(pid: int, number: int) -> None:
            if number == signal.SIGSTOP:
                self._stopped_by_test.add(pid)
            elif number == signal.SIGCONT:
                self._stopped_by_test.discard(pid)
            kill(pid, number)

        before = sys.gettrace()
        os.kill = noted
        threading.settrace(self._called)
        sys.settrace(self._called)
        try:
            yield
        finally:
            sys.settrace(before)
            threading.settrace(None)
            os.kill = kill
            self._left = dict.fromkeys(self._left, 0)
            for timer in self._timers:
                timer.join()

    def _called(self, frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        if code.co_filename == self._path:
            return self._line
        if code.co_filename.startswith(PACKAGE):
            self._calls[code] = count = self._calls[code] + 1
            if count & (count - 1) == 0:
                self._draw("call", CALLS_SHARE, f"{code.co_qualname}, call {count}")
        return None

    def _line(self, frame: FrameType, event: str, _: object) -> Any:
        at = (frame.f_code, frame.f_lineno)
        if event == "line" and at not in self._lines:
            self._lines.add(at)
            self._draw("line", LINES_SHARE, f"line {frame.f_lineno} of {frame.f_code.co_qualname}")
        return self._line

    def _draw(self, kind: str, share: float, where: str) -> None:
        """Each place has chances of its own, so that the order of threads changes nothing."""
        chance = random.Random(f"{self._seed} {where}")
        if chance.random() < share and self._left[kind] > 0:
            self._left[kind] -= 1
            seconds = chance.uniform(STALL_S_MIN, STALL_S_MAX)
            self._stall(chance.choice(WHO), seconds, chance.random(), where)

    def _stall(self, who: str, seconds: float, which: float, where: str) -> None:
        below = [] if who == WHO[0] else sorted(below_this() - self._stopped_by_test)
        if who == "one process" and below:
            below = [below[int(which * len(below))]]
        who = who if below else WHO[0]
        self.had.append(f"{where}: {who} for {seconds:.1f} s {below or ''}")
        if below:
            for pid in below:
                _signal(pid, signal.SIGSTOP)
            timer = threading.Timer(seconds, self._go_on, (below,))
            self._timers.append(timer)
            timer.start()
        if who in (WHO[0], "everybody"):
            time.sleep(seconds)

    def _go_on(self, pids: list[int]) -> None:
        for pid in pids:
            if pid not in self._stopped_by_test:
                _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: int) -> None:
    """Not by os.kill, which is watched."""
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(process, number)
        finally:
            os.close(process)


def below_this() -> set[int]:
    """The processes below this one that run, of whatever generation."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            text = (entry / "stat").read_text()
            state, parent = text[text.rfind(")") + 2 :].split()[:2]
            if state not in "TZX":
                parents[int(entry.name)] = int(parent)
    found, new = set[int](), {os.getpid()}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found
