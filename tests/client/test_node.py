"""A node over real connections: resuming, going, being the host, and how long anything may take."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rallypoint import errors
from rallypoint.client import node as client
from rallypoint.client.hosting import EmbeddedCoordinator
from rallypoint.client.node import Node
from rallypoint.client.store_calls import COORDINATOR_LOST
from rallypoint.core.store import (
    LIMIT,
    TIMEOUT,
    Add,
    Get,
    Set,
    StoreFailure,
    StoreResult,
    StoreValue,
)
from rallypoint.core.values import (
    Address,
    ChangeKind,
    Outcome,
    RoundMember,
    RunSettings,
)
from tests.loops import BOOTSTRAP, node, opened, run_clean, served, until
from tests.ports import free_port

pytestmark = pytest.mark.sockets

TWO = RunSettings(min_nodes=2, max_nodes=2, max_restarts=None)


@contextlib.asynccontextmanager
async def two(port: int, run: RunSettings = TWO, **own: Any) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes in their first round."""
    endpoint = f"http://127.0.0.1:{port}"
    async with (
        opened(endpoint, run, node_name="a", **own) as a,
        opened(endpoint, run, node_name="b", **own) as b,
    ):
        await asyncio.gather(a.next_round(BOOTSTRAP), b.next_round(BOOTSTRAP))
        yield a, b


def cut(a: Node) -> None:
    """Break its connection, as a network would."""
    assert a._connector.connection is not None
    a._connector.connection.abort("the test cut it")


def test_a_broken_connection_is_resumed_and_requests_count_once():
    async def main() -> None:
        async with served() as (_, port), two(port) as (a, b):
            for expected in range(1, 6):
                adding = asyncio.create_task(a.call(Add("n", 1), 20))
                await asyncio.sleep(0)
                cut(a)
                assert await adding == StoreValue(expected)
            assert (a.change, b.change) == (None, None)

    run_clean(main)


def test_an_abrupt_end_is_a_loss_after_the_grace():
    async def main() -> None:
        async with served() as (_, port), two(port) as (a, b):
            b._connector.is_closing = True  # so that it does not come back
            cut(b)
            await until(lambda: a.change, "the loss went unnoticed")
            assert a.change is not None
            assert (a.change.kind, a.change.nodes) == (ChangeKind.NODE_LOST, ("b",))

    run_clean(main)


def test_a_goodbye_sent_while_disconnected_arrives():
    async def main() -> None:
        run = RunSettings(min_nodes=1, max_nodes=2, expected_nodes=2, reconnect_grace_s=60.0)
        async with served() as (_, port), two(port, run) as (a, b):
            cut(b)
            b.goodbye("enough")
            await b.aclose()
            await until(lambda: a.change, "the goodbye went unheard")
            assert a.change is not None
            assert (a.change.kind, a.change.detail) == (ChangeKind.NODE_LEFT, "enough")

    run_clean(main)


def test_a_node_that_has_left_does_not_return():
    async def main() -> None:
        async with served() as (server, port), two(port) as (_, b):
            b.goodbye("enough")
            await until(lambda: b.gone, "it did not end")
            assert len(server.coordinator.sessions) == 1
            assert b.change is not None
            assert b.change.kind is ChangeKind.NODE_LEFT
            left = StoreFailure(COORDINATOR_LOST, "this node has left the run")
            assert await b.call(Add("n", 1), 20) == left
            with pytest.raises(errors.CoordinatorLostError, match="has left the run"):
                await b.waiting()

    run_clean(main)


def test_a_restarted_coordinator_has_lost_the_run():
    async def main() -> None:
        port = free_port()
        hosted = await EmbeddedCoordinator.start("run", "", "127.0.0.1", port)
        async with two(port) as (a, b):
            await hosted.aclose()
            hosted = await EmbeddedCoordinator.start("run", "", "127.0.0.1", port)
            await until(lambda: a.gone and b.gone, "they were not told")
            assert isinstance(a.gone, errors.RunLostError)
            assert isinstance(b.gone, errors.RunLostError)
        await hosted.aclose()

    run_clean(main)


