"""The agent's local socket and a worker's side of it, back to back over a real socket."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from rallypoint import errors
from rallypoint.client.agent_client import AgentClient, socket_address
from rallypoint.client.node import Node, Round
from rallypoint.client.store_calls import COORDINATOR_LOST
from rallypoint.client.world import Run
from rallypoint.core.reasons import Waiting
from rallypoint.core.store import (
    ROUND_ENDED,
    TIMEOUT,
    Get,
    Set,
    StoreFailure,
    StoreOp,
    StoreResult,
    StoreValue,
)
from rallypoint.core.values import (
    Address,
    Change,
    ChangeKind,
    CloseRecord,
    Drain,
    Failure,
    FailureKind,
    Outcome,
    RoundHead,
    RoundMember,
    Seat,
)
from rallypoint.launch import channel
from rallypoint.launch.channel import Channel, Requests
from rallypoint.settings import WorkerChannel
from rallypoint.wire import local

pytestmark = pytest.mark.sockets

VALUE = StoreValue(b"value")
MEMBER = RoundMember("a", 1, "host", (), 2)
LOST = Change(ChangeKind.NODE_LOST, 1, ("b",), 1)


def a_round(number: int = 1) -> Round:
    head = RoundHead(number, 1, 1, 2, Address("127.0.0.1", 1), "digest")
    return Round(head, Seat(0, 0, 2))


class FakeNode:
    """What the channel needs of a node. Calls are answered by `answer`."""

    def __init__(self) -> None:
        self.info = SimpleNamespace(name="a")
        self.ledger_id = "L"
        self.drain: Drain | None = None
        self.step: int | None = None
        self.round: Round | None = a_round()
        self.change: Change | None = None
        self.closed: CloseRecord | None = None
        self.calls: list[StoreOp] = []
        self.kept_by: Waiting | None = None
        self.is_connected, self.looking = True, ""
        self.parts = 0
        self.promised: list[int] = []
        self.answer: Callable[[], Awaitable[StoreResult]] = lambda: asyncio.sleep(0, VALUE)

    def takes_part(self) -> None:
        self.parts += 1

    def promise(self, step: int) -> None:
        self.promised.append(step)

    async def call(self, op: StoreOp, timeout_s: float | None) -> StoreResult:
        self.calls.append(op)
        return await self.answer()

    async def members(self) -> tuple[RoundMember, ...]:
        return (MEMBER,)

    async def waiting(self) -> Waiting | None:
        return self.kept_by


class Setup:
    def __init__(self, explain_s: float | None = None) -> None:
        self.node = FakeNode()
        self.asked: list[object] = []
        self.parted: list[int] = []
        self.channel = Channel(
            cast(Node, self.node),
            Requests(
                lambda: self.asked.append("regroup"),
                self.asked.append,
                lambda outcome, reason: self.asked.append((outcome, reason)),
                parted=self.parted.append,
                asked=lambda local_rank, number: self.asked.append((local_rank, number)),
                raised=lambda local_rank, failure: self.asked.append(failure),
                fails=lambda pid: self.asked.append(("fails", pid)),
                explain_s=explain_s,
            ),
        )
        self.sources: list[AgentClient] = []

    def told(self, number: int = 1, **changed: Any) -> WorkerChannel:
        """What a worker's environment says."""
        told = WorkerChannel(
            agent=self.channel.path,
            secret=self.channel.secret,
            run_id="test",
            node="a",
            round=number,
            term=1,
            rank=1,
            local_rank=1,
            world_size=2,
            local_world_size=2,
            node_rank=0,
            nodes=1,
        )
        return msgspec.structs.replace(told, **changed)

    async def worker(self, **changed: Any) -> AgentClient:
        source = await AgentClient.open(self.told(**changed))
        self.sources.append(source)
        return source


@asynccontextmanager
async def setup(explain_s: float | None = None) -> AsyncIterator[Setup]:
    made = Setup(explain_s)
    await made.channel.start()
    made.channel.begin_round(a_round())
    try:
        async with asyncio.timeout(20):
            yield made
    finally:
        for source in made.sources:
            await source.aclose()
        await made.channel.aclose()


def test_a_worker_learns_what_the_run_waits_for() -> None:
    async def scenario() -> None:
        async with setup() as made:
            worker = await made.worker()
            assert await worker.waiting() is None
            away = Waiting(0, 2, 4, suspended="no answer", ledger_away_s=2.5)
            made.node.kept_by = away
            assert await worker.waiting() == away
            assert str(away) == "suspended: ledger unreachable for 2.5 s: no answer"
            made.node.is_connected, made.node.looking = False, "ledger unreachable for 9.0 s"
            with pytest.raises(errors.CoordinatorLostError, match="ledger unreachable for"):
                await worker.waiting()

    asyncio.run(scenario())


