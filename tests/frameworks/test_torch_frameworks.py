"""Lightning, accelerate and DeepSpeed, as programs for torchrun: a node is killed and replaced."""

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

LIGHTNING_AND_ACCELERATE = ("lightning==2.6.6", "accelerate==1.15.0")
DEEPSPEED = ("deepspeed==0.19.8",)
HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("framework", "packages", "workers"),
    [
        ("lightning", LIGHTNING_AND_ACCELERATE, 2),
        ("accelerate", LIGHTNING_AND_ACCELERATE, 2),
        ("deepspeed", DEEPSPEED, 1),  # each process loads for seven seconds
    ],
    ids=["lightning", "accelerate", "deepspeed"],
)
def test_a_node_is_replaced_and_the_training_resumes(
    run: Programs, framework: str, packages: tuple[str, ...], workers: int
) -> None:
    run.interpreter = python_with(*packages)
    checkpoints = run.directory / "checkpoints"
    checkpoints.mkdir()
    program = (str(HERE / f"{framework}_program.py"), str(checkpoints))
    options = f"--nnodes 2 --nproc-per-node {workers} --max-restarts 3"
    host = run.node("a", options, *program, is_host=True)
    run.wait_for_coordinator()
    victim = run.node("b", options, *program)
    size = 2 * workers
    for rank in range(size):
        agent = host if rank < workers else victim
        agent.wait_for(f"starts: rank {rank} of {size}, local {rank % workers}, epoch 0")
    host.wait_for("epoch 2")
    victim.kill()

    replacement = run.node("c", options, *program)
    for rank in range(size):
        agent = host if rank < workers else replacement
        assert int(agent.wait_for(rf"starts: rank {rank} of {size}.*epoch ([1-9]\d*)")[1]) >= 1
    assert [host.end(), replacement.end()] == [0, 0]
    assert len(re.findall(r"\bdone\b", host.text + replacement.text)) == size
