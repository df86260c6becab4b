"""A node's search in a ledger: what it finds, what wakes it, and what it says of an outage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from rallypoint.client import discovery
from rallypoint.client.discovery import Search
from rallypoint.core import election as e
from rallypoint.core.values import Address, CloseRecord, Outcome, RunSettings
from rallypoint.endpoints import Endpoint, EndpointKind
from rallypoint.errors import LedgerAccessError, LedgerUnreachableError
from rallypoint.ledger.contract import Changed, Ledger, Versioned
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.settings import NodeSettings
from tests.loops import run_virtual

SETTINGS = NodeSettings(
    endpoint=Endpoint(EndpointKind.LEDGER, text="memory"), run_id="run", lease_ttl_s=0.3
)
THERE = (Address("there", 1),)


class Lossy(MemoryLedger):
    """A ledger that can be away, and counts what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.away: Exception | None = None
        self.reads = 0

    async def open(self) -> None:
        if self.away is not None:
            raise self.away

    async def read(self, key: str) -> Versioned | None:
        self.reads += 1
        await self.open()
        return await super().read(key)

    async def changed(self, key: str, version: int | None, timeout_s: float) -> Changed | None:
        await self.open()
        return await super().changed(key, version, timeout_s)


async def put_run(
    ledger: MemoryLedger, owner: str, close: CloseRecord | None = None, nodes: int = 0
) -> None:
    settings = RunSettings(min_nodes=nodes, max_nodes=nodes) if nodes else None
    register = e.RunRegister(
        e.FORMAT, ledger.ledger_id, "run", 1, owner, settings=settings, close=close
    )
    await put(ledger, "runs/run", register)


async def put_lease(
    ledger: MemoryLedger, process: str, only_run: str = "run", token: str = "", ttl_s: float = 0.3
) -> None:
    await put(ledger, f"coordinators/{process}", lease_of(process, only_run, token, ttl_s))


def lease_of(process: str, only_run: str = "run", token: str = "", ttl_s: float = 0.3) -> e.Lease:
    return e.Lease(
        e.FORMAT, process, 1, addresses=THERE, only_run=only_run, token=token, ttl_s=ttl_s
    )


async def put(ledger: MemoryLedger, key: str, value: e.Lease | e.RunRegister) -> None:
    there = await MemoryLedger.read(ledger, key)
    await ledger.swap(key, there.version if there else None, e.encode(value))


def searching(
    scenario: Callable[[Search, Lossy], Coroutine[Any, Any, None]], ledger: Lossy | None = None
) -> None:
    """In virtual time: nothing here has a socket or a thread."""
    used = ledger or Lossy()

    async def main() -> None:
        async with asyncio.timeout(100):
            await scenario(Search(SETTINGS, "node", used), used)

    run_virtual(main())


def soon(after_s: float = 5.0) -> float:
    return asyncio.get_running_loop().time() + after_s


def test_in_an_empty_ledger_this_node_is_a_candidate() -> None:
    async def scenario(search: Search, ledger: Lossy) -> None:
        search.begin(at_once=True)
        assert await search.next(soon()) == e.BecomeCandidate()

    searching(scenario)


def test_the_owners_address_comes_with_its_token() -> None:
    async def scenario(search: Search, ledger: Lossy) -> None:
        await put_lease(ledger, "owner", token="secret")
        await put_run(ledger, "owner")
        search.begin(at_once=True)
        found = await search.next(soon())
        assert isinstance(found, e.AttachTo)
        assert found.lease == lease_of("owner", token="secret")

    searching(scenario)


def test_a_closed_run_ends_the_discovery() -> None:
    async def scenario(search: Search, ledger: Lossy) -> None:
        close = CloseRecord(Outcome.SUCCEEDED, "trained")
        await put_run(ledger, "owner", close)
        search.begin(at_once=True)
        assert await search.next(soon()) == e.RunOver(close)

    searching(scenario)


def test_an_unreachable_owner_that_does_not_renew_is_replaced_after_the_ttl() -> None:
    async def scenario(search: Search, ledger: Lossy) -> None:
        await put_lease(ledger, "owner")
        await put_run(ledger, "owner")
        began_s = soon(0.0)
        search.begin(at_once=True)
        while isinstance(sight := await search.next(soon()), e.AttachTo):
            search.again()
        assert isinstance(sight, e.BecomeCandidate)
        assert sight.seen is not None
        assert (sight.seen.process, sight.seen.since_s) == ("owner", began_s)
        assert soon(0.0) == pytest.approx(began_s + 0.3)

    searching(scenario)


def test_a_change_of_the_register_ends_the_wait() -> None:
    async def scenario(search: Search, ledger: Lossy) -> None:
        await put_lease(ledger, "dead", ttl_s=600.0)
        await put_run(ledger, "dead")
        search.begin(at_once=True)
        assert isinstance(await search.next(soon()), e.AttachTo)
        search.again()
        await put_lease(ledger, "successor")
        await put_run(ledger, "successor")
        began_s = soon(0.0)
        found = await search.next(soon(60.0))
        assert isinstance(found, e.AttachTo)
        assert found.lease == lease_of("successor")
        assert soon(0.0) - began_s < 0.1

    searching(scenario)


def test_a_waiting_node_does_not_read() -> None:
    async def scenario(search: Search, ledger: Lossy) -> None:
        await put_lease(ledger, "dead", ttl_s=600.0)
        await put_run(ledger, "dead")
        search.begin(at_once=True)
        await search.next(soon())
        search.again()
        before = ledger.reads
        assert await search.next(soon(0.4)) is None
        assert ledger.reads == before

    searching(scenario)


