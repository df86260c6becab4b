"""The digits example: the same result in every world, and none of it lost with a node."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import rallypoint
from tests.waiting import wait_until

from .programs import EXAMPLES, WITHIN_S, Programs, accuracy_of, losses_of, needs_sklearn

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300), needs_sklearn]

SCRIPT = str(EXAMPLES / "train_digits.py")


@pytest.mark.parametrize(
    ("first", "second"), [pytest.param(2, 2, marks=pytest.mark.verify), (1, 3)]
)
def test_training_works_with_any_number_of_workers_per_node(
    run: Programs, tmp_path: Path, first: int, second: int
) -> None:
    arguments = (SCRIPT, "--checkpoints", str(tmp_path / "together"), "--epochs", "15")
    nodes = [
        run.node("n0", f"--nnodes 2 --nproc-per-node {first}", *arguments, is_host=True),
        run.node("n1", f"--nnodes 2 --nproc-per-node {second}", *arguments),
    ]
    assert [node.end() for node in nodes] == [0, 0], nodes[0].text
    assert "4 workers go on from epoch 0 of 15" in nodes[0].text
    assert accuracy_of(nodes[0]) >= 0.95

    alone = run.python(SCRIPT, "--checkpoints", str(tmp_path / "alone"), "--epochs", "15")
    assert alone.end() == 0
    assert losses_of(alone) == pytest.approx(losses_of(nodes[0]), abs=2e-4)


def test_training_continues_from_its_checkpoint(run: Programs, tmp_path: Path) -> None:
    first = run.python(SCRIPT, "--checkpoints", str(tmp_path), "--epochs", "2")
    assert first.end() == 0
    second = run.python(SCRIPT, "--checkpoints", str(tmp_path), "--epochs", "4")
    assert second.end() == 0
    assert "1 workers go on from epoch 2 of 4" in second.text
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.verify
def test_plain_processes_lose_one_and_admit_another(run: Programs, tmp_path: Path) -> None:
    env = {
        "RALLYPOINT_ENDPOINT": run.endpoint,
        "RALLYPOINT_RUN_ID": "plain",
        "RALLYPOINT_NNODES": "2:3",
        "RALLYPOINT_EXPECTED_NODES": "3",
    }
    # So many epochs that the newcomer starts within them, on a slow machine too.
    options = ("--epochs", "60", "--pause", "0.02")
    arguments = (SCRIPT, "--checkpoints", str(tmp_path / "c"), *options)
    host = run.python(*arguments, **env)
    run.wait_for_coordinator()
    others = [run.python(*arguments, **env) for _ in range(2)]
    wait_until(
        lambda: any("epoch 2 of" in each.text for each in (host, *others)),
        WITHIN_S,
        says="no epoch",
    )
    others[0].kill()
    left = (host, others[1])
    wait_until(
        lambda: any("round 2: 2 workers" in each.text for each in left), WITHIN_S, says="no round 2"
    )
    newcomer = run.python(*arguments, **env)
    assert [each.end() for each in (*left, newcomer)] == [0, 0, 0]
    said = "\n".join(each.text for each in (*left, newcomer))
    assert "round 3: 3 workers go on from epoch" in said
    assert float(said.split("test accuracy ")[1].split()[0]) >= 0.95


def test_the_store_does_not_grow_with_the_steps() -> None:
    example = load()
    with rallypoint.join() as run:
        world = run.next_world()
        assert world is not None
        mine = example.np.ones(3)
        for step in range(50):
            assert list(example.sum_over_workers(world, step, mine)) == [1, 1, 1]
        assert world.store.num_keys() == 1


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_digits_example", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
