"""An unchanged torchrun script under `rallypoint run`: what ends in gloo goes on in a new round."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from .programs import EXAMPLES, Program, Programs, accuracy_of

pytestmark = [
    pytest.mark.processes,
    pytest.mark.verify,
    pytest.mark.timeout(400),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed"),
]

SCRIPT = str(EXAMPLES / "train_ddp.py")
WITHIN_S = 180.0


def start(run: Programs, tmp_path: Path, names: list[str], options: str) -> list[Program]:
    arguments = (SCRIPT, "--checkpoint", str(tmp_path / "ddp.pt"), "--pause", "0.2")
    return [run.node(name, options, *arguments, is_host=name == names[0]) for name in names]


def test_the_script_does_not_import_rallypoint() -> None:
    imports = re.findall(r"^\s*(?:import|from) (\w+)", Path(SCRIPT).read_text(), re.MULTILINE)
    assert "torch" in imports
    assert "rallypoint" not in imports


def test_two_nodes_train(run: Programs, tmp_path: Path) -> None:
    nodes = start(run, tmp_path, ["n0", "n1"], "--nnodes 2")
    assert [node.end(WITHIN_S) for node in nodes] == [0, 0], nodes[0].text
    assert "2 workers go on from epoch 0 of 20" in nodes[0].text
    assert accuracy_of(nodes[0]) >= 0.93


def test_after_a_killed_node_the_others_continue_from_the_checkpoint(
    run: Programs, tmp_path: Path
) -> None:
    options = "--nnodes 2:3 --expected-nodes 3"
    host, survivor, killed = start(run, tmp_path, ["n0", "n1", "n2"], options)
    host.wait_for(r"epoch 2 of 20", WITHIN_S)
    killed.kill()
    host.wait_for(r"round 1 .*n2 lost", WITHIN_S)
    assert int(host.wait_for(r"2 workers go on from epoch (\d+) of 20", WITHIN_S)[1]) >= 2
    assert [node.end(WITHIN_S) for node in (host, survivor)] == [0, 0], host.text
    assert accuracy_of(host) >= 0.93


def test_after_a_killed_worker_all_nodes_continue(run: Programs, tmp_path: Path) -> None:
    nodes = start(run, tmp_path, ["n0", "n1"], "--nnodes 2 --max-restarts 1")
    nodes[0].wait_for(r"epoch 2 of 20", WITHIN_S)
    (worker,) = nodes[1].workers()
    worker.kill()
    assert int(nodes[0].wait_for(r"2 workers go on from epoch ([2-9]|1\d) of 20", WITHIN_S)[1]) >= 2
    assert [node.end(WITHIN_S) for node in nodes] == [0, 0], nodes[0].text
    assert "rank 1 was killed by SIGKILL (signal 9)" in nodes[0].text
