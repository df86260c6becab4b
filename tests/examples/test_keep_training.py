"""Workers that stay: after the loss of a peer, DDP goes on without a checkpoint."""

from __future__ import annotations

import importlib.util
import re

import pytest

from .programs import EXAMPLES, Programs, accuracy_of, needs_sklearn

pytestmark = [
    pytest.mark.processes,
    pytest.mark.verify,
    pytest.mark.timeout(400),
    needs_sklearn,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed"),
]
WITHIN_S = 180.0


def test_survivors_go_on_and_give_their_model_to_a_newcomer(run: Programs) -> None:
    """The steps last longer than the newcomer takes to start."""
    options = "--keep-workers --nnodes 2:3 --expected-nodes 3 --last-call 90"
    arguments = (str(EXAMPLES / "keep_training.py"), "--steps", "400", "--pause", "0.05")
    host, survivor, killed = (
        run.node(name, options, *arguments, is_host=name == "n0") for name in ("n0", "n1", "n2")
    )
    first = next(
        each
        for each in (host, survivor, killed)
        if re.search("with rank 0", each.wait_for("round 1: 3 nodes", WITHIN_S).string)
    )
    first.wait_for("step 25: loss", WITHIN_S)
    (worker,) = killed.workers()
    worker.kill()
    killed.kill()

    line = r"pid (\d+), round 2, rank \d: (?:has|takes) the model of step (\d+)"
    kept = {each: each.wait_for(line, WITHIN_S) for each in (host, survivor)}
    assert min(int(found[2]) for found in kept.values()) >= 25
    newcomer = run.node("n3", options, *arguments)
    line = r"round 3, rank \d: takes the model of step (\d+) from rank"
    assert int(newcomer.wait_for(line, WITHIN_S)[1]) >= 25
    for each in (host, survivor):
        again = each.wait_for(r"pid (\d+), round 3", WITHIN_S)
        assert again[1] == kept[each][1], "its process was started again"
    assert [each.end(WITHIN_S) for each in (host, survivor, newcomer)] == [0, 0, 0], host.text
    results = {accuracy_of(each) for each in (host, survivor, newcomer)}
    assert len(results) == 1, "they have not trained the same model"
    assert results.pop() >= 0.93
