"""Jobs of a real Slurm: they meet, lose hosts, are requeued and are signalled."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clusters.slurm import Job, Slurm
from tests.clusters.slurm import slurm as a_slurm

pytestmark = [pytest.mark.processes, pytest.mark.verify, pytest.mark.timeout(240)]
Make = Callable[[int], Slurm]

EXAMPLES = Path(__file__).parents[2] / "examples"
DIGITS = f"{EXAMPLES}/train_digits.py --checkpoints checkpoints --epochs 5 --pause 0.05"
DDP = f"{EXAMPLES}/train_ddp.py --checkpoint ddp.pt --epochs 1"
KEEP = "srun --no-kill --kill-on-bad-exit=0"
LOADS = """
import rallypoint.cli.run, rallypoint.launch.agent, rallypoint.coordinator.server
print('loaded', flush=True)
"""
"""What an agent loads."""
QUICK = {"RALLYPOINT_LOST_AFTER": "4", "RALLYPOINT_SUSPECT_AFTER": "2"}
"""So that a host without power is lost in seconds, and not in half a minute."""


def batch(*lines: str, sbatch: str = "") -> str:
    """A batch script: one task on each node."""
    first = ("#!/bin/bash", f"#SBATCH --ntasks-per-node=1 {sbatch}")
    return "\n".join((*first, *lines)) + "\n"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with a_slurm(tmp_path_factory.mktemp("power") / "slurm", 10) as made:
        made.hosts.env.update(QUICK)
        yield made


@pytest.fixture(scope="module")
def jobs(large: Slurm) -> dict[str, Job]:
    """By which of `sbatch` and `srun` have --no-kill. The last host of each loses its power."""
    options = ("--exclusive", "--nodes=3")
    run = f"srun --kill-on-bad-exit=0 rallypoint run --nnodes 2:3 {large.steady}"
    jobs = {
        "both": large.submit(
            batch(
                f"{KEEP} rallypoint run --nnodes 2:3 --nproc-per-node 2 {DIGITS}",
                sbatch="--no-kill --signal=TERM@120",
            ),
            options=options,
        ),
        "sbatch": large.submit(batch(run, sbatch="--no-kill --no-requeue"), options=options),
        "none": large.submit(batch(run, sbatch="--requeue"), options=options),
    }
    jobs["both"].says("round 1: 6 workers go on from epoch 0")
    jobs["sbatch"].says(f"of 3 works in round 1 of slurm-{jobs['sbatch'].id}.0")
    jobs["none"].says(f"of 3 works in round 1 of slurm-{jobs['none'].id}.0")
    for hosts, job in zip(("n[1-3]", "n[4-6]", "n[7-9]"), jobs.values(), strict=True):
        assert large.show(job.id)["NodeList"] == hosts
    for name in ("n3", "n6", "n9"):
        large.hosts[name].power_off()
    return jobs


class TestAHostOfAJobIsPoweredOff:
    """Three jobs of three hosts at the same time, because Slurm needs a while to notice it."""

    def test_no_kill_for_both_the_run_goes_on(self, jobs: dict[str, Job]) -> None:
        jobs["both"].says("round 2: 4 workers go on")
        jobs["both"].says("srun: error: Node failure on n3")
        assert "test accuracy" in jobs["both"].ends("COMPLETED")

    def test_no_kill_for_the_job_alone_the_step_ends(self, jobs: dict[str, Job]) -> None:
        """The reason why docs/clusters.md begins with --no-kill on srun."""
        jobs["sbatch"].says("Force Terminated StepId")
        jobs["sbatch"].ends("FAILED")

    def test_no_kill_at_all_the_job_is_requeued(self, large: Slurm, jobs: dict[str, Job]) -> None:
        job = jobs["none"]
        job.says(f"of 3 works in round 1 of slurm-{job.id}.0-r1")
        large.finish()
        job.ends("COMPLETED")
        after = large.show(job.id)
        assert after["Restarts"] == "1"
        assert after["NodeList"] != "n[7-9]"


def test_a_requeued_job_does_not_meet_its_old_self(make_slurm: Make) -> None:
    """The ledger still has the run that ended when Slurm stopped the job."""
    slurm = make_slurm(2)
    line = f"srun rallypoint run --endpoint file://$PWD/ledger {slurm.steady}"
    job = slurm.submit(batch(line, sbatch="--nodes=2 --requeue"))
    job.says(f"of 2 works in round 1 of slurm-{job.id}.0")
    slurm.hosts.run("ctl", "scontrol", "requeue", job.id)
    job.says(f"of 2 works in round 1 of slurm-{job.id}.0-r1")
    slurm.finish()
    job.ends("COMPLETED")


def test_term_to_a_step_is_one_departure_of_each_node(make_slurm: Make) -> None:
    slurm = make_slurm(3)
    # Slurm 22.05 does not tell the end of the job; later releases do.
    end = "export SLURM_JOB_END_TIME=$(($(date +%s) + 400))"
    line = f"srun rallypoint run --nnodes 2:3 {slurm.steady}"
    job = slurm.submit(batch(end, line, sbatch="--nodes=3"))
    for number in range(3):
        job.says(f"worker {number} of 3 works in round 1")
    slurm.hosts.run("ctl", "scancel", "--signal=TERM", f"{job.id}.0")
    text = job.ends("FAILED")
    for number in range(3):
        assert f"worker {number} has TERM" in text
        assert re.search(rf"worker {number} sees .* left: its agent got SIGTERM", text)
        assert f"worker {number} has left" in text
    given = re.findall(r"the workers have (\d+) s to stop, because the job ends in (\d+) s", text)
    assert given
    assert all(int(left_s) <= 400 and int(grace_s) == int(left_s) - 5 for grace_s, left_s in given)
    assert "restart" not in text


def test_two_tasks_a_node_with_two_workers_each_are_refused(make_slurm: Make) -> None:
    slurm = make_slurm(2)
    line = f"srun rallypoint run --nproc-per-node 2 {slurm.steady}"
    text = slurm.submit(batch(line, sbatch="--nodes=2 --ntasks-per-node=2")).ends("FAILED")
    assert "SLURM_STEP_NUM_TASKS=4 on SLURM_STEP_NUM_NODES=2" in text
    assert "hint: start one task on each node: srun --ntasks-per-node=1" in text
    assert "works in round" not in text


def test_without_srun_the_batch_script_does_not_train_alone(make_slurm: Make) -> None:
    slurm = make_slurm(2)
    line = f"rallypoint run {slurm.steady}"
    text = slurm.submit(batch(line, sbatch="--nodes=2")).ends("FAILED")
    assert "hint: put srun in front of the command" in text
    assert "works in round" not in text


def test_the_first_round_comes_soon_after_the_start_of_the_interpreters(make_slurm: Make) -> None:
    """Four hosts. The best of some tries counts: the machine may do much else meanwhile."""
    slurm = make_slurm(4)
    slurm.finish()

    def lasts_s(pattern: str, *command: str) -> float:
        began_s = time.monotonic()
        step = slurm.hosts.start("ctl", "srun", "--nodes=4", *command)
        for _ in range(4):
            step.line(pattern)
        took_s = time.monotonic() - began_s
        step.ends(0)
        return took_s

    def beyond_s() -> float:
        loaded_s = lasts_s("loaded", "python", "-c", LOADS)
        round_s = lasts_s("round 1: 4 nodes", "rallypoint", "run", slurm.steady)
        print(f"interpreters {loaded_s:.2f} s, first round {round_s:.2f} s")
        return round_s - loaded_s

    assert any(beyond_s() <= 1 for _ in range(5))


def test_torchrun_over_the_backend(make_slurm: Make) -> None:
    pytest.importorskip("torch")
    slurm = make_slurm(2)
    line = f"{KEEP} torchrun --rdzv-backend=rallypoint --max-restarts=3 {DDP}"
    text = slurm.submit(batch(line, sbatch="--nodes=2")).ends("COMPLETED", 120)
    assert "round 1: 2 nodes" in text
    assert "test accuracy" in text


def test_mpirun_inside_a_job(make_slurm: Make) -> None:
    slurm = make_slurm(3)
    line = f"mpirun --allow-run-as-root -N 1 rallypoint run {slurm.steady}"
    slurm.finish()
    job = slurm.submit(batch(line, sbatch="--nodes=3"))
    text = job.ends("COMPLETED")
    for number in range(3):
        assert f"worker {number} of 3 works in round 1" in text
