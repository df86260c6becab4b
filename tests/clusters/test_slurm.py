"""Jobs of a real Slurm: they meet, lose hosts, are requeued and are signalled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clusters.slurm import Slurm

pytestmark = [pytest.mark.processes, pytest.mark.verify]
Make = Callable[[int], Slurm]

EXAMPLES = Path(__file__).parents[2] / "examples"
DIGITS = f"{EXAMPLES}/train_digits.py --checkpoints {{checkpoints}} --pause 0.1 --epochs 10"
QUICK = {"RALLYPOINT_LOST_AFTER": "4", "RALLYPOINT_SUSPECT_AFTER": "2"}
"""So that a host without power is lost in seconds, and not in half a minute."""


def test_a_job_trains_and_goes_on_when_a_host_is_powered_off(make_slurm: Make) -> None:
    slurm = make_slurm(4)
    slurm.hosts.env.update(QUICK)
    job = slurm.submit(f"""#!/bin/bash
#SBATCH --nodes=4 --ntasks-per-node=1 --no-kill --signal=TERM@120
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --no-kill --kill-on-bad-exit=0 rallypoint run --nnodes 3:4 --expected-nodes 4 \\
    --endpoint "$head:29400" --run-id "$SLURM_JOB_ID" {DIGITS.format(checkpoints=slurm.folder)}
""")
    job.says("round 1: 4 workers go on")
    job.says("epoch 2 of")
    slurm.hosts["n3"].power_off()
    job.says("round 2: 3 workers go on")
    job.says("srun: error: Node failure on n3")
    assert "test accuracy" in job.ends("COMPLETED")
