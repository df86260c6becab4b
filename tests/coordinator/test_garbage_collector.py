"""A ledger does not grow without end, and no live run or lease is removed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.garbage_collector import GarbageCollector, Keeping
from rallypoint.coordinator.round_log import first_log
from rallypoint.core import election as e
from rallypoint.core.values import Address, CloseRecord, NodeId, Outcome
from rallypoint.ledger.keys import FLOOR, lease_key, log_name, run_key
from rallypoint.ledger.memory import MemoryLedger
from tests.coordinator.shared_ledger import new_coordinator, new_owner
from tests.loops import run_virtual

KEEPING = Keeping(closed_run_s=10.0, open_run_s=100.0, lease_s=10.0)


CLOSE = CloseRecord(Outcome.SUCCEEDED, "trained")


def a_run(run_id: str = "r", close: CloseRecord | None = None) -> bytes:
    return e.encode(e.RunRegister(e.FORMAT, "ledger", run_id, 1, "p", close=close))


CLOSED = a_run(close=CLOSE)


def a_lease(state: e.LeaseState = e.LeaseState.SERVING, beat: int = 1) -> bytes:
    return e.encode(e.Lease(e.FORMAT, "p", beat, state, (Address("h", 1),)))


def nobody(run_id: str) -> None:
    raise AssertionError(f"{run_id} was claimed")


async def keys_after(
    registers: dict[str, bytes],
    times: list[float],
    mine: str = "",
    claim: Callable[[str], None] = nobody,
) -> tuple[str, ...]:
    ledger = MemoryLedger()
    await ledger.open()
    for key, value in registers.items():
        await ledger.swap(key, None, value)
    garbage_collector = GarbageCollector(ledger, KEEPING, lambda run_id: run_id == mine, claim)
    for now_s in times:
        await garbage_collector.sweep(now_s)
    return tuple(key for key in await ledger.keys("") if key != FLOOR)


def test_a_closed_run_is_removed_after_its_time() -> None:
    registers = {run_key("closed"): a_run("closed", CLOSE), run_key("r"): a_run()}
    assert len(asyncio.run(keys_after(registers, [0.0, 9.0]))) == 2
    assert asyncio.run(keys_after(registers, [0.0, 11.0])) == (run_key("r"),)


def test_an_open_run_is_claimed_and_never_deleted() -> None:
    """Its round may last for weeks without one write; a claim finds out whether its owner lives."""
    claimed: list[str] = []

    def keys_at(*times: float) -> tuple[str, ...]:
        claimed.clear()
        return asyncio.run(keys_after({run_key("r"): a_run()}, list(times), claim=claimed.append))

    assert keys_at(0.0, 99.0) == (run_key("r"),)
    assert claimed == []
    assert keys_at(0.0, 101.0, 102.0, 200.0) == (run_key("r"),)
    assert claimed == ["r"]
    assert keys_at(0.0, 101.0, 202.0) == (run_key("r"),)
    assert claimed == ["r", "r"]


def test_a_run_of_this_process_is_left_to_its_coordinator() -> None:
    registers = {run_key("r"): a_run()}
    assert asyncio.run(keys_after(registers, [0.0, 500.0], mine="r")) == (run_key("r"),)


def test_the_time_counts_from_the_first_look() -> None:
    """R9."""
    registers = {run_key("r"): a_run()}
    assert asyncio.run(keys_after(registers, [1_000_000.0])) == (run_key("r"),)


def test_a_register_that_changes_is_alive() -> None:
    async def scenario() -> tuple[str, ...]:
        ledger = MemoryLedger()
        await ledger.open()
        garbage_collector = GarbageCollector(ledger, KEEPING, lambda run_id: False, nobody)
        version = None
        for beat in range(1, 6):
            await ledger.swap(lease_key("p"), version, a_lease(beat=beat))
            version = beat
            await garbage_collector.sweep(beat * 9.0)
        return await ledger.keys("")

    assert asyncio.run(scenario()) == (lease_key("p"),)


def test_a_dead_lease_is_revoked_and_removed_later() -> None:
    async def scenario(times: list[float]) -> e.LeaseState | None:
        ledger = MemoryLedger()
        await ledger.open()
        await ledger.swap(lease_key("p"), None, a_lease())
        garbage_collector = GarbageCollector(ledger, KEEPING, lambda run_id: False, nobody)
        for now_s in times:
            await garbage_collector.sweep(now_s)
        found = await ledger.read(lease_key("p"))
        return e.decode_lease(found.value).state if found else None

    assert asyncio.run(scenario([0.0, 11.0])) is e.LeaseState.REVOKED
    assert asyncio.run(scenario([0.0, 11.0, 12.0])) is e.LeaseState.REVOKED
    assert asyncio.run(scenario([0.0, 11.0, 12.0, 23.0])) is None


def test_the_log_is_removed_with_its_run() -> None:
    async def scenario() -> tuple[str, ...]:
        ledger = MemoryLedger()
        await ledger.open()
        await ledger.swap(run_key("r"), None, CLOSED)
        await ledger.append(first_log(1, 1).name("r"), 0, b"record")
        garbage_collector = GarbageCollector(ledger, KEEPING, lambda run_id: False, nobody)
        for now_s in (0.0, 101.0):
            await garbage_collector.sweep(now_s)
        return await ledger.logs("")

    assert asyncio.run(scenario()) == ()


@pytest.mark.parametrize("closed", ["team", "team/job", "team/", "t", "team%2Fjob-42"])
def test_the_log_of_a_run_with_the_same_prefix_stays(closed: str) -> None:
    """Removing run `team` removes nothing of run `team/job-42`."""
    alive = "team/job-42"

    async def scenario() -> tuple[str, ...]:
        ledger = MemoryLedger()
        for run_id, value in ((closed, a_run(closed, CLOSE)), (alive, a_run(alive))):
            await ledger.swap(run_key(run_id), None, value)
            await ledger.append(log_name(run_id, 1, 1, 0, 1), 0, b"record")
        garbage_collector = GarbageCollector(ledger, KEEPING, lambda run_id: False, nobody)
        for now_s in (0.0, 11.0):
            await garbage_collector.sweep(now_s)
        assert await ledger.keys("") == (FLOOR, run_key(alive))
        return await ledger.logs("")

    assert asyncio.run(scenario()) == (log_name(alive, 1, 1, 0, 1),)


def test_a_register_under_the_name_of_another_run_is_left_alone() -> None:
    registers = {run_key("other"): CLOSED}
    assert asyncio.run(keys_after(registers, [0.0, 11.0])) == (run_key("other"),)


def test_unreadable_records_stay_and_do_not_stop_the_collection() -> None:
    registers = {lease_key("odd"): b"no lease", run_key("a"): b"no run", run_key("r"): CLOSED}
    left = asyncio.run(keys_after(registers, [0.0, 11.0]))
    assert left == (lease_key("odd"), run_key("a"))


# -- coordinators inside nodes ---------------------------------------------------------------------


async def left_by_a_node(
    registers: dict[str, bytes], times: list[float], *, sample: int | None = None
) -> tuple[str, ...]:
    """What is there after a node's coordinator has looked at these times."""
    ledger = MemoryLedger()
    for key, value in registers.items():
        await ledger.swap(key, None, value)
    garbage_collector = GarbageCollector(
        ledger, KEEPING, lambda run_id: run_id == "mine", None, sample=sample
    )
    for now_s in times:
        await garbage_collector.sweep(now_s)
    return tuple(key for key in await ledger.keys("") if key != FLOOR)


