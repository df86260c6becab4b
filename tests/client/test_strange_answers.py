"""Whatever answers in a coordinator's or an agent's place: an error of ours, and no traceback."""

from __future__ import annotations

import pytest
from websockets.datastructures import Headers
from websockets.http11 import Response

from rallypoint import errors
from rallypoint.client import machine as m
from rallypoint.client.agent_client import AgentClient
from rallypoint.client.store_calls import COORDINATOR_LOST
from rallypoint.client.transport import _handshake_error
from rallypoint.core.reasons import Waiting
from rallypoint.core.store import Get, StoreFailure, StoreValue
from rallypoint.core.values import Address, RoundHead, Seat
from rallypoint.settings import WorkerChannel
from rallypoint.wire import local
from rallypoint.wire import messages as wire
from tests.fuzz.memory import MemoryTransport
from tests.loops import run_virtual
from tests.network import Network, stamp

BODIES = {
    "deep": b'{"error":' + b"[" * 50_000,
    "no UTF-8": b'{"error":"\xff"}',
    "no JSON": b"<html>",
    "another type": b'{"error":1}',
    "nothing": b"",
}


@pytest.mark.parametrize("status", [400, 401, 404, 502])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_refused_handshake_is_an_error_of_ours_whatever_its_body(
    body: bytes, status: int
) -> None:
    from websockets.exceptions import InvalidStatus

    refused = InvalidStatus(Response(status, "No", Headers(), body))
    error = _handshake_error(Address("h", 1), refused)
    assert isinstance(error, errors.CoordinatorError | ConnectionRefusedError)


def test_a_refusal_by_a_limit_says_how_to_raise_it() -> None:
    from websockets.exceptions import InvalidStatus

    body = b'{"error":"at most 2 connections\\u001b[31m","hint":"raise RALLYPOINT_SESSIONS_MAX"}'
    refused = InvalidStatus(Response(503, "Service Unavailable", Headers(), body))
    text = str(_handshake_error(Address("h", 1), refused))
    assert "at most 2 connections" in text
    assert "RALLYPOINT_SESSIONS_MAX" in text
    assert "\x1b" not in text


def test_a_node_refuses_an_answer_of_another_kind() -> None:
    network = Network()
    node = network.node("a")
    network.settle()
    node.ready()
    network.until(lambda: bool(node.rounds))
    assert node.link is not None
    node.link.up.clear()
    machine, now_s = node.machine, network.now_s
    call, _ = machine.call(Get("k"), 10.0, now_s)
    table, _ = machine.ask_members()
    why, _ = machine.ask_waiting()
    for number, others in {call: (table, why), table: (call, why), why: (call, table)}.items():
        answers: dict[int, wire.FromCoordinator] = {
            call: wire.StoreAnswer(stamp(1), number, StoreValue(b"x")),
            table: wire.Members(stamp(1), number, 1, "", ()),
            why: wire.WaitingIs(stamp(1), number, None),
        }
        for other in others:
            assert machine.received(answers[other], now_s) == []
        assert number in machine.requests.open
        assert len(machine.received(answers[number], now_s)) == 1
        assert number not in machine.requests.open
    assert isinstance(machine, m.NodeMachine)


CHANNEL = WorkerChannel(
    agent="@x",
    secret="s",
    run_id="run",
    node="n",
    round=1,
    term=1,
    rank=0,
    local_rank=0,
    world_size=1,
    local_world_size=1,
    node_rank=0,
    nodes=1,
)
HEAD = RoundHead(1, 1, 1, 1, Address("h", 1), "")
ANSWERS: dict[str, local.LocalMessage] = {
    "call": local.Answer(1, StoreValue(b"x")),
    "members": local.Members(1, ()),
    "waiting": local.WaitingIs(1, Waiting(ready=1, minimum=2, maximum=2)),
}


@pytest.mark.parametrize("asked", ANSWERS)
@pytest.mark.parametrize("answered", ANSWERS)
def test_a_worker_refuses_an_answer_of_another_kind(asked: str, answered: str) -> None:
    async def main() -> object:
        import asyncio

        source = AgentClient(CHANNEL)
        transport = MemoryTransport(source, ("", 0))
        transport.bring(local.encode(local.Admitted("n", HEAD, Seat(0, 0, 1))))
        work = {
            "call": lambda: source.call(Get("k"), 1.0),
            "members": source.members,
            "waiting": source.waiting,
        }[asked]
        task = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        transport.bring(local.encode(ANSWERS[answered]))
        return await task

    if asked == answered:
        assert run_virtual(main()) is not None
    elif asked == "call":
        failure = run_virtual(main())
        assert isinstance(failure, StoreFailure)
        assert failure.code == COORDINATOR_LOST
    else:
        with pytest.raises(errors.CoordinatorLostError):
            run_virtual(main())
