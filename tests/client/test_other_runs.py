"""Nodes of one endpoint with different run ids: which of them learn of each other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from rallypoint import errors
from rallypoint.client import fixed
from rallypoint.client.hosting import EmbeddedCoordinator
from rallypoint.client.node import Node
from rallypoint.client.waiting import join_timeout, why_it_waits
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.other_runs import RECENT_S, TOLD_MAX, TurnedAway
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.values import RunSettings
from tests.loops import BOOTSTRAP, node, opened, run_clean, served, until
from tests.ports import free_port

pytestmark = pytest.mark.sockets

TWO = RunSettings(min_nodes=2, max_nodes=2, max_restarts=None)
THREE = RunSettings(min_nodes=3, max_nodes=3, max_restarts=None)
TOKENS = ("VQ2t9qk0X5cM1sB7nJ4eRw", "Wm0yC3hU8dK6pZ1xQ9vTaE")


@contextlib.asynccontextmanager
async def waiting_for_a_round(endpoint: str, run: RunSettings, run_id: str, **own: str):
    async with opened(endpoint, run, run_id, **own) as found:
        task = asyncio.create_task(found.next_round(BOOTSTRAP, timeout_s=600.0))
        try:
            yield found
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, errors.RallypointError):
                await task


@contextlib.asynccontextmanager
async def carried(run_id: str) -> AsyncIterator[tuple[EmbeddedCoordinator, str]]:
    """The coordinator of a run in a node, and its endpoint."""
    port = free_port()
    coordinator = await EmbeddedCoordinator.start(run_id, "", "127.0.0.1", port)
    try:
        yield coordinator, f"127.0.0.1:{port}"
    finally:
        await coordinator.aclose()


def test_a_node_of_another_run_gets_the_reason_while_it_waits_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fixed, "DIAL_MIN_S", 60.0)  # or a pause would make an end of its own

    async def main() -> None:
        async with carried("job-41") as (_, endpoint):
            coming = node(endpoint, TWO, "job-42", connect_timeout_s=3.0)
            task = asyncio.create_task(coming.open())
            said = f"the coordinator at {endpoint} runs 'job-41'; this node asked for 'job-42'"
            await until(lambda: said in coming.looking, "it was not told")
            assert said in (await why_it_waits(coming, 1.0)).text
            with pytest.raises(errors.RefusedError) as caught:
                await task
            assert caught.value.message == said
            assert "the same run id" in caught.value.hint
            assert caught.value.refusal.code is RefusalCode.OTHER_RUN
            assert caught.value.exit_code == 3

    run_clean(main)


def test_a_node_whose_endpoint_is_free_again_begins_its_run() -> None:
    async def main() -> None:
        async with carried("job-41") as (other, endpoint):
            coming = node(endpoint, run_id="job-42", connect_timeout_s=60.0)
            task = asyncio.create_task(coming.open())
            await until(lambda: "job-41" in coming.looking, "it was not told")
            await other.aclose()
            await task
            assert coming.looking == ""
            found = await coming.next_round(BOOTSTRAP)
            assert found is not None
            await coming.aclose()

    run_clean(main)


def test_waiting_nodes_learn_of_nodes_for_another_run() -> None:
    async def main() -> None:
        endpoint = f"127.0.0.1:{free_port()}"
        async with waiting_for_a_round(endpoint, TWO, "job-41") as host:
            stray = asyncio.create_task(node(endpoint, TWO, "job-42").open())
            try:
                await until_told(host)
            finally:
                stray.cancel()
                with contextlib.suppress(asyncio.CancelledError, errors.RallypointError):
                    await stray
            waiting = await host.waiting()
            assert waiting is not None
            assert waiting.other_runs == ("job-42",)
            assert str(waiting).endswith("; nodes of another run id wait here too: 'job-42'")
            with pytest.raises(errors.JoinTimeoutError) as caught:
                raise join_timeout("job-41", 1.0, waiting, looking="", hint="")
            assert caught.value.hint == (
                "give all nodes of one job the same run id; other nodes here ask for 'job-42'"
            )

    run_clean(main)


async def until_told(host: Node) -> None:
    for _ in range(6_000):
        waiting = await host.waiting()
        if waiting is not None and waiting.other_runs:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nobody was told of the node that was turned away")


def test_runs_that_look_like_one_job_learn_of_each_other() -> None:
    async def main() -> None:
        async with served() as (_, port):
            endpoint = f"http://127.0.0.1:{port}"
            async with (
                waiting_for_a_round(endpoint, TWO, "job-41") as one,
                waiting_for_a_round(endpoint, TWO, "job-42") as other,
                waiting_for_a_round(endpoint, THREE, "job-43") as third,
                opened(endpoint, run_id="at-work") as at_work,
            ):
                await at_work.next_round(BOOTSTRAP)
                told = [await each.waiting() for each in (one, other, third)]
                others = [each.other_runs for each in told if each is not None]
                assert others == [("job-42",), ("job-41",), ()]

    run_clean(main)


@pytest.mark.parametrize("token", TOKENS)
def test_runs_do_not_learn_of_nodes_with_another_token(token: str) -> None:
    async def main() -> None:
        config = CoordinatorConfig(token=TOKENS[0], more_tokens=TOKENS[1:])
        async with served(config) as (_, port):
            endpoint = f"http://127.0.0.1:{port}"
            async with (
                waiting_for_a_round(endpoint, TWO, "job-41", token=TOKENS[0]) as one,
                waiting_for_a_round(endpoint, TWO, "job-42", token=token),
            ):
                waiting = await one.waiting()
                assert waiting is not None
                assert waiting.other_runs == (("job-42",) if token == TOKENS[0] else ())

    run_clean(main)


def test_the_memory_of_refused_nodes_is_bounded() -> None:
    kept = TurnedAway()
    for number in range(100):
        kept.record(f"job-{number}\n", float(number))
    assert kept.recent(100.0) == tuple(f"job-{n}\\n" for n in range(100 - TOLD_MAX, 100))
    assert kept.recent(99.0 + RECENT_S) == ("job-99\\n",)
    assert kept.recent(99.1 + RECENT_S) == ()
