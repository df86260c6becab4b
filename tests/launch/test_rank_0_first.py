"""Rank 0 starts first: who waits, for what, and how often in vain."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from rallypoint.client.node import Round
from rallypoint.core.store import Get, Set, StoreFailure, StoreOp, StoreResult, StoreValue
from rallypoint.core.values import Address, RoundHead, Seat
from rallypoint.launch import rank_0_first
from rallypoint.launch.rank_0_first import KEY, TOLD_S, Rank0First
from tests.loops import run_virtual

NODES = 2


def a_round(node_rank: int = 0, nodes: int = NODES, workers: int = 2) -> Round:
    head = RoundHead(1, 1, nodes, nodes * workers, Address("10.0.0.1", 29_500), "digest")
    return Round(head, Seat(node_rank, node_rank * workers, workers))


class Calls:
    """The store of one round, as far as it is used here."""

    def __init__(self) -> None:
        self.made: list[StoreOp] = []
        self.is_set = False

    async def call(self, op: StoreOp, timeout_s: float | None) -> StoreResult:
        self.made.append(op)
        if isinstance(op, Set):
            assert op.key == KEY
            self.is_set = True
        return StoreValue(None) if self.is_set else StoreFailure("timeout", "no value")


class Machine:
    """A machine whose port listens after so many looks; None: never."""

    def __init__(self, after: int | None) -> None:
        self._after = after
        self.looks = 0

    async def listens(self, port: int) -> bool:
        assert port == 29_500
        self.looks += 1
        return self._after is not None and self.looks > self._after


def lead(first: Rank0First, found: Round) -> tuple[bool, bool]:
    """Whether the others were held, and whether they were let go."""
    let_go: list[bool] = []
    is_held = first.holds(found, is_warm=True)
    asyncio.run(first.lead(found, lambda: let_go.append(True), is_held=is_held))
    return is_held, let_go == [True]


def test_the_others_are_let_go_when_rank_0_listens_and_the_other_nodes_are_told() -> None:
    calls, machine = Calls(), Machine(after=3)
    assert lead(Rank0First(calls.call, machine.listens), a_round()) == (True, True)
    assert machine.looks == 4
    assert calls.made == [Set(KEY, b"1")]


@pytest.mark.parametrize(
    ("found", "is_warm"),
    [
        (a_round(node_rank=1), True),
        (a_round(), False),
        (a_round(nodes=1, workers=1), True),
    ],
)
def test_nobody_is_held_elsewhere_or_cold_or_alone(found: Round, *, is_warm: bool) -> None:
    first = Rank0First(Calls().call, Machine(after=0).listens)
    assert not first.holds(found, is_warm=is_warm)


def test_one_node_has_nobody_to_tell() -> None:
    calls = Calls()
    assert lead(Rank0First(calls.call, Machine(after=0).listens), a_round(nodes=1)) == (True, True)
    assert calls.made == []


def test_after_a_wait_in_vain_the_next_rounds_start_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rank_0_first, "_PAUSE_S", 0.0)
    monkeypatch.setattr(rank_0_first, "LISTENS_S", 60.0)  # The looks are counted.
    first = Rank0First(Calls().call, Machine(after=None).listens)
    held = [lead(first, a_round()) for _ in range(12)]
    assert all(is_let_go for _, is_let_go in held)
    assert [n for n, (is_held, _) in enumerate(held) if is_held] == [0, 2, 6]


def test_a_wait_that_was_not_in_vain_makes_patient_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_0_first, "_PAUSE_S", 0.0)
    monkeypatch.setattr(rank_0_first, "LISTENS_S", 60.0)
    machine = Machine(after=rank_0_first._TRIES)  # It listens from the second round on.
    first = Rank0First(Calls().call, machine.listens)
    assert [lead(first, a_round())[0] for _ in range(5)] == [True, False, True, True, True]


def test_the_other_nodes_wait_for_the_word_unless_it_has_not_come() -> None:
    calls = Calls()
    first = Rank0First(calls.call, Machine(after=0).listens)
    for _ in range(4):
        asyncio.run(first.follow())
    assert calls.made == [Get(KEY)] * 2
    calls.is_set = True
    for _ in range(4):
        asyncio.run(first.follow())
    assert calls.made == [Get(KEY)] * 4  # Two rounds more without, then with each one.


def test_nobody_waits_for_a_coordinator_that_does_not_answer() -> None:
    async def never(op: StoreOp, timeout_s: float | None) -> StoreResult:
        await asyncio.sleep(3_600.0)
        raise AssertionError

    async def scenario() -> float:
        began_s = asyncio.get_running_loop().time()
        await Rank0First(never, Machine(after=0).listens).follow()
        return asyncio.get_running_loop().time() - began_s

    assert run_virtual(scenario()) == pytest.approx(TOLD_S)


def test_a_lead_that_is_cut_short_lets_the_others_go() -> None:
    async def scenario() -> None:
        calls, let_go = Calls(), asyncio.Event()
        first = Rank0First(calls.call, Machine(after=None).listens)
        leading = asyncio.create_task(first.lead(a_round(), let_go.set, is_held=True))
        await asyncio.sleep(0)
        leading.cancel()
        await asyncio.wait({leading})
        assert let_go.is_set()
        assert calls.made == []

    asyncio.run(scenario())


@pytest.fixture(params=["kernel", "connection"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How it is found out: Linux's, and that of other systems."""
    if request.param == "connection":
        monkeypatch.setattr(rank_0_first, "_ASKS", 0)
    elif not hasattr(socket, "AF_NETLINK"):
        pytest.skip("only Linux lists its sockets")
    return str(request.param)


@pytest.mark.sockets
@pytest.mark.parametrize("host", ["127.0.0.1", "::", ""])
def test_a_port_of_this_machine_listens_or_does_not(host: str, way: str) -> None:
    family = socket.AF_INET6 if host == "::" else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        assert asyncio.run(rank_0_first.listens(port))
        server.setblocking(False)
        with contextlib.ExitStack() as stack:
            if way == "kernel":  # A program that counts its connections sees none of the agent's.
                stack.enter_context(pytest.raises(BlockingIOError))
            server.accept()[0].close()
        # A port that a client has, in a connection to it, does not listen.
        with socket.create_connection(server.getsockname()[:2]) as client:
            assert not asyncio.run(rank_0_first.listens(client.getsockname()[1]))
    with socket.socket() as bound:
        bound.bind(("", 0))  # As a reservation: nobody else has this port, and nobody listens.
        assert not asyncio.run(rank_0_first.listens(bound.getsockname()[1]))
