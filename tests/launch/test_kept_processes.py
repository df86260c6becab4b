"""The workers of one round, of which some go on from the round before."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from rallypoint.launch.kept_processes import EachWorker
from rallypoint.launch.worker_processes import WorkerExit, WorkerGroup, WorkerSpec
from tests.launch.child_workers import Exits, Lines, spec, until

pytestmark = pytest.mark.processes

# Children in its session, which outlive it until they are killed.
HAS_CHILDREN = """
import os, time
for _ in range(30):
    if os.fork() == 0:
        time.sleep(600)
print('ready', flush=True); time.sleep(600)
"""


def test_what_an_ended_worker_leaves_is_gone_before_another_takes_its_place() -> None:
    """R13: it ended after the others had been stopped, while it waited for this round."""

    async def main() -> None:
        output, exits = Lines(), Exits()

        def make(each: WorkerSpec, told: Callable[[WorkerExit], None]) -> WorkerGroup:
            return WorkerGroup([each], output=output, exits=told)

        specs = [spec(HAS_CHILDREN, each) for each in range(2)]
        first = EachWorker(specs, exits, make)
        await first.start()
        second: EachWorker | None = None
        try:
            for each in range(2):
                assert await output.line(each) == "ready"
            pids = first.pids
            assert await first.stop(0, kept=(0, 1)) == ()
            os.kill(pids[1], signal.SIGKILL)
            await until(lambda: first.running == (0,))
            second = EachWorker(specs, exits, make, first, (0,))
            await second.start()
            # It was reaped, which is done when its session is empty.
            assert not Path(f"/proc/{pids[1]}").exists()
            assert second.pids[0] == pids[0]
            assert sorted(second.running) == [0, 1]
        finally:
            for workers in (first, second):
                if workers is not None:
                    await workers.stop(0)
            output.close_all()

    asyncio.run(main())
