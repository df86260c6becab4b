"""Steps of a real Slurm find what they need, without an option."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tests.clusters.slurm import Slurm

pytestmark = [pytest.mark.processes, pytest.mark.verify]
Make = Callable[[int], Slurm]

WORKER = """
import os
print(f"worker {os.environ['RANK']} of {os.environ['WORLD_SIZE']}", flush=True)
"""
JOINS = """
import rallypoint
with rallypoint.join() as run:
    for world in run.worlds():
        with world:
            world.barrier("all", timeout=30)
            print(f"worker {world.rank} of {world.size}\\n", end="", flush=True)
        break
"""


def script(slurm: Slurm, name: str, text: str) -> str:
    path = slurm.folder / name
    path.write_text(text)
    return str(path)


def part(text: str, name: str) -> str:
    """What the job said between the line `== name` and the next such line."""
    return text.partition(f"== {name}\n")[2].partition("\n== ")[0]


def test_steps_and_shells_of_a_job_know_their_run(make_slurm: Make) -> None:
    slurm = make_slurm(2)
    worker, joins = script(slurm, "worker.py", WORKER), script(slurm, "joins.py", JOINS)
    steps = {
        "shell": f"rallypoint run {worker}",
        "join in the shell": f"{sys.executable} {joins}",
        "env": "srun --ntasks-per-node=1 -n 2 rallypoint env",
        "step": f"srun --ntasks-per-node=1 -n 2 rallypoint run {worker}",
        "two tasks a node": f"srun -n 4 rallypoint run {worker}",
        "two tasks a node, two workers": f"srun -n 4 rallypoint run --nproc-per-node 2 {worker}",
        "join": f"srun --ntasks-per-node=1 -n 2 {sys.executable} {joins}",
    }
    lines = "\n".join(f"echo '== {name}'\n{command} 2>&1" for name, command in steps.items())
    job = slurm.submit(f"#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=2\n{lines}\nexit 0\n")
    text = job.ends("COMPLETED", 120)
    for name in ("shell", "join in the shell"):
        assert "SLURM_JOB_NUM_NODES=2: the job has 2 nodes" in part(text, name)
        assert "put srun in front" in part(text, name)
        assert "worker" not in part(text, name)
    assert "launcher Slurm: SLURM_STEP_NUM_TASKS" in part(text, "env")
    for name, size in (("step", 2), ("two tasks a node", 4), ("join", 2)):
        said = part(text, name)
        for rank in range(size):
            assert f"worker {rank} of {size}" in said, said
    refused = part(text, "two tasks a node, two workers")
    assert "SLURM_STEP_NUM_TASKS=4 on SLURM_STEP_NUM_NODES=2" in refused
    assert "worker 0" not in refused
