"""JAX on CPUs: workers that are replaced, and processes that go on without a killed one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.examples.programs import Program, Programs
from tests.frameworks.environments import python_with
from tests.ports import free_port

pytestmark = [
    pytest.mark.processes,
    pytest.mark.verify,
    pytest.mark.timeout(600),
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


def test_a_node_leaves_at_an_agreed_step(jax: Programs, tmp_path: Path) -> None:
    notice, saved = tmp_path / "notice", str(tmp_path / "saved")
    options = "--nnodes 1:2 --expected-nodes 2 --last-call 120"
    host = jax.node("a", options, PROGRAM, "leaves", saved, is_host=True, env=ON_CPU)
    jax.wait_for_coordinator()
    noticed = f"{options} --notice-file {notice}"
    other = jax.node("b", noticed, PROGRAM, "leaves", saved, env=ON_CPU)
    for each in (host, other):
        each.wait_for(r"round 1: rank \d goes on from step 0")
    notice.write_text("the host is needed elsewhere\n")
    [step] = {each.wait_for(r"stops at step (\d+)")[1] for each in (host, other)}
    assert other.end() == 0
    host.wait_for(rf"round 2: rank 0 goes on from step {step}$")
    assert host.end() == 0


@pytest.fixture
def served(jax: Programs) -> Iterator[Programs]:
    """With a coordinator that outlives all nodes."""
    serve = jax.cli("serve", "--port", str(jax.port))
    jax.wait_for_coordinator()
    yield jax
    serve.process.terminate()
    serve.end()


def test_processes_go_on_without_one_that_is_killed(served: Programs) -> None:
    nodes = [
        served.python(PROGRAM, "worlds", f"http://{served.endpoint}", f"n{each}", **ON_CPU)
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


def test_workers_stay_without_one_that_is_killed(jax: Programs) -> None:
    options = "--keep-workers --nnodes 2:3 --expected-nodes 3 --last-call 120"
    host = jax.node("a", options, PROGRAM, "kept", is_host=True, env=ON_CPU)
    jax.wait_for_coordinator()
    others = [jax.node(each, options, PROGRAM, "kept", env=ON_CPU) for each in ("b", "c")]
    line = r"round 1: rank (\d) of 3 trains, pid (\d+)"
    found = {each: each.wait_for(line) for each in (host, *others)}
    victim = next(each for each in others if found[each][1] != "0")  # JAX needs rank 0
    (worker,) = victim.workers_of(PROGRAM)
    worker.kill()
    victim.kill()
    for each in (host, *others):
        if each is not victim:
            again = each.wait_for(r"round 2: rank \d of 2 trains, pid (\d+)")
            assert again[1] == found[each][2]
            assert each.end() == 0


def late(served: Programs, name: str, *fails: str) -> Program:
    """A node of a run in which rank 0 ends JAX before the others: see jax_program.py."""
    where = (f"http://{served.endpoint}", name, str(served.directory))
    port = free_port()
    range_of_one = {"RALLYPOINT_PORT_RANGE": f"{port}:{port}"}
    return served.python(PROGRAM, "late", *where, *fails, **ON_CPU, **range_of_one)


def test_no_process_is_aborted_because_rank_0_ends_first(served: Programs) -> None:
    """It leaves a round for a newcomer, ends by an error, and ends as all do, always the first.

    In the next round it has the same port again, since it has no other.
    """
    nodes = [late(served, name, "2", "outside") for name in ("a", "b")]
    for each in nodes:
        each.wait_for(r"round 1: rank \d of 2 trains")
    nodes.append(late(served, "c", "2", "outside"))
    ranks = {each.wait_for(r"round 2: rank (\d) of 3 trains")[1]: each for each in nodes}
    text = "\n".join(each.text for each in nodes)
    assert [ranks[each].end() for each in "012"] == [1, 0, 0], text
    ranks["0"].wait_for("RuntimeError: rank 0 fails")
    for rank in "12":
        ranks[rank].wait_for("round 3 ended")


def test_a_process_that_ends_as_rank_0_serves_the_others_to_their_end(served: Programs) -> None:
    """Its program leaves neither the run nor the loop: the end of the interpreter does."""
    nodes = [late(served, name, "1", "inside") for name in ("a", "b")]
    ranks = {each.wait_for(r"round 1: rank (\d) of 2 trains")[1]: each for each in nodes}
    assert ranks["1"].end() == 0, ranks["1"].text
    ranks["1"].wait_for("round 1 ended")
    assert ranks["0"].end() == 1
    ranks["0"].wait_for("RuntimeError: rank 0 fails")


def test_a_world_that_ends_before_all_have_initialized_is_an_error(served: Programs) -> None:
    """JAX would wait for the others for a minute, and then abort."""
    where = f'"job", "http://{served.endpoint}", min_nodes=2, last_call_s=0.1'
    waiting = served.python(PROGRAM, "alone", f"http://{served.endpoint}", **ON_CPU)
    leaving = served.python(
        "-c", f"import rallypoint\nwith rallypoint.join({where}) as run: run.next_world()"
    )
    waiting.wait_for("not initialized: .*round 1")
    assert [waiting.end(), leaving.end()] == [0, 0]
