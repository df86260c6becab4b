"""The handler in processes that use torch: its stores are torch's, and so are its errors."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.agent.processes import Process
from tests.rendezvous.nodes import nodes_of

pytestmark = [
    pytest.mark.processes,
    pytest.mark.verify,
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed"),
]

PROGRAM = Path(__file__).with_name("torch_node.py")
WITHIN_S = 150.0
ROUNDS = 5


def both(folder: Path, **env: str) -> list[Any]:
    """What two nodes found, in the order of their ranks."""
    with nodes_of(folder) as nodes:
        argv = [sys.executable, str(PROGRAM), nodes.endpoint, str(ROUNDS)]
        machine = nodes._machine
        started = [Process(argv, machine.env | env, folder, f"node{i}") for i in range(2)]
        machine.processes += started
        texts = [process.ends(0, WITHIN_S) for process in started]
    # The node's own log has lines too, and the last one may come after what the program says.
    said = [[line for line in text.splitlines() if line.startswith("{")] for text in texts]
    found = [json.loads(line) for [line] in said]
    return sorted(found, key=lambda each: int(each["rounds"][0]["rank"]))


def test_stores_and_errors_are_torch_s(tmp_path: Path) -> None:
    """A prefix of the round's store, and the agent's own TCPStore, carry a process group each."""
    zero, one = both(tmp_path)
    for node in (zero, one):
        assert node["use_agent_store"] is True
        assert [each["sums"] for each in node["rounds"]] == [[3.0, 3.0]] * ROUNDS
        assert all("what nobody writes" in each["missing"] for each in node["rounds"])
        assert node["timeout"] == [True, True]
        assert all(part in node["unreachable"] for part in ("127.0.0.1", "1", "refused"))
        assert node["closed"] is True
    addresses = [each["address"] for each in zero["rounds"]]
    assert addresses == [each["address"] for each in one["rounds"]]
    assert len(set(addresses)) == ROUNDS
    # Nothing of a round survives it: the store's server ends with the next one.
    assert [each["listeners"] for each in zero["rounds"]] == [1] * ROUNDS
    assert [each["listeners"] for each in one["rounds"]] == [0] * ROUNDS
    for node in (zero, one):
        second, last = node["rounds"][1], node["rounds"][-1]
        assert last["fds"] <= second["fds"] + 2  # a connection that is closing counts for a moment
        assert last["threads"] <= second["threads"] + 1
