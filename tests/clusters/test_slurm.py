"""Jobs of a real Slurm: they meet, lose hosts, are requeued and are signalled."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clusters.slurm import Slurm

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


class TestAHostIsPoweredOff:
    def test_no_kill_for_job_and_step_the_run_goes_on(self, make_slurm: Make) -> None:
        slurm = make_slurm(4)
        slurm.hosts.env.update(QUICK)
        job = slurm.submit(
            batch(
                f"{KEEP} rallypoint run --nnodes 3:4 {DIGITS}",
                sbatch="--nodes=4 --no-kill --signal=TERM@120",
            )
        )
        job.says("round 1: 4 workers go on")
        slurm.hosts["n3"].power_off()
        job.says("round 2: 3 workers go on")
        job.says("srun: error: Node failure on n3")
        assert "test accuracy" in job.ends("COMPLETED")

    def test_no_kill_for_the_job_alone_the_step_ends(self, make_slurm: Make) -> None:
        """The reason why docs/clusters.md begins with --no-kill on srun."""
        slurm = make_slurm(3)
        slurm.hosts.env.update(QUICK)
        job = slurm.submit(
            batch(
                f"srun --kill-on-bad-exit=0 rallypoint run --nnodes 2:3 {slurm.steady}",
                sbatch="--nodes=3 --no-kill --no-requeue",
            )
        )
        job.says("of 3 works in round 1")
        slurm.hosts["n3"].power_off()
        job.says("Force Terminated StepId")
        job.ends("FAILED")

    def test_no_kill_at_all_the_job_is_requeued(self, make_slurm: Make) -> None:
        slurm = make_slurm(4)
        slurm.hosts.env.update(QUICK)
        job = slurm.submit(
            batch(
                f"srun --kill-on-bad-exit=0 rallypoint run --nnodes 2:3 {slurm.steady}",
                sbatch="--nodes=3 --requeue",
            )
        )
        job.says(f"of 3 works in round 1 of slurm-{job.id}.0")
        assert slurm.show(job.id)["NodeList"] == "n[1-3]"
        slurm.hosts["n3"].power_off()
        job.says(f"of 3 works in round 1 of slurm-{job.id}.0-r1")
        slurm.finish()
        job.ends("COMPLETED")
        after = slurm.show(job.id)
        assert (after["Restarts"], after["NodeList"]) == ("1", "n[1-2,4]")


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
    line = f"srun rallypoint run --nnodes 2:3 --stop-timeout 5 {slurm.steady}"
    job = slurm.submit(batch(line, sbatch="--nodes=3"))
    for number in range(3):
        job.says(f"worker {number} of 3 works in round 1")
    slurm.hosts.run("ctl", "scancel", "--signal=TERM", f"{job.id}.0")
    text = job.ends("FAILED")
    for number in range(3):
        assert f"worker {number} has TERM" in text
        assert re.search(rf"worker {number} sees .* left: its agent got SIGTERM", text)
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