def test_a_node_removes_closed_runs_and_dead_leases() -> None:
    registers = {run_key("r"): CLOSED, lease_key("p"): a_lease()}
    assert asyncio.run(left_by_a_node(registers, [0.0, 11.0, 12.0, 23.0])) == ()


def test_an_open_run_without_an_owner_is_closed() -> None:
    registers = {run_key("r"): a_run()}
    assert asyncio.run(left_by_a_node(registers, [0.0, 99.0])) == (run_key("r"),)
    assert asyncio.run(left_by_a_node(registers, [0.0, 101.0])) == ()


def test_an_open_run_with_a_serving_owner_stays_open() -> None:
    """Its round may last for weeks without one write; the lease moves meanwhile."""

    async def scenario() -> e.RunRegister:
        ledger = MemoryLedger()
        await ledger.swap(run_key("r"), None, a_run())
        garbage_collector = GarbageCollector(ledger, KEEPING, lambda run_id: False, None, sample=64)
        version = None
        for beat in range(1, 40):
            await ledger.swap(lease_key("p"), version, a_lease(beat=beat))
            version = beat
            await garbage_collector.sweep(beat * 9.0)
        found = await ledger.read(run_key("r"))
        assert found is not None
        return e.decode_run(found.value)

    assert asyncio.run(scenario()).close is None


def test_an_open_run_of_its_own_stays_open() -> None:
    registers = {run_key("mine"): a_run("mine")}
    assert asyncio.run(left_by_a_node(registers, [0.0, 500.0])) == (run_key("mine"),)


def test_a_large_ledger_is_collected_in_parts() -> None:
    many = {run_key(f"r{i}"): a_run(f"r{i}", CLOSE) for i in range(40)}
    assert len(asyncio.run(left_by_a_node(many, [0.0, 11.0], sample=16))) >= 24
    times = [11.0 * i for i in range(60)]
    assert asyncio.run(left_by_a_node(many, times, sample=16)) == ()


def test_only_the_owner_of_an_elected_run_collects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        looks: list[object] = []

        async def look(garbage_collector: GarbageCollector, now_s: float) -> None:
            looks.append(garbage_collector)

        monkeypatch.setattr(GarbageCollector, "sweep", look)
        config = CoordinatorConfig(only_run="run", own_node=NodeId("n", 1))
        first, _ = await new_owner(ledger, 1, config)
        second, _ = await new_coordinator(ledger, 2, config)
        second.claim("run")
        await asyncio.sleep(1_000.0)
        assert 2 <= len(looks) <= 5
        assert len(set(map(id, looks))) == 1
        for each in (first, second):
            await each.aclose()

    run_virtual(main())


def test_a_log_made_by_a_deposed_coordinator_for_a_removed_run_is_removed() -> None:
    """Its round was never committed, and no register tells of the run any more."""
    lost, kept = log_name("gone", 2, 1, 0, 1), log_name("there", 1, 1, 0, 1)

    async def scenario(times: list[float]) -> tuple[str, ...]:
        ledger = MemoryLedger()
        await ledger.swap(run_key("there"), None, a_run("there"))
        for log in (lost, kept):
            await ledger.append(log, 0, b"header")
        garbage_collector = GarbageCollector(ledger, KEEPING, lambda run_id: False, nobody)
        for now_s in times:
            await garbage_collector.sweep(now_s)
        return await ledger.logs("")

    assert asyncio.run(scenario([0.0, 9.0])) == (lost, kept)
    assert asyncio.run(scenario([0.0, 9.0, 11.0])) == (kept,)
