"""torchrun's agents when machines come, go, finish or are too many. The workers need no torch.

Nothing is charged to anybody here: `--max-restarts` is 0.
"""

from __future__ import annotations

import importlib.util
import signal
from typing import Any

import pytest

from tests.agent.processes import alive
from tests.torchrun.jobs import HANGING, PATIENCE_S, QUIET, Job, Node

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed"),
]

NO_DELAY = "scale_up_delay=0"
"""Newcomers are announced at once: what does not happen then, is not going to happen."""
ALL = f"last_call={PATIENCE_S:g}"
"""The first round has all nodes, however long one of them takes to start."""


@pytest.mark.verify
def test_a_lost_machine_is_reported_and_done_nodes_are_not_awaited(
    job: Job,
) -> None:
    job.serve()
    conf = f"{NO_DELAY},{ALL}"
    job.start("a b c", QUIET, nnodes="2:3", conf=conf)
    job.at_work("a b c")
    job.nodes["c"].die()
    left = job.at_work("a b")

    # One of two has finished. Its agent waits for the other's, and a newcomer changes nothing.
    job.end(left[0].rank)
    job.nodes["a"].process.line("Waiting 300 seconds for other agents", PATIENCE_S)
    number = job.picture()["round"]
    job.start("d", QUIET, nnodes="2:3", conf=conf)
    job.stands_by("d")
    assert alive(left[1].pid)
    job.end(left[1].rank)
    job.end_well("a b d")
    assert job.nodes["b"].workers()[-1] == left[1]
    assert job.nodes["d"].workers() == []
    assert number == 2


@pytest.mark.verify
def test_a_surplus_node_replaces_one_that_departs(job: Job) -> None:
    job.start("a", QUIET, nnodes="2", conf="is_host=1")
    job.wait(job.picture, "the host coordinates")
    job.start("b", QUIET, nnodes="2", conf="is_host=0")
    first = job.at_work("a b")
    job.start("c", QUIET, nnodes="2", conf="is_host=0")
    job.stands_by("c")
    assert [job.nodes[name].workers()[-1] for name in "ab"] == first

    b = job.nodes["b"].process
    b.signal(signal.SIGTERM)
    second = job.at_work("a c")
    assert second[0].store != first[0].store
    assert b.code(PATIENCE_S) == 1  # what torchrun makes of a signal
    assert not alive(first[1].pid)

    # The host gets a signal: its node leaves, its agent coordinates until the run ends.
    job.start("d", QUIET, nnodes="2", conf="is_host=0")
    job.stands_by("d")
    a = job.nodes["a"].process
    a.signal(signal.SIGTERM)
    job.at_work("c d")
    assert not alive(second[0].pid)
    a.line("stays until the run ends", PATIENCE_S)

    job.start("e", QUIET, nnodes="2", conf="is_host=0")
    job.stands_by("e")
    job.end()
    job.end_well("c d e")
    assert job.nodes["e"].workers() == []
    assert a.code(PATIENCE_S) == 1


@pytest.mark.verify
def test_a_job_survives_the_loss_of_its_coordinator(job: Job) -> None:
    """Elected through files: another node takes the run over, and learns which node was lost."""
    job.endpoint = f"file://{job.folder / 'ledger'}"
    conf = "expected_nodes=3,lease_ttl=1,attach_grace=1"
    # So that an agent listens only where it coordinates.
    env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    job.start("a b c", QUIET, nnodes="2:3", conf=conf, env=env)
    job.at_work("a b c")

    def the_host() -> list[Node]:
        hosts = [node for node in job.nodes.values() if node.serves()]
        return hosts if len(hosts) == 1 else []

    (host,) = job.wait(the_host, "one node coordinates")  # it moves if its lease of 1 s runs out
    job.nodes.pop(host.name).die()
    survivors = " ".join(job.nodes)
    job.at_work(survivors)
    job.end()
    job.end_well(survivors)


