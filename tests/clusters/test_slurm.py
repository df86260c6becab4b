"""Jobs of a real Slurm: they meet, lose hosts, are requeued and are signalled."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clusters.slurm import Slurm

pytestmark = [pytest.mark.processes, pytest.mark.verify, pytest.mark.timeout(240)]
Make = Callable[[int], Slurm]

EXAMPLES = Path(__file__).parents[2] / "examples"
DIGITS = f"{EXAMPLES}/train_digits.py --checkpoints checkpoints --epochs 5 --pause 0.05"
DDP = f"{EXAMPLES}/train_ddp.py --checkpoint ddp.pt --epochs 1"
RUN = 'rallypoint run --endpoint "$head:29400" --run-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"'
HEAD = 'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
KEEP = "srun --no-kill --kill-on-bad-exit=0"
QUICK = {"RALLYPOINT_LOST_AFTER": "4", "RALLYPOINT_SUSPECT_AFTER": "2"}
"""So that a host without power is lost in seconds, and not in half a minute."""


def batch(*lines: str, sbatch: str = "") -> str:
    """A batch script: one task on each node."""
    first = ("#!/bin/bash", f"#SBATCH --ntasks-per-node=1 {sbatch}", HEAD)
    return "\n".join((*first, *lines)) + "\n"


class TestAHostIsPoweredOff:
    def test_no_kill_for_job_and_step_the_run_goes_on(self, make_slurm: Make) -> None:
        slurm = make_slurm(4)
        slurm.hosts.env.update(QUICK)
        job = slurm.submit(
            batch(
                f"{KEEP} {RUN} --nnodes 3:4 --expected-nodes 4 {DIGITS}",
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
                f"srun --kill-on-bad-exit=0 {RUN} --nnodes 2:3 --expected-nodes 3 {slurm.steady}",
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
                f"srun --kill-on-bad-exit=0 {RUN} --nnodes 2:3 --expected-nodes 3 {slurm.steady}",
                sbatch="--nodes=3 --requeue",
            )
        )
        job.says(f"of 3 works in round 1 of {job.id}-0")
        assert slurm.show(job.id)["NodeList"] == "n[1-3]"
        slurm.hosts["n3"].power_off()
        job.says(f"of 3 works in round 1 of {job.id}-1")
        slurm.finish()
        job.ends("COMPLETED")
        after = slurm.show(job.id)
        assert (after["Restarts"], after["NodeList"]) == ("1", "n[1-2,4]")


def test_a_requeued_job_does_not_meet_its_old_self(make_slurm: Make) -> None:
    """The ledger still has the run that ended when Slurm stopped the job."""
    slurm = make_slurm(2)
    line = f"srun {RUN} --endpoint file://$PWD/ledger --nnodes 2 {slurm.steady}"
    job = slurm.submit(batch(line, sbatch="--nodes=2 --requeue"))
    job.says(f"of 2 works in round 1 of {job.id}-0")
    slurm.hosts.run("ctl", "scontrol", "requeue", job.id)
    job.says(f"of 2 works in round 1 of {job.id}-1")
    slurm.finish()
    job.ends("COMPLETED")


def test_term_to_a_step_is_one_departure_of_each_node(make_slurm: Make) -> None:
    slurm = make_slurm(3)
    line = f"srun {RUN} --nnodes 2:3 --expected-nodes 3 --stop-timeout 5 {slurm.steady}"
    job = slurm.submit(batch(line, sbatch="--nodes=3"))
    for number in range(3):
        job.says(f"worker {number} of 3 works in round 1")
    slurm.hosts.run("ctl", "scancel", "--signal=TERM", f"{job.id}.0")
    text = job.ends("FAILED")
    for number in range(3):
        assert f"worker {number} has TERM" in text
        assert re.search(rf"worker {number} sees .* left: its agent got SIGTERM", text)
    assert "restart" not in text


def test_torchrun_over_the_backend(make_slurm: Make) -> None:
    pytest.importorskip("torch")
    slurm = make_slurm(2)
    line = (
        f"{KEEP} torchrun --rdzv-backend=rallypoint --rdzv-endpoint=$head:29400"
        f" --rdzv-id=$SLURM_JOB_ID --nnodes=2 --max-restarts=3 {DDP}"
    )
    text = slurm.submit(batch(line, sbatch="--nodes=2")).ends("COMPLETED", 120)
    assert "round 1: 2 nodes" in text
    assert "test accuracy" in text


def test_mpirun_inside_a_job(make_slurm: Make) -> None:
    slurm = make_slurm(3)
    line = f"mpirun --allow-run-as-root -N 1 {RUN} --nnodes 3 {slurm.steady}"
    slurm.finish()
    job = slurm.submit(batch(line, sbatch="--nodes=3"))
    text = job.ends("COMPLETED")
    for number in range(3):
        assert f"worker {number} of 3 works in round 1" in text