def test_a_coordinator_that_does_not_return_is_lost_in_time():
    async def main() -> float:
        port = free_port()
        hosted = await EmbeddedCoordinator.start("run", "", "127.0.0.1", port)
        async with two(port, coordinator_lost_after_s=0.5) as (a, _):
            loop = asyncio.get_running_loop()
            waiting = asyncio.create_task(a.call(Get("never"), 60.0))
            await asyncio.sleep(0)
            await hosted.aclose()
            began_s = loop.time()
            failure = await waiting
            assert isinstance(failure, StoreFailure)
            assert failure.code == COORDINATOR_LOST
            assert "Connection refused" in failure.message
            assert a.gone is not None
            assert "rallypoint serve" in a.gone.hint
            return loop.time() - began_s

    assert run_clean(main) < 20.0


# -- rounds ----------------------------------------------------------------------------------------


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question why there is no round is answered even if this process stalls meanwhile."""
    monkeypatch.setattr(client, "WHY_TIMEOUT_S", 20.0)


@pytest.mark.usefixtures("patient")
def test_the_error_says_what_the_round_waits_for():
    async def main() -> None:
        async with served() as (_, port), opened(f"http://127.0.0.1:{port}", TWO) as a:
            with pytest.raises(errors.JoinTimeoutError) as caught:
                await a.next_round(BOOTSTRAP, timeout_s=0.2)
            waiting = caught.value.waiting
            assert waiting is not None
            assert (waiting.ready, waiting.minimum) == (1, 2)
            assert "within 0.2 s: 1 of 2 nodes ready" in caught.value.message

    run_clean(main)


@pytest.mark.usefixtures("patient")
def test_the_error_names_the_awaited_nodes():
    async def main() -> None:
        async with served() as (_, port), two(port) as (a, _):
            with pytest.raises(errors.JoinTimeoutError, match="waiting for b") as caught:
                await a.next_round(BOOTSTRAP, timeout_s=0.2)
            assert caught.value.waiting is not None
            assert caught.value.waiting.missing == ("b",)

    run_clean(main)


def test_the_next_call_returns_a_round_formed_meanwhile():
    async def main() -> None:
        async with served() as (_, port):
            endpoint = f"http://127.0.0.1:{port}"
            async with opened(endpoint, TWO) as a, opened(endpoint, TWO) as b:
                for timeout_s in (0.01, 0.02):
                    with pytest.raises(errors.JoinTimeoutError):
                        await a.next_round(Address("127.0.0.1", 1), timeout_s=timeout_s)
                found = await b.next_round(BOOTSTRAP)
                assert found is not None
                again = await a.next_round(BOOTSTRAP)
                assert again is not None
                assert again.head == found.head
                assert b.change is None

    run_clean(main)


@pytest.mark.usefixtures("patient")
def test_a_standby_has_no_deadline_during_the_round():
    async def main() -> None:
        run = RunSettings(min_nodes=1, max_nodes=1, max_restarts=None)
        async with served() as (_, port):
            endpoint = f"http://127.0.0.1:{port}"
            async with opened(endpoint, run) as a, opened(endpoint, run) as b:
                told: list[bool] = []
                b.on_standby = lambda: told.append(True)
                await a.next_round(BOOTSTRAP)
                waiting = asyncio.create_task(b.next_round(BOOTSTRAP, timeout_s=0.05))
                await until(lambda: told, "it was not told")
                await asyncio.sleep(0.5)
                assert not waiting.done()
                a.goodbye("done")
                found = await waiting
                assert found is not None
                assert found.head.number == 2

    run_clean(main)


def test_a_member_table_of_another_round_is_ignored():
    async def main() -> None:
        async with served() as (_, port), two(port) as (a, _):
            assert [m.name for m in await a.members()] == ["a", "b"]
            assert a._machine.head is not None
            a._machine.head = msgspec.structs.replace(a._machine.head, digest="0" * 16)
            with pytest.raises(errors.RoundBrokenError, match="another round"):
                await a.members()

    run_clean(main)


def test_a_table_with_fields_of_a_later_release_is_accepted():
    """The node uses the coordinator's digest: its own would miss the new fields."""

    class Later(RoundMember, frozen=True):
        accelerator: str = "new"

    async def main() -> None:
        async with served() as (server, port), two(port) as (a, _):
            run = server.coordinator.runs["run"]
            assert run.membership.round is not None
            rows = run.membership.round.members
            later = [Later(m.name, m.incarnation, m.host, m.addresses, m.workers) for m in rows]
            raw = msgspec.msgpack.encode(later)
            run._table._number, run._table._rows = 1, msgspec.Raw(raw)
            assert [m.name for m in await a.members()] == ["a", "b"]

    run_clean(main)


