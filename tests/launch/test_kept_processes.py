"""The workers of one round, of which some go on from the round before."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from rallypoint.launch.kept_processes import EachWorker
from rallypoint.launch.oom import OomCounter
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


@pytest.mark.parametrize("in_the_later_round", [False, True])
def test_a_kill_for_lack_of_memory_is_a_cause_only_in_its_own_round(
    in_the_later_round: bool, tmp_path: Path
) -> None:
    """The counter is that of the whole machine: in an earlier round it counted another process."""
    (tmp_path / "proc").mkdir()
    counted = tmp_path / "proc/vmstat"
    counted.write_text("oom_kill 1\n")

    async def main() -> None:
        output, exits = Lines(), Exits()

        def make(each: WorkerSpec, told: Callable[[WorkerExit], None]) -> WorkerGroup:
            counter = OomCounter(tmp_path)
            return WorkerGroup([each], output=output, exits=told, oom_counter=counter)

        specs = [spec(HAS_CHILDREN)]
        first = EachWorker(specs, exits, make)
        await first.start()
        second = EachWorker(specs, exits, make, first, (0,))
        try:
            assert await output.line(0) == "ready"
            counted.write_text("oom_kill 2\n")
            await first.stop(0, kept=(0,))
            await second.start()
            if in_the_later_round:
                counted.write_text("oom_kill 3\n")
            os.kill(first.pids[0], signal.SIGKILL)
            assert (await exits.next()).oom is in_the_later_round
        finally:
            await second.stop(0)
            output.close_all()

    asyncio.run(main())
