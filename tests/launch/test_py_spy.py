"""Where a worker stands that has not joined: py-spy says it, if it is installed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from rallypoint.launch import worker_stacks
from rallypoint.launch.worker_stacks import PY_SPY, Asked, stacks_of

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(worker_stacks.py_spy() is None, reason="py-spy is not installed"),
]

PROGRAM = """
import sys
import threading
import time

def poll():
    time.sleep(600)

def load():
    print("here", flush=True)
    sys.stdin.read()

threading.Thread(target=poll, daemon=True).start()
load()
"""


def test_py_spy_says_where_the_main_thread_stands(tmp_path: Path) -> None:
    program = tmp_path / "plain.py"
    program.write_text(PROGRAM)
    argv = [sys.executable, str(program)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        found: list[str] = []
        for _ in range(20):  # a busy machine may not let it answer in its 1.2 s
            (stack,) = asyncio.run(stacks_of([Asked(3, 0, process.pid)], 64 * 1024))
            found.append(f"{stack.source}: {stack.place}: {stack.text}")
            # It does not stop the process to read it, so it may find it between two calls.
            if stack.source == PY_SPY and "load" in stack.place:
                break
        else:
            pytest.fail("\n".join(found))
        assert stack.place == "load (plain.py:11)"
        assert not stack.is_waiting
        assert f"/proc: process {process.pid}" in stack.text
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0
