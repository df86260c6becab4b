"""The pauses of `--stalls`: the same for one seed, and over at the end of a test."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests import stalls
from tests.agent.processes import is_stopped
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")


def counted() -> int:
    """Some lines to pause at."""
    number = 0
    number += 1
    number += 1
    number += 1
    number += 1
    number += 1
    number += 1
    return number


def paused(seed: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    pauses = stalls.Pauses(seed, __file__)
    with pauses.tracing():
        assert counted() == 6
    return pauses.had


def test_one_seed_draws_the_same_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    # What other tests of this process have started may end meanwhile.
    monkeypatch.setattr(stalls, "below_this", lambda: set[int]())
    by_seed = [paused(f"seed {number}", monkeypatch) for number in range(20)]
    assert by_seed == [paused(f"seed {number}", monkeypatch) for number in range(20)]
    assert any(by_seed)
    assert all(len(each) <= stalls.LINES_MAX for each in by_seed)


@pytest.mark.processes
def test_a_paused_process_continues_unless_the_test_stopped_it() -> None:
    argv = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(argv) as one, subprocess.Popen(argv) as other:
        pauses = stalls.Pauses("seed", __file__)
        try:
            with pauses.tracing():
                assert {one.pid, other.pid} <= stalls.below_this()
                pauses._stall("its processes", 3_600.0, 0.0, "here")
                wait_until(lambda: is_stopped(one.pid) and is_stopped(other.pid))
                other.send_signal(signal.SIGSTOP)
                [timer] = pauses._timers
                timer.cancel()
                timer.function(*timer.args)  # as if the time were over
            wait_until(lambda: not is_stopped(one.pid))
            assert is_stopped(other.pid)
        finally:
            one.kill()
            other.kill()
