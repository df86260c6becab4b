"""Lightning, accelerate and DeepSpeed, as programs for torchrun: a node is killed and replaced."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from pathlib import Path

import pytest

from tests.agent.processes import Process
from tests.examples.programs import Programs
from tests.frameworks.environments import python_with
from tests.kinds import only_long
from tests.ports import free_port

pytestmark = [
    pytest.mark.processes,
    pytest.mark.verify,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed"),
]

LIGHTNING_AND_ACCELERATE = ("lightning==2.6.6", "accelerate==1.15.0")
DEEPSPEED = ("deepspeed==0.19.8",)
HERE = Path(__file__).parent


def test_two_jobs_of_accelerate_launch_do_not_become_one(tmp_path: Path) -> None:
    """It passes on torchrun's id `none`, and has no option for another one."""
    program = tmp_path / "program.py"
    program.write_text("import os; print('worker', os.environ['RANK'], flush=True)\n")
    command = (
        python_with(*LIGHTNING_AND_ACCELERATE),
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
    )
    port = free_port()
    where = ("--main_process_ip", "127.0.0.1", "--main_process_port", str(port))
    size = ("--num_machines", "2", "--num_processes", "2", "--rdzv_backend", "rallypoint")
    with contextlib.ExitStack() as stack:

        def start(machine: int, **variables: str) -> Process:
            argv = [*command, *where, *size, "--machine_rank", str(machine), str(program)]
            started = Process(argv, dict(os.environ) | variables, tmp_path, f"machine {machine}")
            stack.callback(started.close)
            return started

        assert "needs a run id: torchrun's default, 'none'" in start(0).ends(1)
        # On one machine, machine 1 would take the port before accelerate has seen that it is free.
        hosts = ("yes", "no")
        job = [
            start(machine, RALLYPOINT_RUN_ID="mine", RALLYPOINT_HOST_COORDINATOR=hosts[machine])
            for machine in range(2)
        ]
        assert sorted(each.ends(0).count("worker ") for each in job) == [1, 1]


@pytest.mark.parametrize(
    ("framework", "packages", "workers"),
    [
        pytest.param(*("lightning", LIGHTNING_AND_ACCELERATE, 2), marks=only_long),
        ("accelerate", LIGHTNING_AND_ACCELERATE, 2),
        # Each process loads for seven seconds.
        pytest.param(
            *("deepspeed", DEEPSPEED, 1),
            marks=only_long,
        ),
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
