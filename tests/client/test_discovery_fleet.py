"""Many nodes lose one coordinator: a few become candidates soon, and no node reads much.

In virtual time, over a ledger that takes 100 ms for a write. A candidate becomes the owner
after two writes; the others find it through the ledger.
"""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from rallypoint import runtime
from rallypoint.client.discovery import Search
from rallypoint.core import election as e
from rallypoint.core.values import Address, RunSettings
from rallypoint.endpoints import Endpoint, EndpointKind
from rallypoint.ledger.contract import Changed, Versioned
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.settings import NodeSettings
from tests.kinds import seeds
from tests.loops import run_virtual

TTL_S = 5.0
WRITE_S = 0.1
SETTINGS = NodeSettings(
    endpoint=Endpoint(EndpointKind.LEDGER, text="memory"), run_id="run", lease_ttl_s=TTL_S
)
HERE = (Address("here", 1),)


class Counting(MemoryLedger):
    """Counts reads, and lets the first candidate write the register."""

    def __init__(self) -> None:
        super().__init__()
        self.reads_bytes = 0
        self.busiest = 0
        self._in_this_tenth = (0, 0)

    async def read(self, key: str) -> Versioned | None:
        found = await super().read(key)
        tenth = int(asyncio.get_running_loop().time() * 10)
        count = self._in_this_tenth[1] + 1 if self._in_this_tenth[0] == tenth else 1
        self._in_this_tenth = (tenth, count)
        self.busiest = max(self.busiest, count)
        self.reads_bytes += len(found.value) if found else 0
        return found

    async def changed(self, key: str, version: int | None, timeout_s: float) -> Changed | None:
        found = await super().changed(key, version, timeout_s)
        self.reads_bytes += len(found.current.value) if found and found.current else 0
        return found


class Outcome(msgspec.Struct):
    """What became of it."""

    stood: int = 0
    led_s: float = 0.0
    all_found_s: float = 0.0
    bytes_per_node: float = 0.0
    busiest_tenth: int = 0


async def lose(nodes: int, alive: int, *, is_new: bool, can_watch: bool = True) -> Outcome:
    """`alive` of `nodes` look for a coordinator: the former one is dead, or there was none yet."""
    ledger, outcome = Counting(), Outcome()
    ledger.can_watch = can_watch  # type: ignore[misc]
    run = RunSettings(min_nodes=nodes, max_nodes=nodes)
    dead = e.RunRegister(e.FORMAT, ledger.ledger_id, "run", 1, "dead", settings=run)
    if not is_new:
        lease = e.Lease(e.FORMAT, "dead", 1, addresses=HERE, ttl_s=TTL_S)
        await ledger.swap("coordinators/dead", None, e.encode(lease))
        await ledger.swap("runs/run", None, e.encode(dead))
    loop = asyncio.get_running_loop()
    began_s = loop.time()

    async def be_candidate(name: str) -> None:
        outcome.stood += 1
        await asyncio.sleep(WRITE_S)
        lease = e.Lease(e.FORMAT, name, 1, addresses=HERE, ttl_s=TTL_S)
        await ledger.swap(f"coordinators/{name}", None, e.encode(lease))
        there = await MemoryLedger.read(ledger, "runs/run")
        await asyncio.sleep(WRITE_S)
        mine = msgspec.structs.replace(dead, owner=name, term=2)
        await ledger.swap("runs/run", there.version if there else None, e.encode(mine))
        outcome.led_s = outcome.led_s or loop.time() - began_s

    async def one(name: str) -> None:
        search = Search(SETTINGS, name, ledger, nodes)
        search.begin(at_once=False, is_new=is_new)
        while True:
            sight = await search.next(loop.time() + 60.0)
            match sight:
                case e.BecomeCandidate():
                    await be_candidate(name)
                case e.AttachTo() if sight.lease.process != "dead":
                    return
                case e.AttachTo():
                    search.again()

    await asyncio.gather(*(one(f"node-{number}") for number in range(alive)))
    outcome.all_found_s = loop.time() - began_s
    outcome.bytes_per_node = ledger.reads_bytes / alive
    outcome.busiest_tenth = ledger.busiest
    return outcome


@pytest.fixture(params=seeds(1, verify=3, long=30))
def seeded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chance of each trial is another, and the same in each run of the tests."""
    monkeypatch.setattr(runtime.SystemRuntime, "chance", random.Random(request.param))


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize(("nodes", "alive"), [(8, 5), (64, 48), (1_000, 700), (1_000, 10)])
def test_nodes_find_a_successor_after_any_losses(nodes: int, alive: int) -> None:
    seen = run_virtual(lose(nodes, alive, is_new=False))
    assert TTL_S <= seen.led_s <= TTL_S + (2.0 if alive > nodes / 2 else 6.0)
    assert seen.all_found_s <= seen.led_s + 1.0
    assert 1 <= seen.stood <= 9


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("nodes", [20, 200, 1_000])
def test_nodes_that_start_together_agree_on_a_coordinator(nodes: int) -> None:
    seen = run_virtual(lose(nodes, nodes, is_new=True))
    assert seen.led_s <= 2.0
    assert 1 <= seen.stood <= 9


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("can_watch", [True, False])
def test_the_reads_of_a_node_do_not_grow_with_the_run(can_watch: bool) -> None:
    small = run_virtual(lose(50, 35, is_new=False, can_watch=can_watch))
    large = run_virtual(lose(2_000, 1_400, is_new=False, can_watch=can_watch))
    assert large.bytes_per_node <= 1.5 * small.bytes_per_node + 500
    assert large.bytes_per_node <= 5_000


@pytest.mark.usefixtures("seeded")
def test_a_change_does_not_wake_all_nodes_of_a_large_run_at_once() -> None:
    seen = run_virtual(lose(2_000, 1_400, is_new=False))
    # 1,400 nodes that look within a second, two reads each, make 280 reads in a tenth of it.
    assert seen.busiest_tenth <= 900
