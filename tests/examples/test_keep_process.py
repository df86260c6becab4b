"""Processes that survive their worlds: no model is lost while one process has it."""

from __future__ import annotations

import pytest

from .programs import EXAMPLES, Programs, accuracy_of, needs_sklearn

pytestmark = [pytest.mark.processes, pytest.mark.verify, pytest.mark.timeout(300), needs_sklearn]


def test_survivors_keep_their_model_and_pass_it_to_newcomers(run: Programs) -> None:
    """On a slow machine, too: the first round waits for all three, however far apart they start;
    the steps last longer than the newcomer takes to start; and until the round ends there is time
    for a survivor that stood still to get the sum that the other has."""
    options = f"--endpoint {run.endpoint} --run-id kept --min-nodes 2 --max-nodes 3 --last-call 90"
    arguments = (str(EXAMPLES / "keep_process.py"), *f"{options} --steps 600 --pause 0.02".split())
    grace = {"RALLYPOINT_RECONNECT_GRACE": "4s"}
    host = run.python(*arguments, **grace)
    run.wait_for_coordinator()
    killed, survivor = (run.python(*arguments, **grace) for _ in range(2))
    everybody = (host, killed, survivor)
    ranks = {each.wait_for(r"round 1: rank (\d) of 3")[1]: each for each in everybody}
    ranks["0"].wait_for("step 25: loss")
    killed.kill()

    line = r"round 2: rank \d of 2, has the model of step (\d+) in memory"
    kept = [int(each.wait_for(line)[1]) for each in (host, survivor)]
    assert min(kept) >= 25
    newcomer = run.python(*arguments, **grace)
    taken = int(newcomer.wait_for(r"round 3: rank \d of 3, takes the model of step (\d+)")[1])
    assert taken >= max(kept)

    assert [each.end() for each in (host, survivor, newcomer)] == [0, 0, 0]
    results = {accuracy_of(each) for each in (host, survivor, newcomer)}
    assert len(results) == 1, "they have not trained the same model"
    assert results.pop() >= 0.95
