"""Lines of one kind are limited in rate and counted; the first ones are never lost."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from rallypoint import line_limits, logs
from rallypoint.line_limits import AT_ONCE, AT_ONCE_OF_ALL_RUNS, KINDS_MAX, WITHIN_S, LineLimits


class Lines(logging.Handler):
    """A logger with limits of its own, on a clock and with a thread that the test moves."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1_000.0
        self.shown: list[str] = []
        self.levels: list[int] = []
        self.waiting: list[tuple[float, Callable[[], None]]] = []
        self.limits = LineLimits(lambda: self.now_s, self._later)
        self.log = logging.getLogger("rallypoint.test.limits")
        self.log.setLevel(logging.DEBUG)
        self.log.addFilter(self.limits.is_let_through)
        self.log.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.shown.append(record.getMessage())
        self.levels.append(record.levelno)

    def _later(self, seconds: float, work: Callable[[], None]) -> None:
        self.waiting.append((self.now_s + seconds, work))

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        due = [work for at_s, work in self.waiting if at_s <= self.now_s]
        self.waiting = [each for each in self.waiting if each[0] > self.now_s]
        for work in due:
            work()

    def take(self) -> list[str]:
        shown, self.shown = self.shown, []
        return shown


@pytest.fixture
def lines() -> Iterator[Lines]:
    found = Lines()
    yield found
    found.log.removeFilter(found.limits.is_let_through)
    found.log.removeHandler(found)


def test_the_first_lines_pass_and_the_others_are_counted(lines: Lines) -> None:
    for number in range(AT_ONCE + 1_203):
        lines.log.warning("it failed: %d", number)
    assert lines.take() == [f"it failed: {number}" for number in range(AT_ONCE)]
    lines.pass_time(WITHIN_S)
    last = f"it failed: {AT_ONCE + 1_202}"
    assert lines.take() == [f"and 1,203 more of this kind in 10 s, the last one: {last}"]
    assert lines.levels[-1] == logging.WARNING
    lines.log.warning("it failed: %d", 0)
    assert lines.take() == ["it failed: 0"], "the time is over, and the next one is a first one"


def test_one_timer_serves_however_many_lines_and_kinds(lines: Lines) -> None:
    for number in range(200):
        lines.log.info("one %d", number)
        lines.log.info("two %d", number)
    assert len(lines.waiting) == 1
    lines.pass_time(WITHIN_S)
    assert len([text for text in lines.take() if text.startswith("and 170 more")]) == 2
    assert not lines.waiting, "nothing is left to be told"


def test_without_a_thread_the_next_line_has_the_count(lines: Lines) -> None:
    for _ in range(AT_ONCE + 5):
        lines.log.info("again")
    lines.take()
    lines.waiting.clear()
    lines.now_s += WITHIN_S
    lines.log.info("another")
    assert lines.take() == ["and 5 more of this kind in 10 s, the last one: again", "another"]


def test_the_remaining_count_is_logged_at_the_end(lines: Lines) -> None:
    for _ in range(AT_ONCE + 5):
        lines.log.info("again")
    lines.take()
    lines.now_s += 3
    lines.limits.tell(is_end=True)
    assert lines.take() == ["and 5 more of this kind in 3 s, the last one: again"]


def test_each_run_has_kinds_of_its_own(lines: Lines) -> None:
    for number in range(1_000):
        lines.log.info("run %s: round %d with %d nodes", "noisy", number, 2)
    lines.take()
    lines.log.info("run %s: round %d with %d nodes", "quiet", 1, 2)
    assert lines.take() == ["run quiet: round 1 with 2 nodes"]


def test_lines_of_many_runs_are_limited_too(lines: Lines) -> None:
    for number in range(3 * KINDS_MAX):
        lines.log.info("run %s is removed", number)
    assert len(lines.take()) == AT_ONCE_OF_ALL_RUNS
    lines.log.info("run %s closed: %s", "a", "all is well")
    assert lines.take() == ["run a closed: all is well"]
    lines.pass_time(WITHIN_S)
    (told,) = lines.take()
    assert told.startswith(f"and {3 * KINDS_MAX - AT_ONCE_OF_ALL_RUNS:,} more of this kind")


