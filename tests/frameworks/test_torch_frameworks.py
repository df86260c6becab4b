"""Lightning and accelerate, as programs for torchrun: a node is killed and replaced."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.examples.programs import Programs
from tests.frameworks.environments import python_with

pytestmark = [
    pytest.mark.processes,
    pytest.mark.verify,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed"),
]

PACKAGES = ("lightning==2.6.6", "accelerate==1.15.0")
HERE = Path(__file__).parent


@pytest.mark.parametrize("framework", ["lightning", "accelerate"])
def test_a_node_is_replaced_and_the_training_resumes(run: Programs, framework: str) -> None:
    run.interpreter = python_with(*PACKAGES)
    checkpoints = run.directory / "checkpoints"
    checkpoints.mkdir()
    program = (str(HERE / f"{framework}_program.py"), str(checkpoints))
    options = "--nnodes 2 --nproc-per-node 2 --max-restarts 3"
    host = run.node("a", options, *program, is_host=True)
    run.wait_for_coordinator()
    victim = run.node("b", options, *program)
    for agent, ranks in ((host, (0, 1)), (victim, (2, 3))):
        for rank in ranks:
            agent.wait_for(f"starts: rank {rank} of 4, local {rank % 2}, epoch 0")
    host.wait_for("epoch 2")
    victim.kill()

    replacement = run.node("c", options, *program)
    for rank in range(4):
        agent = host if rank < 2 else replacement
        assert int(agent.wait_for(rf"starts: rank {rank} of 4.*epoch ([1-9]\d*)")[1]) >= 1
    assert [host.end(), replacement.end()] == [0, 0]
    assert len(re.findall(r"\bdone\b", host.text + replacement.text)) == 4
