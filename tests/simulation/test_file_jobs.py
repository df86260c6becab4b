"""Whole jobs over the file ledger: on a file server, and on the disk of the only machine."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from rallypoint.client.node import Node
from rallypoint.simulation.faults import FAULTS
from rallypoint.simulation.job import Job
from rallypoint.simulation.plan import Plan


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("CRITICAL", "rallypoint"):
        yield


@pytest.mark.parametrize("ledger", ["file", "file-local"])
@pytest.mark.parametrize("seed", range(3))
def test_a_job_over_files_keeps_the_rules(seed: int, ledger: str) -> None:
    drawn = Plan.draw(seed, tuple(FAULTS))
    job = Job(seed, plan=msgspec.structs.replace(drawn, ledger=ledger)).run()
    assert job.problems == []


HOST_WHILE_IT_LEAVES = """
{"nodes":3,"min_nodes":2,"faults":[{"at_s":0.164,"kind":"suspend","chance":3735700991},
{"at_s":1.076,"kind":"suspend","chance":494238604,"moment":"ACTIVE"},
{"at_s":8.693,"kind":"leave","chance":4050102683},
{"at_s":11.888,"kind":"leave","chance":1088764952}],"ledger":"file","lease_ttl_s":10.0}
"""
"""Seed 198, shrunk. A node leaves while it searches for a coordinator, and becomes one."""


def test_a_node_that_becomes_a_host_while_it_leaves_closes_its_coordinator() -> None:
    plan = msgspec.json.decode(HOST_WHILE_IT_LEAVES, type=Plan)
    assert Job(198, plan=plan).run().problems == []


def test_a_coordinator_that_is_left_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def leave(node: Node, *, linger: bool = True) -> None:
        hosted = node._connector.own.take()
        await node._hang_up()
        if hosted is not None:
            await hosted.aclose()
        await node._connector.close_ledger()

    monkeypatch.setattr(Node, "aclose", leave)
    plan = msgspec.json.decode(HOST_WHILE_IT_LEAVES, type=Plan)
    assert any("R5" in problem for problem in Job(198, plan=plan).run().problems)
