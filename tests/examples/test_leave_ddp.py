"""DDP that leaves at an agreed step: the others go on from there, and nothing is trained twice."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

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


def test_a_node_with_a_notice_leaves_and_no_step_is_lost(run: Programs, tmp_path: Path) -> None:
    notice = tmp_path / "notice"
    options = f"--nnodes 2:3 --expected-nodes 3 --last-call 90 --notice-file {notice}"
    where = ("--checkpoint", str(tmp_path / "leave.pt"))
    arguments = (str(EXAMPLES / "leave_ddp.py"), *where, "--steps", "300", "--pause", "0.02")
    host, other = (
        run.node(name, options.partition(" --notice")[0], *arguments, is_host=name == "n0")
        for name in ("n0", "n1")
    )
    leaving = run.node("n2", options, *arguments)
    nodes = (host, other, leaving)
    for each in nodes:
        each.wait_for("round 1, rank .: goes on from step 0", WITHIN_S)
    notice.write_text("the host is needed elsewhere\n")
    stops = [each.wait_for(r"stops at step (\d+): .*needed elsewhere", WITHIN_S) for each in nodes]
    [step] = {int(each[1]) for each in stops}
    assert leaving.end(WITHIN_S) == 0, leaving.text
    for each in (host, other):
        each.wait_for(rf"round 2, rank .: goes on from step {step}$", WITHIN_S)
    assert [each.end(WITHIN_S) for each in (host, other)] == [0, 0], host.text
    [shown] = [each for each in (host, other) if re.search("test accuracy", each.text)]
    assert accuracy_of(shown) >= 0.9