@pytest.mark.parametrize(
    "op",
    [Set("k", bytes(9 * 1024**2)), Set("k", 5), Get("\udcff"), Add("k", 2**70)],  # type: ignore[arg-type]
    ids=["too large", "no bytes", "no text", "no int64"],
)
def test_a_call_refused_by_every_coordinator_keeps_the_nodes_place(op: Any):
    async def main() -> None:
        async with served() as (_, port), two(port) as (a, b):
            with contextlib.suppress(errors.UsageError):
                failure = await a.call(op, 5)
                assert isinstance(failure, StoreFailure)
                assert failure.code == LIMIT
            assert await a.call(Add("n", 1), 5) == StoreValue(1)
            assert a.is_connected
            assert b.change is None

    run_clean(main)


# -- the host --------------------------------------------------------------------------------------


def test_a_host_that_finishes_first_waits_for_the_others():
    async def main() -> None:
        endpoint = f"127.0.0.1:{free_port()}"
        a = node(endpoint, TWO)
        await a.open()
        async with opened(endpoint, TWO) as b:
            await asyncio.gather(a.next_round(BOOTSTRAP), b.next_round(BOOTSTRAP))
            await a.close_run(Outcome.SUCCEEDED, "trained", 5)
            a.goodbye("done")
            going = asyncio.create_task(a.aclose())
            await until(lambda: b.closed, "b was not told")
            assert not going.done()
        await going

    run_clean(main)


def test_lingering_is_bounded():
    async def main() -> None:
        endpoint = f"127.0.0.1:{free_port()}"
        a = node(endpoint, TWO, linger_s=0.3)
        await a.open()
        async with opened(endpoint, TWO) as b:
            await asyncio.gather(a.next_round(BOOTSTRAP), b.next_round(BOOTSTRAP))
            await a.close_run(Outcome.SUCCEEDED, "trained", 5)
            a.goodbye("done")
            async with asyncio.timeout(20):
                await a.aclose()
            assert b.closed is not None

    run_clean(main)


def test_a_host_that_leaves_a_live_run_stays_until_it_ends(caplog):
    async def main() -> None:
        endpoint = f"127.0.0.1:{free_port()}"
        run = RunSettings(min_nodes=1, max_nodes=3, expected_nodes=3)
        a = node(endpoint, run, linger_s=0.1)
        await a.open()
        async with opened(endpoint, run) as b, opened(endpoint, run) as c:
            await asyncio.gather(*(each.next_round(BOOTSTRAP) for each in (a, b, c)))
            a.goodbye("enough")
            going = asyncio.create_task(a.aclose())
            rounds = await asyncio.gather(b.next_round(BOOTSTRAP), c.next_round(BOOTSTRAP))
            assert [found.head.nodes for found in rounds if found] == [2, 2]
            assert not going.done()
            await b.close_run(Outcome.SUCCEEDED, "trained", 5)
            await until(lambda: c.closed, "c was not told")
            b.goodbye("done")
            await b.aclose()
        await going

    run_clean(main)
    assert "stays until the run ends: 2 connections are left" in caplog.text


