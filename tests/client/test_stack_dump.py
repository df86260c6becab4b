"""The file to which a worker writes its stacks."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rallypoint.client import stack_dump


@pytest.fixture(autouse=True)
def unregistered() -> Iterator[None]:
    yield
    number = stack_dump.dump_signal()
    if number is not None:
        faulthandler.unregister(number)


@pytest.mark.skipif(stack_dump.dump_signal() is None, reason="this system has no signal to spare")
def test_a_worker_that_is_kept_for_many_rounds_has_one_such_file_open(tmp_path: Path) -> None:
    """It gets another file in each round."""
    found = stack_dump.dump_on_signal(str(tmp_path / "stacks-0-0.txt"))
    assert found is not None
    before = len(list(Path("/proc/self/fd").iterdir()))
    last = tmp_path / "stacks-9-0.txt"
    for number in range(1, 10):
        assert stack_dump.dump_on_signal(str(tmp_path / f"stacks-{number}-0.txt")) == found
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    os.kill(*found)
    ends_s = time.monotonic() + 20
    while not last.stat().st_size and time.monotonic() < ends_s:
        signal.sigtimedwait([], 0.01)
    assert "test_stack_dump" in last.read_text()
    assert not (tmp_path / "stacks-8-0.txt").read_text()
