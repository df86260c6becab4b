"""JAX on CPUs: workers that are replaced, and processes that go on without a killed one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.examples.programs import Programs
from tests.frameworks.environments import python_with
from tests.kinds import LONG

pytestmark = [
    pytest.mark.processes,
    pytest.mark.verify,
    pytest.mark.timeout(600),
    # At the end of a run, JAX sometimes aborts a process whose rank 0 has ended a moment before.
    pytest.mark.skipif(not LONG, reason="JAX may abort at the end: make verify LONG=1 runs it"),
]

JAX = ("jax==0.10.2",)
PROGRAM = str(Path(__file__).with_name("jax_program.py"))
ON_CPU = {"JAX_PLATFORMS": "cpu"}


@pytest.fixture
def jax(run: Programs) -> Programs:
    run.interpreter = python_with(*JAX)
    return run


def test_a_node_of_two_processes_is_replaced(jax: Programs) -> None:
    """Slurm's variables are there, too: JAX would take the agents of the job for its processes."""
    slurm = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    slurm |= {"SLURM_STEP_NODELIST": "localhost"}
    options = "--nnodes 2 --nproc-per-node 2 --max-restarts 3"
    host = jax.node("a", options, PROGRAM, "worker", is_host=True, env=ON_CPU | slurm)
    jax.wait_for_coordinator()
    victim = jax.node("b", options, PROGRAM, "worker", env=ON_CPU | slurm)
    for rank in range(4):
        found = (victim if rank > 1 else host).wait_for(rf"round 1: rank {rank} of 4 sees GPU (\d)")
        assert found[1] == str(rank % 2)
    host.wait_for(r"round 1: rank \d of 4 trains")
    victim.kill()

    replacement = jax.node("c", options, PROGRAM, "worker", env=ON_CPU | slurm)
    assert [host.end(), replacement.end()] == [0, 0]
    assert len(re.findall(r"\btrained\b", host.text + replacement.text)) == 4


def test_processes_go_on_without_one_that_is_killed(jax: Programs) -> None:
    serve = jax.cli("serve", "--port", str(jax.port))
    jax.wait_for_coordinator()
    nodes = [
        jax.python(PROGRAM, "worlds", f"http://{jax.endpoint}", f"n{each}", **ON_CPU)
        for each in range(3)
    ]
    ranks = {each.wait_for(r"round 1: rank (\d) of 3 trains, pid (\d+)")[1]: each for each in nodes}
    victim = ranks.pop("2")  # JAX ends all if rank 0 is lost
    victim.kill()
    for each in ranks.values():
        each.wait_for("round 1 ended: node_lost")
        found = each.wait_for(r"round 2: rank \d of 2 trains, pid (\d+)")
        assert found[1] == str(each.process.pid)
        assert each.end() == 0
    serve.process.terminate()
    serve.end()