def test_an_error_of_another_kind_always_passes(lines: Lines) -> None:
    for number in range(2 * AT_ONCE_OF_ALL_RUNS):
        lines.log.error("run %s is suspended: %s", number, "no space")
    assert len(lines.take()) == 2 * AT_ONCE_OF_ALL_RUNS
    for _ in range(2 * AT_ONCE_OF_ALL_RUNS):
        lines.log.error("run %s is suspended: %s", "one", "no space")
    lines.take()
    lines.log.error("a message could not be taken")
    assert lines.take() == ["a message could not be taken"]


def test_a_message_of_only_arguments_is_distinguished_by_its_text(lines: Lines) -> None:
    for number in range(2 * AT_ONCE):
        lines.log.warning("%s", f"still waiting after {number}.5 s")
        lines.log.warning("run %s: %s", "a", f"its log cannot be read: {number}")
    lines.take()
    lines.log.warning("%s", "the ledger is gone")
    lines.log.warning("run %s: %s", "a", "the round's log cannot be created")
    lines.log.warning(f"no arguments, {1}")
    assert len(lines.take()) == 3
    for number in range(2 * AT_ONCE):
        lines.log.warning(f"no arguments, {number}")
    assert len(lines.take()) == AT_ONCE - 1


def test_texts_that_always_differ_are_limited_too(lines: Lines) -> None:
    for number in range(3 * KINDS_MAX):
        name = "".join(chr(97 + int(digit)) for digit in str(number))
        lines.log.warning("%s", f"node {name} is odd")
        lines.log.warning(f"node {name} is strange")
    assert len(lines.take()) == 2 * AT_ONCE_OF_ALL_RUNS
    assert len(lines.limits._kinds) <= KINDS_MAX + 10


def test_lines_caused_without_a_token_have_their_own_limit(lines: Lines) -> None:
    for _ in range(9):
        lines.log.error("no connection can be taken", extra=logs.limit(1, 60.0))
        lines.log.warning("refused", extra=logs.limit(5))
    assert lines.take().count("refused") == 5
    lines.pass_time(WITHIN_S)
    assert lines.take() == ["and 4 more of this kind in 10 s, the last one: refused"]
    lines.pass_time(50.0)
    assert lines.take() == [
        "and 8 more of this kind in 60 s, the last one: no connection can be taken"
    ]


def test_debug_lines_are_not_limited(lines: Lines) -> None:
    for _ in range(1_000):
        lines.log.debug("a detail")
    assert len(lines.take()) == 1_000


def test_arguments_that_do_not_fit_the_format_do_no_harm(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    lines.emit = lambda record: lines.shown.append(str(record.msg))  # type: ignore[method-assign]
    for _ in range(AT_ONCE + 2):
        lines.log.warning("%s and %s", "one")
        lines.log.warning("%d", "one")
    lines.pass_time(WITHIN_S)
    assert len(lines.take()) == 2 * AT_ONCE + 2


def test_the_thread_that_logs_the_count_keeps_no_process_alive() -> None:
    """For a program without an event loop, which logs nothing any more."""
    told = threading.Event()
    log = logs.tidy("rallypoint.test.thread")
    limits = LineLimits()
    log.addFilter(limits.is_let_through)

    class Tells(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            is_count = " more of this kind" in record.getMessage()
            if is_count and threading.current_thread() is not threading.main_thread():
                told.set()

    handler = Tells()
    log.addHandler(handler)
    before = set(threading.enumerate())
    try:
        # A pause between two lines can end their time, so that none of them is left out.
        for _ in range(60):
            for _ in range(5):
                log.error("again", extra=line_limits.limit(2, 0.2))
            started = [each for each in threading.enumerate() if each not in before]
            assert all(each.daemon for each in started)
            if told.wait(0.5):
                break
        assert told.is_set()
    finally:
        log.removeHandler(handler)
        log.removeFilter(limits.is_let_through)


PROGRAM = """
import logging, os
from rallypoint import line_limits, logs
logging.basicConfig(level=logging.INFO, format="%(message)s")
log = logs.tidy("rallypoint.client")
for _ in range(40):
    log.info("again")
if {forks} and (child := os.fork()) == 0:
    log.info("again")
    log.info("and the child's own")
elif {forks}:
    os.waitpid(child, 0)
"""


@pytest.mark.processes
@pytest.mark.parametrize("forks", [False, True])
def test_a_process_that_ends_logs_the_omitted_count(forks: bool) -> None:
    program = PROGRAM.replace("{forks}", str(forks))
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    lines = done.stderr.splitlines()
    assert lines.count("again") == AT_ONCE + forks
    assert [line for line in lines if line.startswith("and 10 more of this kind")]
    assert ("and the child's own" in lines) == forks
