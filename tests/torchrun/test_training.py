"""DDP under real torchrun agents: a job that grows, loses a machine, and survives its coordinator.

One job per story, as starting torch is what takes the time.
"""

from __future__ import annotations

import importlib.util
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.agent.processes import alive
from tests.kinds import only_long
from tests.torchrun.jobs import STEADY, Job

pytestmark = [
    pytest.mark.processes,
    pytest.mark.verify,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed"),
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_ddp.py"
SURVIVORS = "expected_nodes=2,last_call=60"
"""Two nodes begin at once, and whoever was in a round is waited for in the next."""
GIVES_UP_AFTER_S = 150.0
"""Far below the half hour after which a collective gives up, far above what a regroup takes."""


def epoch_of(job: Job, size: int) -> int:
    """From which epoch the world of this size went on, once it has made a step."""
    return int(job.says(rf"stepped \d of {size} from epoch (\d+)")[1])


def epochs_over(job: Job) -> int:
    text = "\n".join(node.text for node in job.nodes.values())
    return max((int(number) for number in re.findall(r"epoch (\d+) is over", text)), default=0)


def test_a_job_grows_loses_a_machine_and_survives_its_coordinator(job: Job) -> None:
    serving = job.serve()
    # Each regroup ends worlds that are at work: an agent that sees its worker fail for that before
    # it sees that the round is over counts it as a restart.
    given: dict[str, Any] = {"conf": SURVIVORS, "options": ("--max-restarts=2",)}
    job.start("a b", STEADY, **given)
    first = job.at_work("a b")
    assert epoch_of(job, 2) == 0

    # A third machine comes: training regroups at three, and goes on from the checkpoint.
    job.wait(lambda: epochs_over(job) >= 1, "an epoch is over")
    job.start("c", STEADY, **given)
    grown = job.at_work("a b c")
    assert epoch_of(job, 3) >= 1
    assert grown[0].store != first[0].store  # fresh in each round
    assert [worker.rank for worker in grown[:2]] == [worker.rank for worker in first]

    # It dies: the others go on without it, and do not wait for a collective's timeout.
    before = epochs_over(job)
    job.nodes["c"].die()
    died_s = time.monotonic()
    shrunk = job.at_work("a b")
    job.wait(lambda: epochs_over(job) > before, "training goes on")
    assert time.monotonic() - died_s < GIVES_UP_AFTER_S
    assert shrunk[0].store not in (first[0].store, grown[0].store)

    # The coordinator's process is killed and started again; no worker is.
    serving.signal(signal.SIGKILL)
    serving.popen.wait()
    job.serve()
    job.attached(2)
    before = epochs_over(job)
    job.wait(lambda: epochs_over(job) > before, "training has gone on all the time")
    assert [node.workers()[-1] for node in (job.nodes["a"], job.nodes["b"])] == shrunk
    assert all(alive(worker.pid) for worker in shrunk)

    job.end()
    job.end_well("a b")
    assert len(job.nodes["a"].workers()) == 3  # one for each round


def test_the_workers_store_may_be_torch_s_own(job: Job) -> None:
    """TORCH_DISABLE_SHARE_RDZV_TCP_STORE: the worker with rank 0 serves it, on the port offered."""
    arguments = ("--checkpoint", str(job.folder / "ddp.pt"), "--epochs", "3")
    env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    job.start("a b", EXAMPLE, *arguments, nnodes="2", conf="is_host=1", env=env)
    job.end_well("a b")
    job.says("2 workers go on from epoch 0 of 3")
    assert float(job.says(r"test accuracy ([\d.]+)")[1]) > 0.8


@only_long
def test_a_job_grows_with_torchs_own_store(job: Job) -> None:
    env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    options = ("--max-restarts=1",)  # as above
    job.start("a b", STEADY, nnodes="2:3", options=options, conf="is_host=1", env=env)
    first = job.at_work("a b")
    assert epoch_of(job, 2) == 0
    job.start("c", STEADY, nnodes="2:3", options=options, conf="is_host=0", env=env)
    grown = job.at_work("a b c")
    epoch_of(job, 3)
    assert grown[0].store != first[0].store
    job.end()
    job.end_well("a b c")