def test_a_host_alone_ends_at_once(caplog):
    async def main() -> None:
        a = node(f"127.0.0.1:{free_port()}", goodbye_timeout_s=60.0)
        await a.open()
        await a.next_round(BOOTSTRAP)
        a.goodbye("enough")
        async with asyncio.timeout(20):
            await a.aclose()

    run_clean(main)
    assert "stays until" not in caplog.text


# -- a coordinator that stalls ---------------------------------------------------------------------


@pytest.fixture
def frozen() -> Iterator[tuple[int, int]]:
    """The port and the pid of a coordinator in a process of its own."""
    script = Path(__file__).with_name("frozen.py")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def freeze(pid: int) -> None:
    """Stop a child of this process, all of its threads, until SIGCONT."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


@pytest.mark.processes
def test_no_call_passes_its_deadline_while_the_coordinator_stalls(monkeypatch, frozen):
    port, pid = frozen
    monkeypatch.setattr(client, "ANSWER_MARGIN_S", 0.5)
    monkeypatch.setattr(client, "ASK_TIMEOUT_S", 0.5)
    monkeypatch.setattr(client, "LET_IN_S", 0.5)
    endpoint = f"http://127.0.0.1:{port}"

    async def failed(work: Awaitable[StoreResult], code: str) -> None:
        failure = await work
        assert isinstance(failure, StoreFailure)
        assert failure.code == code

    async def bounded(limit_s: float, kind: type[Exception] | None, work: Any) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        with pytest.raises(kind) if kind else contextlib.nullcontext():
            await work
        assert loop.time() - began_s < limit_s + 8.0

    # What would end the calls otherwise is farther off than they may take, however slow this is.
    own: dict[str, Any] = {"coordinator_silence_s": 0.6, "goodbye_timeout_s": 0.5}
    given_up = own | {"coordinator_lost_after_s": 2.0, "run_id": "another"}

    async def main() -> None:
        async with two(port, **own) as (a, b), two(port, **given_up) as (c, d):
            freeze(pid)
            # While workers run, a node searches a coordinator that stalls without a limit.
            # These two finish after it has stopped: had it heard of both, their run would be over.
            for finished in (c, d):
                finished.done()
            await bounded(0.7, None, failed(a.call(Get("k"), 0.2), TIMEOUT))
            await bounded(0.5, errors.CoordinatorLostError, a.members(0.5))
            await bounded(1.5, errors.JoinTimeoutError, a.next_round(BOOTSTRAP, timeout_s=0.2))
            await bounded(0.5, errors.CoordinatorLostError, b.close_run(Outcome.STOPPED, "no", 0.5))
            opening = node(endpoint, TWO, connect_timeout_s=0.5)
            await bounded(1.0, errors.UnreachableError, opening.open())
            await until(lambda: c.gone and d.gone, "the coordinator was never given up")
            await bounded(0.0, None, failed(c.call(Get("k"), None), COORDINATOR_LOST))

    run_clean(main, 50.0)


@pytest.mark.processes
def test_r8_a_coordinator_that_stalled_loses_no_node(frozen):
    port, pid = frozen

    async def main() -> None:
        run = RunSettings(
            min_nodes=2, max_nodes=2, suspect_after_s=0.6, lost_after_s=4.0, reconnect_grace_s=1.0
        )
        async with two(port, run, coordinator_silence_s=60.0) as (a, b):
            freeze(pid)
            # The stall itself: longer than every deadline. That of the nodes is not a short one, as
            # their own process, too, may stall for a second.
            await asyncio.sleep(6.0)
            os.kill(pid, signal.SIGCONT)
            assert await a.call(Add("n", 1), 10) == StoreValue(1)
            await asyncio.sleep(1.5)  # as long as a wrong verdict could take
            assert (a.change, b.change) == (None, None)

    run_clean(main)