class Polled(Lossy):
    """An engine that cannot watch."""

    can_watch = False

    async def changed(self, key: str, version: int | None, timeout_s: float) -> Changed | None:
        return await Ledger.changed(self, key, version, timeout_s)


def test_a_large_run_does_not_poll_an_engine_that_cannot_watch() -> None:
    async def scenario(search: Search, ledger: Lossy) -> None:
        await put_lease(ledger, "dead", ttl_s=600.0)
        await put_run(ledger, "dead", nodes=1_000)
        search.begin(at_once=True)
        await search.next(soon())
        reads, began_s = ledger.reads, soon(0.0)
        while soon(0.0) < began_s + 20.0:
            search.again()
            await search.next(began_s + 20.0)
        # Two reads a look, at least half a second between two looks.
        assert ledger.reads - reads <= 80

    searching(scenario, Polled())


def test_an_outage_is_reported_with_its_beginning_until_it_ends() -> None:
    async def scenario(search: Search, ledger: Lossy) -> None:
        ledger.away = LedgerUnreachableError("no answer from a:2379")
        search.begin(at_once=True)
        assert await search.next(soon(0.2)) is None
        assert search.problem.startswith("ledger unreachable")
        assert "no answer from a:2379" in search.problem
        ledger.away = None
        assert await search.next(soon()) == e.BecomeCandidate()
        assert search.problem == ""

    searching(scenario)


def test_a_ledger_may_start_late_but_a_refusal_is_final() -> None:
    async def scenario(search: Search, ledger: Lossy) -> None:
        ledger.away = LedgerUnreachableError("not yet")
        opening = asyncio.ensure_future(search.open(soon()))
        await asyncio.sleep(0.05)
        ledger.away = None
        await opening
        ledger.away = LedgerUnreachableError("never")
        with pytest.raises(LedgerUnreachableError):
            await search.open(soon(0.0))
        ledger.away = LedgerAccessError("wrong password")
        with pytest.raises(LedgerAccessError):
            await search.open(soon())

    searching(scenario)


def test_a_ledger_that_hangs_is_an_error_in_time_with_a_hint() -> None:
    class Hangs(MemoryLedger):
        async def open(self) -> None:
            await asyncio.Event().wait()

    async def main() -> None:
        search = Search(SETTINGS, "node", Hangs())
        with pytest.raises(LedgerUnreachableError, match="has not answered within") as told:
            await search.open(soon(0.2))
        assert "connect_timeout" in told.value.hint

    asyncio.run(asyncio.wait_for(main(), 20))


def test_an_unreadable_register_is_reported_and_left_alone() -> None:
    async def scenario(search: Search, ledger: Lossy) -> None:
        await ledger.swap("runs/run", None, b"something else")
        search.begin(at_once=True)
        assert await search.next(soon(0.1)) is None
        assert "cannot be read" in search.problem

    searching(scenario)


def test_a_lease_has_its_own_ttl() -> None:
    async def scenario(search: Search, ledger: Lossy) -> None:
        await put_lease(ledger, "owner", ttl_s=30.0)
        await put_run(ledger, "owner")
        began_s = soon(0.0)
        search.begin(at_once=True)
        while isinstance(sight := await search.next(soon()), e.AttachTo):
            search.again()
        assert isinstance(sight, e.BecomeCandidate)
        assert soon(0.0) == pytest.approx(began_s + 30.0)

    searching(scenario)


def test_replicas_that_renew_come_first_and_others_are_left_out() -> None:
    async def scenario(search: Search, ledger: Lossy) -> None:
        for name in "abcdefgh":
            await put_lease(ledger, name, only_run="", ttl_s=5.0)
        await put_lease(ledger, "live", only_run="", ttl_s=5.0)
        assert len(await search.replicas()) == 9
        await asyncio.sleep(5.0 / 3)
        await put_lease(ledger, "live", only_run="", ttl_s=5.0)
        assert (await search.replicas())[0].process == "live"
        await asyncio.sleep(4.0)
        assert [each.process for each in await search.replicas()] == ["live"]

    searching(scenario)


def test_dead_leases_do_not_hide_a_live_one() -> None:
    async def scenario(search: Search, ledger: Lossy) -> None:
        for number in range(5 * discovery.REPLICAS_READ_MAX):
            await put_lease(ledger, f"dead{number}", only_run="", ttl_s=0.3)
        await put_lease(ledger, "live", only_run="", ttl_s=600.0)
        for _ in range(6):
            found = [each.process for each in await search.replicas()]
            assert len(found) <= discovery.REPLICAS_READ_MAX
            await asyncio.sleep(1.0)
        assert "live" in found

    searching(scenario)


def test_only_coordinators_that_serve_any_run_are_replicas() -> None:
    async def scenario(search: Search, ledger: Lossy) -> None:
        await put_lease(ledger, "a-nodes-own")
        await put_lease(ledger, "replica", only_run="")
        await put(ledger, "coordinators/gone", e.Lease(e.FORMAT, "gone", 1, e.LeaseState.MOVING))
        await ledger.swap("coordinators/damaged", None, b"\xff")
        assert [each.process for each in await search.replicas()] == ["replica"]
        ledger.away = LedgerUnreachableError("away")
        assert await search.replicas() == []

    searching(scenario)