def test_a_failed_worker_ends_the_job_and_all_nodes_report_the_cause(job: Job) -> None:
    """The others' workers are well, and would go on for ever."""
    job.serve()
    job.start("a b c", QUIET, nnodes="3")
    workers = job.at_work("a b c")
    by_rank = {worker.rank: name for worker, name in zip(workers, "abc", strict=True)}
    failed, trains, finishes = (job.nodes[by_rank[rank]] for rank in range(3))
    # One has finished, and waits in its agent's exit barrier.
    job.end(2)
    finishes.process.line("Waiting 300 seconds for other agents", PATIENCE_S)
    (job.folder / "fail-0").touch()
    why = "ChildFailedError: rank 0 ended with exit code 7"
    failed.ends_badly("exitcode  : 7")
    trains.ends_badly(why, "RendezvousClosedError")
    finishes.ends_badly(why)
    assert why in str(job.picture()["closed"])


@pytest.mark.verify
def test_closing_the_run_ends_it_for_all(job: Job) -> None:
    job.serve()
    job.start("a b", QUIET, nnodes="2")
    job.at_work("a b")
    closing = job.machine.command(
        "close", "job", "--endpoint", job.endpoint, "--reason", "the wrong data"
    )
    closing.ends(0, PATIENCE_S)
    for name in "ab":
        job.nodes[name].ends_badly("stopped: the wrong data", "RendezvousClosedError")


@pytest.mark.verify
def test_a_worker_that_hangs_in_gloo_is_stopped_too(job: Job) -> None:
    """An endpoint that ends with its node: the agent that fails hosts the coordinator."""
    job.start("a", HANGING, nnodes="3", conf="is_host=1")
    job.wait(job.picture, "the host coordinates")
    job.start("b c", HANGING, nnodes="3", conf="is_host=0")
    workers = job.at_work("a b c")
    failing = next(worker for worker in workers if worker.rank == 0)
    assert failing is workers[0]
    (job.folder / "fail-0").touch()
    job.nodes["a"].ends_badly("exitcode  : 7")
    for name in "bc":
        job.nodes[name].ends_badly("ChildFailedError: rank 0 ended with exit code 7")


@pytest.mark.verify
def test_events_are_logged_once_on_stderr_unless_quiet(job: Job) -> None:
    """With no logging configured and torch's own level, as for any user of torchrun."""
    job.serve()
    given: dict[str, Any] = {"nnodes": "2", "env": {"LOGLEVEL": "WARNING"}}
    (a,) = job.start("a", QUIET, **given)
    a.process.line(r"^\[a\] waiting: 1 of 2 nodes ready", PATIENCE_S)
    job.start("b", QUIET, **given, conf="quiet=true")
    job.at_work("a b")
    job.nodes["b"].die()
    a.process.line(r"^\[a\] round 1 has ended: b lost", PATIENCE_S)
    job.start("c", QUIET, **given, conf="quiet=true")
    job.at_work("a c")
    closing = job.machine.command(
        "close", "job", "--endpoint", job.endpoint, "--reason", "the wrong data"
    )
    closing.ends(0, PATIENCE_S)
    for name in "ac":
        job.nodes[name].ends_badly("stopped: the wrong data")
    lines = [line for line in a.text.splitlines() if line.startswith("[a] ")]
    assert [line for line in lines if "waiting" not in line] == [
        next(line for line in lines if line.startswith("[a] round 1: 2 nodes; this is node")),
        next(line for line in lines if line.startswith("[a] round 1 has ended: b lost")),
        next(line for line in lines if line.startswith("[a] round 2: 2 nodes; this is node")),
        "[a] error: run 'job' has ended: stopped: the wrong data (by operator at 127.0.0.1)",
    ]
    for name in "bc":
        assert f"[{name}]" not in job.nodes[name].text
        assert "[rallypoint]" not in job.nodes[name].text


def test_an_unknown_option_lists_the_known_ones(job: Job) -> None:
    (node,) = job.start("a", QUIET, nnodes="1", conf="last_cal=3")
    text = node.process.ends(1, PATIENCE_S)
    assert "has no option 'last_cal'" in text
    assert "last_call" in text
    assert "scale_up_delay" in text
