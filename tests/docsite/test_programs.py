"""The programs in README and the guide run unchanged, with as many nodes as they ask for."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from tests.docsite.pages import ROOT, all_blocks
from tests.ports import free_port
from tools.docsite.blocks import Block

THIS = "tests/docsite/test_programs.py"
GUIDE = [each for each in all_blocks() if each.test == f"{THIS}::test_a_program_of_the_guide_runs"]
README = [
    each for each in all_blocks() if each.test == f"{THIS}::test_the_program_of_the_readme_runs"
]

# What the program of the README leaves to its reader.
STANDING_IN = """
LAST, steps = 3, []
def load_checkpoint():
    return len(steps)
def train(step, rank, size):
    print(f"step {step} as rank {rank} of {size}", flush=True)
    steps.append(step)
"""


def run_nodes(program: str, nodes: int) -> list[str]:
    """What each of so many processes prints; all must end well."""
    program = program.replace("127.0.0.1:29400", f"127.0.0.1:{free_port()}")
    kept = {name: value for name, value in os.environ.items() if "RALLYPOINT_" not in name}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=kept | {"PYTHONPATH": str(ROOT / "src")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(nodes)
    ]
    try:
        ended = [(*each.communicate(timeout=60), each.returncode) for each in started]
    finally:
        for each in started:
            each.kill()
            each.communicate()
    for _, err, code in ended:
        assert (code, "Traceback" in err) == (0, False), err
    return [out for out, _, _ in ended]


@pytest.mark.processes
@pytest.mark.parametrize("block", GUIDE, ids=map(str, GUIDE))
def test_a_program_of_the_guide_runs(block: Block) -> None:
    if "import torch" in block.text and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    at_endpoint = "127.0.0.1:29400" in block.text
    printed = run_nodes(block.text, 2 if at_endpoint else 1)
    expects_output = "print(" in block.text
    assert all(bool(each) == expects_output for each in printed)
    if at_endpoint:
        ranks = [re.findall(r"rank (\d) of 2", each) for each in printed]
        assert sorted(each[0] for each in ranks) == ["0", "1"]


@pytest.mark.processes
def test_the_program_of_the_readme_runs() -> None:
    (block,) = README
    assert "host0:29400" in block.text
    # Two of at most two, so that nobody waits for a third and a fourth node.
    program = block.text.replace("host0:29400", "127.0.0.1:29400").replace(
        "max_nodes=4", "max_nodes=2"
    )
    printed = run_nodes(STANDING_IN + program, 2)
    assert any("step 2 as rank" in each for each in printed)
