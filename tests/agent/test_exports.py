"""TF_CONFIG for the workers of `rallypoint run --export tf`."""

from __future__ import annotations

import json

import pytest

from rallypoint.launch.exports import tf_config
from tests.agent.processes import Machine

PROGRAM = """
import json, os, socket, rallypoint
config = json.loads(os.environ["TF_CONFIG"])
own = config["cluster"]["worker"][config["task"]["index"]]
assert (config["task"]["type"], config["task"]["index"]) == ("worker", int(os.environ["RANK"]))
# The port is free for TensorFlow, and the program may still join.
with socket.create_server(("", int(own.rpartition(":")[2]))), rallypoint.join() as run:
    world = run.next_world()
    world.barrier("all listen", 60)
    for each in config["cluster"]["worker"]:
        host, _, port = each.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), 60).close()
    world.barrier("all have reached all", 60)
    print("workers", *config["cluster"]["worker"], flush=True)
"""


def test_the_variable_is_that_of_tensorflow() -> None:
    assert json.loads(tf_config(["a:1", "[::1]:2"], 1)) == {
        "cluster": {"worker": ["a:1", "[::1]:2"]},
        "task": {"type": "worker", "index": 1},
    }


@pytest.mark.processes
def test_workers_of_two_nodes_get_the_addresses_of_all(machine: Machine) -> None:
    program = machine.program(PROGRAM)
    options = ("--nproc-per-node", "2", "--export", "tf")
    a = machine.agent("a", *options, nnodes="2", program=program)
    b = machine.agent("b", *options, nnodes="2", program=program)
    lists = [each.line("workers (.*)")[1].split() for each in (a, b)]
    for agent in (a, b):
        agent.ends(0)
        assert agent.text.count("] workers ") == 2
    assert lists[0] == lists[1]
    assert len(set(lists[0])) == 4
