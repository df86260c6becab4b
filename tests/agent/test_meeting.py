"""Agents that meet, wait or are refused, and the ranks that every worker gets."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.agent.processes import Machine, gone

pytestmark = pytest.mark.processes


def finish(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGUSR2)


def test_a_standby_replaces_a_node_and_ends_with_the_run(machine: Machine) -> None:
    first = [machine.agent(name, nnodes="2") for name in ("a", "b")]
    workers = [agent.worker(1) for agent in first]
    stepped_in = machine.agent("spare", nnodes="2")
    stepped_in.line("this node is on standby")
    waiting = machine.agent("spare-2", nnodes="2")  # later, so second in the order of arrival
    waiting.line("this node is on standby")
    first[1].signal(signal.SIGKILL)
    new = stepped_in.worker(2)
    kept = first[0].worker(2)
    assert {new.rank, kept.rank} == {0, 1}
    assert kept.rank == workers[0].rank
    finish(new.pid, kept.pid)
    for agent in (first[0], stepped_in, waiting):
        assert "has succeeded" in agent.ends(0)
    assert "worker" not in waiting.text.replace("nodes, 2 workers", "")


def test_too_few_nodes_exit_with_3_and_report_their_number(machine: Machine) -> None:
    text = machine.agent("a", "--join-timeout", "3", nnodes="2:3").ends(3)
    assert "no round of run 'test' was formed within 3 s: 1 of at least 2 nodes ready" in text
    assert text.splitlines()[-1].startswith("hint: start the missing nodes")


@pytest.mark.verify
def test_too_few_nodes_after_a_round_exit_with_5(machine: Machine) -> None:
    options = ("--join-timeout", "10")  # in which both have to start
    a, b = (machine.agent(name, *options, nnodes="2") for name in ("a", "b"))
    worker = a.worker(1)
    b.worker(1)
    b.signal(signal.SIGKILL)
    text = a.ends(5)
    assert "1 of 2 nodes ready" in text
    gone([worker.pid])


ENVIRONMENT = """
import json, os, socket
names = [n for n in os.environ if n.startswith(("RALLYPOINT_", "TORCHELASTIC_", "MASTER_"))]
names += ["RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "LOCAL_WORLD_SIZE"]
names += ["WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "OMP_NUM_THREADS"]
print("env", json.dumps({name: os.environ.get(name) for name in names}), flush=True)
if os.environ["RANK"] == "0":
    with socket.create_server((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))):
        print("rank 0 listens", flush=True)
"""


def test_every_worker_gets_its_ranks(machine: Machine) -> None:
    program = machine.program(ENVIRONMENT)
    counts = {"a": 3, "b": 1, "c": 2}
    agents = [
        machine.agent(name, "--nproc-per-node", str(count), nnodes="3", program=program)
        for name, count in counts.items()
    ]
    for agent in agents:
        agent.ends(0)
    told = [
        json.loads(line.partition(" env ")[2])
        for agent in agents
        for line in agent.lines
        if " env " in line
    ]
    assert sorted(int(env["RANK"]) for env in told) == list(range(6))
    assert sum("rank 0 listens" in agent.text for agent in agents) == 1
    for name, count in counts.items():
        own = sorted((e for e in told if e["RALLYPOINT_NODE"] == name), key=lambda e: e["RANK"])
        first = int(own[0]["RANK"])
        assert [int(env["RANK"]) for env in own] == list(range(first, first + count))
        assert [int(env["LOCAL_RANK"]) for env in own] == list(range(count))
        assert {env["LOCAL_WORLD_SIZE"] for env in own} == {str(count)}
        assert {env["OMP_NUM_THREADS"] for env in own} == {"1" if count > 1 else None}
        assert len({env["GROUP_RANK"] for env in own}) == 1
    assert {env["GROUP_RANK"] for env in told} == {"0", "1", "2"}
    for env in told:
        assert env["ROLE_RANK"] == env["RANK"]
        assert (env["WORLD_SIZE"], env["ROLE_WORLD_SIZE"], env["GROUP_WORLD_SIZE"]) == (
            "6",
            "6",
            "3",
        )
        assert env["ROLE_NAME"] == "default"
        assert env["TORCHELASTIC_RESTART_COUNT"] == env["TORCHELASTIC_MAX_RESTARTS"] == "0"
        assert env["TORCHELASTIC_RUN_ID"] == env["RALLYPOINT_RUN_ID"] == "test"
        assert env["TORCHELASTIC_USE_AGENT_STORE"] == "False"
        assert env["TORCHELASTIC_ERROR_FILE"]
        assert (env["RALLYPOINT_TERM"], env["RALLYPOINT_ROUND"]) == ("1", "1")
        assert (env["RALLYPOINT_MIN_NODES"], env["RALLYPOINT_MAX_NODES"]) == ("3", "3")
    assert len({(env["MASTER_ADDR"], env["MASTER_PORT"]) for env in told}) == 1


DDP = """
import os
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(2, 1))
model(torch.ones(1, 2) * (dist.get_rank() + 1)).sum().backward()
total = torch.tensor([1.0 + dist.get_rank()])
dist.all_reduce(total)
print("sum", dist.get_world_size(), total.item(), model.module.weight.grad.tolist(), flush=True)
dist.barrier()
# Ends without tearing torch down: on a busy machine that has ended with SIGABRT now and then
# ("terminate called without an active exception"), after all was done.
os._exit(0)
"""


@pytest.mark.verify
@pytest.mark.timeout(300)
def test_a_ddp_script_runs_unchanged(machine: Machine) -> None:
    pytest.importorskip("torch")
    program = machine.program(DDP)
    agents = [machine.agent(name, nnodes="2", program=program) for name in ("a", "b")]
    for agent in agents:
        assert "sum 2 3.0 [[1.5, 1.5]]" in agent.ends(0, within_s=200)


def test_an_operator_closes_the_run(machine: Machine) -> None:
    serve = machine.command("serve", "--host", "127.0.0.1", "--port", "0")
    endpoint = serve.line(r"^(http://\S+)")[1]
    agents = [machine.agent(name, nnodes="2", endpoint=endpoint) for name in ("a", "b")]
    pids = [agent.worker().pid for agent in agents]
    close = machine.command("close", "test", "--endpoint", endpoint, "--reason", "budget is spent")
    close.ends(0)
    for agent in agents:
        assert "has ended: stopped: budget is spent (by operator" in agent.ends(6)
    gone(pids)
    late = machine.agent("late", nnodes="2", endpoint=endpoint)
    assert "budget is spent" in late.ends(3)


def test_the_second_live_agent_of_one_name_is_refused(machine: Machine) -> None:
    options = ("--set", "probe=20")  # a live node answers, however busy the machine is
    first = machine.agent("a", *options, nnodes="1:2")
    worker = first.worker()
    second = machine.agent("a", *options, nnodes="1:2")
    text = second.ends(2)
    assert "already has the name 'a'" in text
    assert "hint: give each node its own --node-name" in text
    finish(worker.pid)
    first.ends(0)


def test_a_new_agent_replaces_a_dead_one_of_its_name(machine: Machine) -> None:
    a, b = (machine.agent(name, nnodes="2") for name in ("a", "b"))
    a.worker(1)
    rank = b.worker(1).rank
    b.signal(signal.SIGKILL)
    b.code()
    again = machine.agent("b", nnodes="2")
    workers = [a.worker(2), again.worker(2)]
    assert workers[1].rank == rank
    finish(*(worker.pid for worker in workers))
    a.ends(0)
    again.ends(0)


def test_nodes_that_disagree_get_both_values(machine: Machine) -> None:
    first = machine.agent("a", nnodes="1:2")
    worker = first.worker()
    text = machine.agent("b", nnodes="1:3").ends(2)
    assert "max_nodes: the run has 2, this node 3" in text
    finish(worker.pid)
    first.ends(0)


@pytest.mark.parametrize("options", [("--standalone",), ()])
def test_one_machine_needs_no_endpoint(machine: Machine, options: tuple[str, ...]) -> None:
    agent = machine.command("run", *options, "--nproc-per-node", "2", machine.program())
    finish(*(worker.pid for worker in agent.workers(2)))
    assert "has succeeded" in agent.ends(0)