def test_calls_members_and_requests_reach_the_agent() -> None:
    async def scenario() -> None:
        async with setup() as made:
            worker = await made.worker()
            assert await worker.call(Get("key"), 1.0) == VALUE
            assert made.node.calls == [Get("key")]
            assert await worker.members() == (MEMBER,)
            await worker.leave("enough")
            closing = asyncio.ensure_future(worker.close(Outcome.SUCCEEDED, "trained"))
            await worker.members()
            assert made.asked == ["enough", (Outcome.SUCCEEDED, "trained")]
            made.channel.end_run(CloseRecord(Outcome.SUCCEEDED, "trained"))
            assert (await closing).reason == "trained"
            assert await worker.next_world(None) is None

    asyncio.run(scenario())


def test_a_world_notices_that_its_round_has_ended_already() -> None:
    async def scenario() -> None:
        async with setup() as made:
            made.node.change = LOST
            run = Run(await made.worker())
            world = await run.next_world()
            assert world is not None
            assert world.change == LOST

    asyncio.run(scenario())


@pytest.mark.parametrize("is_late", [False, True], ids=["told", "connects later"])
def test_a_departing_nodes_worker_gets_no_other_world(is_late: bool) -> None:
    """It does not wait for one, and does not ask for one either."""

    async def scenario() -> None:
        async with setup() as made:
            if is_late:
                made.channel.depart("preempted")
            worker = await made.worker()
            if is_late:
                await worker.waiting()  # What was sent before has arrived.
            else:
                assert await worker.next_world(1) is not None
                made.channel.depart("preempted")
            assert await worker.next_world(1) is None
            assert (await worker.waiting(), made.asked) == (None, [] if is_late else ["regroup"])
            change = worker.change
            assert change is not None
            assert (change.kind, change.nodes) == (ChangeKind.NODE_LEFT, ("a",))
            assert not worker.has_left

    asyncio.run(scenario())


def test_a_close_is_confirmed_although_the_node_departs() -> None:
    async def scenario() -> None:
        async with setup() as made:
            worker = await made.worker()
            made.channel.depart("preempted")
            await worker.waiting()  # What was sent before has arrived.
            assert await worker.next_world(1) is None
            closing = asyncio.create_task(worker.close(Outcome.SUCCEEDED, "done"))
            await worker.waiting()
            assert not closing.done()
            made.channel.end_run(CloseRecord(Outcome.SUCCEEDED, "done"))
            assert (await closing).reason == "done"

    asyncio.run(scenario())


@pytest.mark.parametrize("wrong", [{"secret": "guessed"}, {"number": 2}])
def test_a_process_that_is_no_worker_of_the_round_is_refused(wrong: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with setup() as made:
            with pytest.raises(errors.UnreachableError, match="no longer has a worker of round"):
                await made.worker(**wrong)

    asyncio.run(scenario())


def test_bytes_that_are_no_message_end_the_connection() -> None:
    async def scenario() -> None:
        async with setup() as made:
            address = socket_address(made.channel.path)
            reader, writer = await asyncio.open_unix_connection(address)
            writer.write(b"\0\0\0\3xyz")
            assert b"denied" in await reader.read()
            writer.close()

    asyncio.run(scenario())


def test_a_connection_without_the_secret_can_hold_little_memory() -> None:
    """Any process of the machine can connect: only a worker may send what is long."""

    async def scenario() -> None:
        async with setup() as made:
            reader, writer = await asyncio.open_unix_connection(socket_address(made.channel.path))
            writer.write(local.LENGTH.pack(local.HELLO_BYTES_MAX + 1))
            assert b"denied" in await reader.read()
            writer.close()
            worker = await made.worker()
            long = Set("key", bytes(1024**2))
            await worker.call(long, 1.0)
            assert made.node.calls == [long]

    asyncio.run(scenario())


def test_a_silent_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "HELLO_TIMEOUT_S", 0.5)

    async def scenario() -> None:
        async with setup() as made:
            worker = await made.worker()
            reader, writer = await asyncio.open_unix_connection(socket_address(made.channel.path))
            assert await reader.read() == b""
            writer.close()
            assert (
                await worker.call(Get("key"), 1.0) == VALUE
            )  # a connection that has said hello stays

    asyncio.run(scenario())


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells the pid only there")
def test_the_kernel_tells_which_process_fails() -> None:
    """It needs no secret, which a worker that was kept gets anew for each round."""

    async def scenario() -> None:
        async with setup() as made:
            reader, writer = await asyncio.open_unix_connection(socket_address(made.channel.path))
            writer.write(local.encode(local.Fails()))
            assert await reader.read() == b""
            writer.close()
            assert made.asked == [("fails", os.getpid())]
            assert made.parted == []

    asyncio.run(scenario())


