"""The first process of a container waits for orphans, and for nobody else's children."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from rallypoint.launch.guard_process import read_process
from rallypoint.launch.orphans import OrphanReaper
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc"),
]


@pytest.fixture
def zombie() -> Iterator[subprocess.Popen[bytes]]:
    popen = subprocess.Popen([sys.executable, "-I", "-S", "-c", "raise SystemExit(7)"])
    wait_until(lambda: (found := read_process(popen.pid)) is not None and not found.alive)
    yield popen
    popen.wait()


def others() -> set[int]:
    """What this process may have as children besides: those of other tests."""
    return set()


def test_an_orphan_is_waited_for_at_the_second_look(zombie: subprocess.Popen[bytes]) -> None:
    reaper = OrphanReaper(others)
    assert reaper.reap() == 0
    assert read_process(zombie.pid) is not None
    assert reaper.reap() == 1
    assert read_process(zombie.pid) is None
    assert reaper.reap() == 0


def test_an_own_child_keeps_its_exit_code(zombie: subprocess.Popen[bytes]) -> None:
    reaper = OrphanReaper(lambda: {zombie.pid})
    assert [reaper.reap() for _ in range(3)] == [0, 0, 0]
    assert zombie.wait() == 7


def test_a_living_child_is_left_alone() -> None:
    read, write = os.pipe()
    with subprocess.Popen(["cat"], stdin=read) as living:
        reaper = OrphanReaper(others)
        assert [reaper.reap() for _ in range(2)] == [0, 0]
        os.close(read)
        os.close(write)
        assert living.wait() == 0
