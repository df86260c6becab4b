"""Drains and evictions over HTTP: which node is meant, what the answer says, and by which replica.

Real sockets, nodes and coordinators. What an order does to a run is tested in tests/core.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from rallypoint import errors
from rallypoint.client.node import Node, TellStacks
from rallypoint.client.run_client import open_node
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.core import events as on
from rallypoint.core.membership import Membership
from rallypoint.core.stacks import WorkerStack
from rallypoint.core.values import NodeId, RunSettings
from rallypoint.endpoints import parse_endpoint
from rallypoint.ledger.contract import SwapOutcome
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.settings import NodeSettings
from tests.coordinator.replica import TOKEN, Replica, replica
from tests.loops import BOOTSTRAP, run_clean, served, until

pytestmark = pytest.mark.sockets

TWO = RunSettings(min_nodes=1, max_nodes=2, max_restarts=None, last_call_s=0.05)


class Asked(list[str]):
    """What a node was asked, and the node."""

    node: Node


@contextlib.asynccontextmanager
async def orderly(
    port: int,
    name: str,
    *,
    takes_orders: bool = True,
    tell_stacks: TellStacks | None = None,
    **own: Any,
) -> AsyncIterator[Asked]:
    """A node that is attached, and departs when it is asked to leave."""
    asked = Asked()

    def leave(reason: str) -> None:
        asked.append(reason)
        asked.node.depart(reason)

    endpoint = parse_endpoint(f"http://127.0.0.1:{port}")
    settings = NodeSettings(
        endpoint=endpoint, run_id="run", node_name=name, token=TOKEN, insecure=True, **own
    )
    asked.node = Node(
        settings,
        TWO,
        on_asked_to_leave=leave if takes_orders else None,
        tell_stacks=tell_stacks,
    )
    await asked.node.open()
    try:
        yield asked
    finally:
        asked.node.goodbye("the test is over")
        await asked.node.aclose(linger=False)


@contextlib.asynccontextmanager
async def alone() -> AsyncIterator[Replica]:
    async with served(CoordinatorConfig(token=TOKEN)) as (server, port):
        yield Replica(server, port)


async def order(one: Replica, action: str, **body: object) -> tuple[int, Any]:
    return await one.ask(f"/api/v1/runs/run/{action}", post=msgspec.json.encode(body))


def test_a_drained_node_is_asked_and_the_others_learn_the_reason() -> None:
    async def main() -> None:
        async with alone() as one, orderly(one.port, "q1") as a, orderly(one.port, "q2") as b:
            await both_in_a_round(a, b)
            code, said = await order(one, "drain", node="q2", reason="new kernel")
            assert (code, said["node"], said["was_asked"]) == (200, "q2", False)
            await until(lambda: a.node.change, "the round goes on")
            reason = "drained by operator at 127.0.0.1: new kernel"
            assert str(a.node.change) == f"q2 left: {reason}"
            assert b == [reason]
            member = (await one.status("run")).members
            assert member is not None
            shown = {each.name: (each.state, each.drained) for each in member}
            assert shown["q2"] == ("departing", "operator at 127.0.0.1: new kernel")
            assert shown["q1"][1] is None
            assert (await order(one, "drain", node="q2"))[1]["was_asked"] is True
            code, events = await one.ask("/api/v1/runs/run/events")
            texts = [each["text"] for each in events["events"]]
            assert "q2 asked to leave by operator at 127.0.0.1: new kernel" in texts

    run_clean(main)


def test_an_evicted_node_ends_with_the_reason_and_cannot_come_back() -> None:
    async def main() -> None:
        async with alone() as one, orderly(one.port, "q1") as a, orderly(one.port, "q2") as b:
            await both_in_a_round(a, b)
            code, said = await order(one, "evict", node="q2", reason="ECC errors")
            assert (code, said["was_evicted"]) == (200, False)
            await until(lambda: a.node.change, "the round goes on")
            why = "evicted by operator at 127.0.0.1: ECC errors"
            assert str(a.node.change) == f"q2 lost: {why}"
            await until(lambda: b.node.gone, "it was not told")
            assert isinstance(b.node.gone, errors.EvictedError)
            assert str(b.node.gone).startswith(f"node 'q2' was {why}")
            with pytest.raises(errors.EvictedError, match="ECC errors"):
                async with orderly(one.port, "q2"):
                    """It is not let in."""
            assert (await order(one, "evict", node="q2"))[1]["was_evicted"] is True
            assert (await order(one, "drain", node="q2"))[0] == 409
            status = await one.status("run")
            assert status.evicted is not None
            assert [(each.node, each.reason) for each in status.evicted] == [("q2", "ECC errors")]
            events = (await one.ask("/api/v1/runs/run/events"))[1]["events"]
            (evicted,) = [each for each in events if each["kind"] == "evicted"]
            assert (evicted["node"], evicted["by"]) == ("q2", "operator at 127.0.0.1")
            # What follows from it is not told as another loss.
            assert "lost" not in [each["kind"] for each in events]

    run_clean(main)


def test_an_evicted_node_may_join_again_when_an_operator_has_admitted_it() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        async with (
            replica(ledger) as one,
            replica(ledger) as other,
            orderly(one.port, "q1") as a,
            orderly(one.port, "q2") as b,
        ):
            await both_in_a_round(a, b)
            code, said = await order(one, "admit", node="q2")
            assert (code, said["error"]) == (404, "node 'q2' is not evicted from run 'run'")
            assert (await order(one, "evict", node="q2", reason="hot"))[0] == 200
            code, said = await order(one, "admit", node="q3")
            assert (code, said["hint"]) == (404, "evicted nodes of this run: q2")
            code, said = await order(other, "admit", node="q2", reason="cool")
            assert (code, said["was"]) == (200, "operator at 127.0.0.1: hot")
            run = one.server.coordinator.runs["run"]
            assert _written(run.membership) == ([], [])
            async with orderly(one.port, "q2") as again:
                await until(lambda: "q2" in run.membership.roster, "it was not let in")
                assert again.node.gone is None
            events = (await one.ask("/api/v1/runs/run/events"))[1]["events"]
            texts = [each["text"] for each in events if each["kind"] == "readmitted"]
            by = "operator at 127.0.0.1 through 127.0.0.1"
            assert texts == [f"eviction of q2 lifted by {by}: cool"]

    run_clean(main)


class Held(MemoryLedger):
    """A ledger that keeps the writes of heads on their way until they are let through."""

    def __init__(self) -> None:
        super().__init__()
        self.is_open = asyncio.Event()
        self.is_open.set()

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        if key.startswith("runs/"):
            await self.is_open.wait()
        return await super().swap(key, expected, value)


def test_an_order_is_confirmed_when_no_earlier_one_can_replace_it_in_the_ledger() -> None:
    """The one that counted before is in the ledger, and another one is on its way there."""

    async def main() -> None:
        ledger = Held()
        async with replica(ledger) as one, orderly(one.port, "q1"):
            run = one.server.coordinator.runs["run"]
            assert (await order(one, "scale", min_nodes=1, max_nodes=1))[0] == 200
            ledger.is_open.clear()
            other = asyncio.create_task(order(one, "scale", min_nodes=1, max_nodes=3))
            await until(lambda: _sizes(run.membership) == [3, 1, 3], "it is not written")
            again = asyncio.create_task(order(one, "scale", min_nodes=1, max_nodes=1))
            await until(lambda: _sizes(run.membership) == [1, 1, 3], "it does not count")
            # A request that came later is answered, and this one is not.
            await one.status("run")
            assert not again.done()
            ledger.is_open.set()
            assert (await again)[0] == 200
            assert _sizes(run.membership) == [1, 1]
            other.cancel()

    run_clean(main)


def _sizes(membership: Membership) -> list[int]:
    """The largest size that counts, and those that the ledger may have."""
    known = (membership.orders, *membership.orders_possible)
    return [each.scale.max_nodes for each in known if each.scale is not None]


def test_an_order_without_room_is_refused_at_once_and_says_what_to_do() -> None:
    long = "\U0001f600" * 200

    async def main() -> None:
        async with alone() as one, orderly(one.port, "q1") as a:
            run = one.server.coordinator.runs["run"]
            for count in range(300):
                run.post(on.EvictRequested(NodeId(f"gone{count}", 1), "somebody", "r" * 100))
            assert len(run.membership.orders.evictions) < 300
            bodies: dict[str, dict[str, object]] = {
                "drain": {"node": "q1"},
                "evict": {"node": "q1"},
                "scale": {"min_nodes": 1, "max_nodes": 9},
            }
            for action, body in bodies.items():
                code, said = await order(one, action, reason=long, **body)
                kept = len(run.membership.orders.evictions)
                assert (code, said["error"]) == (
                    409,
                    f"run 'run' has no room for more orders: it keeps {kept} evictions",
                )
                assert "or lift evictions" in said["hint"]
            assert run.membership.orders.drains == ()
            assert run.membership.orders.scale is None
            assert a.node.gone is None

    run_clean(main)


def test_a_node_that_does_not_know_the_question_is_named() -> None:
    async def main() -> None:
        async with (
            alone() as one,
            orderly(one.port, "q1", takes_orders=False) as a,
        ):
            code, said = await order(one, "drain", node="q1")
            assert code == 409
            assert "cannot be asked to leave" in said["error"]
            assert "rallypoint evict" in said["hint"]
            assert (await order(one, "evict", node="q1"))[0] == 200
            await until(lambda: a.node.gone, "it was not told")
            assert isinstance(a.node.gone, errors.SupersededError)

    run_clean(main)


def test_bad_requests_and_unknown_nodes() -> None:
    async def main() -> None:
        async with alone() as one, orderly(one.port, "node-1"), orderly(one.port, "node-2"):
            for bad in (b"", b"{}", b'{"node": 7}', b"[", b'{"node": "q1", "reason": 1}'):
                for action in ("drain", "evict"):
                    path = f"/api/v1/runs/run/{action}"
                    assert (await one.ask(path, post=bad))[0] == 400
            code, said = await order(one, "evict", node="node-3")
            assert (code, sorted(said["nearest"])) == (404, ["node-1", "node-2"])
            assert "did you mean" in said["hint"]
            code, said = await one.ask("/api/v1/runs/rum/drain", post=b'{"node": "q1"}')
            assert (code, said["nearest"]) == (404, ["run"])
            assert (await order(one, "close"))[0] == 200
            code, said = await order(one, "drain", node="node-1")
            assert code == 409
            assert "is over" in said["error"]

    run_clean(main)


def test_a_node_is_named_by_its_host_or_rank_if_only_one_fits() -> None:
    async def main() -> None:
        async with alone() as one, orderly(one.port, "q1") as a, orderly(one.port, "q2") as b:
            await both_in_a_round(a, b)
            host = a.node.info.host
            code, said = await order(one, "drain", node=host)
            assert (code, sorted(said["nodes"])) == (409, ["q1", "q2"])
            code, said = await order(one, "drain", node="1")
            assert code == 200
            seat = b.node.round
            assert seat is not None
            assert said["node"] == ("q2" if seat.seat.node_rank == 1 else "q1")
            assert (await order(one, "drain", node="7"))[0] == 404

    run_clean(main)


def test_any_replica_passes_an_order_on_and_a_successor_knows_it() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        async with (
            replica(ledger) as one,
            replica(ledger) as other,
            orderly(one.port, "q1") as a,
            orderly(one.port, "q2") as b,
        ):
            await both_in_a_round(a, b)
            code, _ = await order(other, "evict", node="q2", reason="hot")
            assert code == 200
            code, _ = await order(other, "drain", node="q1", reason="late")
            assert code == 200
            await until(lambda: a, "it was not asked")
            assert a == ["drained by operator at 127.0.0.1 through 127.0.0.1: late"]
            run = one.server.coordinator.runs["run"]
            assert _written(run.membership) == (["q2"], ["q1"])
            await one.server.aclose()
            code, said = await order(other, "evict", node="q2")
            assert (code, said["was_evicted"], said["reason"]) == (200, True, "hot")

    run_clean(main)


async def both_in_a_round(*nodes: Asked) -> None:
    for each in nodes:
        each.node._act(each.node._machine.ready(BOOTSTRAP, 1))
    is_in: Callable[[], bool] = lambda: all(  # noqa: E731
        each.node.round is not None and each.node.round.head.nodes == len(nodes) for each in nodes
    )
    await until(is_in, "no round with both")


def _written(membership: Membership) -> tuple[list[str], list[str]]:
    orders = membership.orders_written
    evicted = [each.node.name for each in orders.evictions]
    return evicted, [each.node.name for each in orders.drains]


def test_a_native_program_gets_no_other_world_when_its_node_is_drained() -> None:
    async def main() -> None:
        async with alone() as one:
            endpoint = parse_endpoint(f"http://127.0.0.1:{one.port}")
            settings = NodeSettings(
                endpoint=endpoint, run_id="run", node_name="q2", token=TOKEN, insecure=True
            )
            client = await open_node(settings, RunSettings(min_nodes=2, max_nodes=2))
            waiting = asyncio.ensure_future(client.next_world(20.0))
            assert (await order(one, "drain", node="q2", reason="late"))[0] == 200
            assert await waiting is None
            assert await client.next_world(20.0) is None
            await client.aclose()

    run_clean(main)


def test_a_run_is_scaled_and_nodes_with_other_numbers_accept_it() -> None:
    async def main() -> None:
        async with (
            alone() as one,
            orderly(one.port, "q1") as a,
            orderly(one.port, "q2") as b,
            orderly(one.port, "q3") as c,
        ):
            await both_in_a_round(a, b)
            c.node._act(c.node._machine.ready(BOOTSTRAP, 1))
            await until(lambda: c.node._machine.is_standby, "it is not on standby")
            assert c.node.nodes_max == 2
            code, said = await order(one, "scale", min_nodes=2, max_nodes=3, reason="more")
            assert (code, said["min_nodes"], said["max_nodes"], said["was"]) == (200, 2, 3, [1, 2])
            assert said["text"] == "nodes on standby are let in"
            await until(lambda: a.node.change, "the round goes on")
            assert str(a.node.change) == "q3 joined"
            # Which asks for at most two nodes, and not for three.
            async with orderly(one.port, "q4") as d:
                assert d.node.nodes_max == 3
                code, said = await order(one, "scale", min_nodes=4, max_nodes=8)
                assert code == 200
                text = "1 of at least 4 nodes ready (at most 8), so the next round waits"
                assert said["text"] == text
                status = await one.status("run")
                assert status.scaled is not None
                assert (status.scaled.min_nodes, status.scaled.by) == (4, "operator at 127.0.0.1")
                assert status.settings is not None
                assert status.settings["max_nodes"] == 8
                events = (await one.ask("/api/v1/runs/run/events"))[1]["events"]
                texts = [each["text"] for each in events if each["kind"] == "scaled"]
                assert texts == [
                    "scaled to 2:3 nodes by operator at 127.0.0.1: more",
                    "scaled to 4:8 nodes by operator at 127.0.0.1",
                ]

    run_clean(main)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"min_nodes": 0, "max_nodes": 1},
        {"min_nodes": 3, "max_nodes": 2},
        {"min_nodes": 1, "max_nodes": 10**7},
        {"min_nodes": "1", "max_nodes": 2},
        {"min_nodes": 1.5, "max_nodes": 2},
    ],
)
def test_numbers_of_nodes_that_make_no_sense_are_refused(body: dict[str, object]) -> None:
    async def main() -> None:
        async with alone() as one, orderly(one.port, "q1"):
            code, said = await order(one, "scale", **body)
            assert code == 400
            assert '"min_nodes": 2' in said["hint"]

    run_clean(main)


# -- stacks ----------------------------------------------------------------------------------------


def standing(rank: int, place: str) -> Callable[[int], Awaitable[tuple[WorkerStack, ...]]]:
    """A node whose only worker stands there."""

    async def tell(bytes_max: int) -> tuple[WorkerStack, ...]:
        assert bytes_max >= 1_024
        return (WorkerStack(rank, place=place, text="File 1\nFile \x1b[31m2", source="a test"),)

    return tell


def test_stacks_say_who_stands_where() -> None:
    async def main() -> None:
        async with (
            alone() as one,
            orderly(one.port, "q1", tell_stacks=standing(0, "all_reduce")) as a,
            orderly(one.port, "q2", tell_stacks=standing(1, "load")) as b,
        ):
            code, said = await order(one, "stacks")
            assert (code, said["error"]) == (
                409,
                "run 'run' has no active round, so no worker runs",
            )
            await both_in_a_round(a, b)
            code, said = await order(one, "stacks")
            assert (code, said["round"]) == (200, 1)
            assert said["summary"] == "q1 rank 0 in all_reduce, q2 rank 1 in load"
            assert [each["node"] for each in said["nodes"]] == ["q1", "q2"]
            (worker,) = said["nodes"][0]["workers"]
            assert worker["text"] == "File 1\nFile \\x1b[31m2"
            code, said = await order(one, "stacks", node="1")
            assert (code, said["summary"]) == (200, "1 of 1 in load")
            code, said = await order(one, "stacks", node="q7")
            assert code == 404
            assert a.node.change is None

    run_clean(main)


def test_a_node_that_cannot_be_asked_is_named() -> None:
    async def main() -> None:
        async with (
            alone() as one,
            orderly(one.port, "q1", tell_stacks=standing(0, "load")) as a,
            orderly(one.port, "q2") as b,
        ):
            await both_in_a_round(a, b)
            code, said = await order(one, "stacks")
            assert (code, said["cannot"], said["silent"]) == (200, ["q2"], [])
            assert said["summary"] == "1 of 1 in load, no answer from q2"

    run_clean(main)