def test_the_connection_of_an_earlier_rounds_worker_is_closed() -> None:
    async def scenario() -> None:
        async with setup() as made:
            old = await made.worker()
            waiting: asyncio.Future[StoreResult] = asyncio.get_running_loop().create_future()
            made.node.answer = lambda: waiting
            call = asyncio.ensure_future(old.call(Get("key"), 10.0))
            while not made.node.calls:  # noqa: ASYNC110 - the fake sets no event
                await asyncio.sleep(0)
            made.node.round = a_round(2)
            made.channel.begin_round(a_round(2))
            lost = StoreFailure(COORDINATOR_LOST, "this worker's agent is gone")
            assert await call == lost
            assert waiting.cancelled()
            assert await old.call(Get("key"), 10.0) == lost
            assert len(made.node.calls) == 1

    asyncio.run(scenario())


def test_a_workers_store_reports_the_result_of_the_nodes_call() -> None:
    async def scenario() -> None:
        async with setup() as made:
            run = Run(await made.worker())
            world = await run.next_world()
            assert world is not None

            async def answered(failure: StoreFailure) -> StoreResult:
                return failure

            failures: dict[type[Exception], StoreFailure] = {
                errors.CoordinatorLostError: StoreFailure(COORDINATOR_LOST, "nobody answers"),
                errors.RoundBrokenError: StoreFailure(ROUND_ENDED, "b is lost"),
                errors.StoreTimeoutError: StoreFailure(TIMEOUT, "too late", ("key",), 1),
            }
            for kind, failure in failures.items():
                made.node.answer = partial(answered, failure)
                with pytest.raises(kind, match=failure.message):
                    await world.store.get("key")

    asyncio.run(scenario())


def test_only_a_confirmed_end_explains_an_error() -> None:
    async def scenario() -> None:
        async with setup() as made:
            worker = await made.worker()
            error = RuntimeError("what a library says when a peer is gone")
            assert not await worker.is_explained(error, 1)
            made.channel.end_round(msgspec.structs.replace(LOST, confirmed=False))
            await worker.members()  # answered after the change was sent
            assert not await worker.is_explained(error, 1)
            made.channel.end_round(LOST)
            await worker.members()
            assert await worker.is_explained(error, 1)
            assert not await worker.is_explained(ValueError("the program's own"), 1)

    asyncio.run(scenario())


STRANGER = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
peer = socket.socket(socket.AF_UNIX)
peer.connect("\\0" + sys.argv[1])
sys.exit(0 if peer.recv(1) == b"" else 1)
"""


@pytest.mark.processes
@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="becoming another user takes root"
)
def test_a_process_of_another_user_is_refused() -> None:
    async def scenario() -> None:
        async with setup() as made:
            name = made.channel.path.removeprefix("@")
            stranger = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-c", STRANGER, name, cwd="/"
            )
            assert await stranger.wait() == 0
            assert await (await made.worker()).members() == (MEMBER,)

    asyncio.run(scenario())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the socket's folder is private")
@pytest.mark.parametrize(("own", "may"), [(0, True), (1_000, False)])
def test_only_this_user_and_root_may_connect(
    monkeypatch: pytest.MonkeyPatch, own: int, may: bool
) -> None:
    credentials = struct.pack("iII", 1, 0 if may else 2_000, 0)

    class Connection:
        def getsockopt(self, *_: int) -> bytes:
            return credentials

    monkeypatch.setattr(os, "geteuid", lambda: own)
    assert channel.is_of_this_user(cast(socket.socket, Connection())) == may


def test_silent_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "STRANGERS_MAX", 4)
    monkeypatch.setattr(channel, "HELLO_TIMEOUT_S", 0.3)

    async def scenario() -> None:
        async with setup() as made:
            address = socket_address(made.channel.path)
            mute = [socket.socket(socket.AF_UNIX) for _ in range(20)]
            for each in mute:
                each.connect(address)
            # It comes in when the time of those before it is over.
            assert await (await made.worker()).members() == (MEMBER,)
            for each in mute:
                each.close()

    asyncio.run(scenario())


# -- workers that are kept -------------------------------------------------------------------------


async def until(made: Setup, asked: object) -> None:
    while asked not in made.asked:  # noqa: ASYNC110 - the list sets no event
        await asyncio.sleep(0)


def begin(made: Setup, number: int, variables: dict[int, dict[str, str]]) -> None:
    """The agent begins a round, in which these workers go on."""
    made.node.round, made.node.change = a_round(number), None
    made.channel.begin_round(a_round(number), tuple(variables))
    made.channel.go_on(variables)


def test_a_worker_that_asks_gets_the_next_world_in_its_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "1")

    async def scenario() -> None:
        async with setup(explain_s=5.0) as made:
            run = Run(await made.worker())
            first = await run.next_world()
            assert first is not None
            assert await first.store._calls.call(Get("key"), 1.0) == VALUE
            asking = asyncio.ensure_future(run.next_world())
            await until(made, (1, 1))
            # R4: the old world is over for its objects, whatever the agent knows.
            assert first.change is not None
            with pytest.raises(errors.RoundBrokenError):
                await first.store.get("key")
            begin(made, 2, {1: {"RANK": "7", "RALLYPOINT_AGENT_SECRET": "new"}})
            second = await asking
            assert second is not None
            assert (second.number, second.local_rank, second.change) == (2, 1, None)
            assert os.environ["RANK"] == "7"
            assert await second.store._calls.call(Get("key"), 1.0) == VALUE
            with pytest.raises(errors.RoundBrokenError):
                await first.store.get("key")
            assert made.node.calls == [Get("key")] * 2
            # And so on: a second one, the end of which is told first.
            made.channel.end_round(msgspec.structs.replace(LOST, round=2))
            asking = asyncio.ensure_future(run.next_world())
            await until(made, (1, 2))
            assert second.change is not None
            assert second.change.kind is ChangeKind.NODE_LOST
            begin(made, 3, {1: {}})
            third = await asking
            assert third is not None
            assert third.number == 3

    asyncio.run(scenario())


def test_one_that_has_not_asked_or_is_not_kept_loses_its_connection() -> None:
    async def scenario() -> None:
        async with setup(explain_s=5.0) as made:
            busy, asks = await made.worker(local_rank=0), await made.worker(local_rank=1)
            for each in (busy, asks):
                await each.next_world(None)
            asking = asyncio.ensure_future(asks.next_world(None))
            await until(made, (1, 1))
            made.node.round = a_round(2)
            made.channel.begin_round(a_round(2), ())
            made.channel.go_on({})
            with pytest.raises(errors.CoordinatorLostError):
                await asking
            assert isinstance(await busy.call(Get("key"), 1.0), StoreFailure)
            assert made.node.calls == []

    asyncio.run(scenario())


def test_a_worker_that_waits_learns_the_end_of_the_run_and_of_its_node() -> None:
    async def scenario(ends: Callable[[Channel], None]) -> None:
        async with setup(explain_s=5.0) as made:
            worker = await made.worker()
            await worker.next_world(None)
            asking = asyncio.ensure_future(worker.next_world(None))
            await until(made, (1, 1))
            ends(made.channel)
            assert await asking is None

    asyncio.run(scenario(lambda channel: channel.depart("drained")))
    asyncio.run(scenario(lambda channel: channel.end_run(CloseRecord(Outcome.SUCCEEDED, "done"))))


def test_a_helper_of_a_worker_does_not_ask_for_it() -> None:
    async def scenario() -> None:
        async with setup(explain_s=5.0) as made:
            worker, helper = await made.worker(), await made.worker()
            for each in (worker, helper):
                await each.next_world(None)
            asking = asyncio.ensure_future(helper.next_world(None))
            await helper.members()
            assert (1, 1) not in made.asked
            await helper.aclose()
            await worker.members()
            assert made.parted == []
            asking.cancel()
            await worker.aclose()
            while not made.parted:  # noqa: ASYNC110 - the list sets no event
                await asyncio.sleep(0)
            assert made.parted == [1]

    asyncio.run(scenario())


def test_a_worker_that_has_asked_and_closes_is_not_kept_for_its_helper() -> None:
    """Nobody could give it the next world, and its peers would wait for it."""

    async def scenario() -> None:
        async with setup(explain_s=5.0) as made:
            worker, helper = await made.worker(), await made.worker()
            await worker.next_world(None)
            asking = asyncio.ensure_future(worker.next_world(None))
            await until(made, (1, 1))
            asking.cancel()
            await worker.aclose()
            while len(made.channel.links) == 2:  # noqa: ASYNC110 - a connection sets no event
                await asyncio.sleep(0)
            assert made.parted == [1]
            await helper.aclose()

    asyncio.run(scenario())


OWN = Failure(FailureKind.EXCEPTION, "RuntimeError: boom", rank=1, local_rank=1)
OTHERS = Failure(FailureKind.EXCEPTION, "ValueError: no", rank=0, local_rank=0)


@pytest.mark.parametrize(
    ("cause", "is_explained"),
    [
        (LOST, True),
        (Change(ChangeKind.WORKER_FAILED, 1, ("b",), 1, failure=OWN), True),
        (Change(ChangeKind.WORKER_FAILED, 1, ("a",), 1, failure=OTHERS), True),
        (Change(ChangeKind.WORKER_FAILED, 1, ("a",), 1, failure=OWN), False),
    ],
)
def test_an_error_is_told_and_its_cause_awaited(cause: Change, is_explained: bool) -> None:
    async def scenario() -> None:
        async with setup(explain_s=5.0) as made:
            worker = await made.worker()
            await worker.next_world(None)
            error = RuntimeError("boom")
            asking = asyncio.ensure_future(worker.is_explained(error, 1))
            while not made.asked:  # noqa: ASYNC110 - the list sets no event
                await asyncio.sleep(0)
            (told,) = made.asked
            assert isinstance(told, Failure)
            assert (told.rank, told.local_rank) == (1, 1)
            assert told.last_lines[-1] == "RuntimeError: boom"
            made.channel.end_round(msgspec.structs.replace(cause, confirmed=False))
            await worker.members()
            assert not asking.done()
            made.channel.end_round(cause)
            assert await asking == is_explained

    asyncio.run(scenario())


def test_an_error_without_a_cause_is_raised() -> None:
    async def scenario() -> None:
        async with setup(explain_s=0.05) as made:
            worker = await made.worker()
            await worker.next_world(None)
            assert not await worker.is_explained(RuntimeError("boom"), 1)
            assert not await worker.is_explained(errors.UsageError("boom"), 1)
            assert not await worker.is_explained(ValueError("boom"), 1)

    asyncio.run(scenario())


# -- agreements on a step --------------------------------------------------------------------------


async def two_that_take_part(made: Setup) -> tuple[AgentClient, AgentClient]:
    first, second = await made.worker(local_rank=0), await made.worker(local_rank=1)
    for worker in (first, second):
        worker.takes_part()
        await worker.waiting()
    return first, second


def test_a_helper_of_a_worker_ends_no_promise_of_the_worker() -> None:
    """A child process that joins as the same worker ends: the worker may still pass steps (R14)."""

    async def scenario() -> None:
        async with setup() as made:
            first, second = await made.worker(local_rank=0), await made.worker(local_rank=1)
            helper = await made.worker(local_rank=0)
            for worker in (first, second):
                worker.takes_part()
                await worker.waiting()
            assert made.node.parts == 1
            await helper.aclose()
            second.promise(4)
            await second.waiting()
            assert made.node.promised == []
            first.promise(7)
            await first.waiting()
            assert made.node.promised == [7]

    asyncio.run(scenario())


def test_a_worker_that_joins_again_promises_again() -> None:
    async def scenario() -> None:
        async with setup() as made:
            first, second = await two_that_take_part(made)
            await first.aclose()
            again = await made.worker(local_rank=0)
            again.takes_part()
            await again.waiting()
            second.promise(4)
            await second.waiting()
            assert made.node.promised == []
            again.promise(5)
            await again.waiting()
            assert made.node.promised == [5]

    asyncio.run(scenario())


def test_a_worker_that_has_ended_is_not_waited_for() -> None:
    async def scenario() -> None:
        async with setup() as made:
            first, second = await two_that_take_part(made)
            second.promise(4)
            await second.waiting()
            await first.aclose()
            while not made.node.promised:
                await second.waiting()
            assert made.node.promised == [4]

    asyncio.run(scenario())


def test_a_worker_that_was_asked_before_its_first_step_promises_then() -> None:
    async def scenario() -> None:
        async with setup() as made:
            other = await made.worker(local_rank=0)
            other.takes_part()
            other.promise(2)
            await other.waiting()
            made.node.drain = Drain(("b",), 1, 20.0, "a notice", True)
            worker = await made.worker()
            run = Run(worker)
            world = await run.next_world()
            assert world is not None
            assert not await world.should_yield(3)
            await worker.waiting()
            assert (made.node.parts, made.node.promised) == (1, [3])

    asyncio.run(scenario())
