"""Member tables in a ledger: what a large run writes, and how it is taken over.

In virtual time, as shared_ledger.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.run_removal import delete_run
from rallypoint.coordinator.tables import Tables, read_members, table_room
from rallypoint.core import election as e
from rallypoint.core import events as on
from rallypoint.core.closing import HEAD_BYTES_MAX
from rallypoint.core.tables import TABLE_BYTES_MAX
from rallypoint.core.values import (
    Address,
    NodeId,
    Outcome,
    Phase,
    RoundHead,
    RoundMember,
    RunSettings,
)
from rallypoint.ledger.contract import Swapped
from rallypoint.ledger.keys import chunk_key, run_key
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.ledger.torch_backend import TorchBackendLedger
from tests.coordinator.large_run import NODES, CountingLedger, are_ready, come, met
from tests.coordinator.shared_ledger import new_coordinator, new_owner, until
from tests.core.member_rows import LABELS, a_close, members, restarted
from tests.loops import run_virtual


def test_a_large_round_is_taken_over_with_all_its_members() -> None:
    async def main() -> None:
        ledger = CountingLedger()
        first, coordinator = await new_owner(ledger, 1)
        await met(ledger, coordinator)
        before = coordinator.runs["run"].membership.round
        assert before is not None
        assert len(await ledger.chunks()) == 2
        await first.aclose()
        second, other = await new_owner(ledger, 2)
        membership = other.runs["run"].membership
        assert (membership.round, membership.term) == (before, 2)
        # The next round: only what changed is written, and what is not needed is removed.
        come(other)
        are_ready(other, 1)
        await until(lambda: membership.number == 2)
        head = await ledger.head()
        assert head.table is not None
        assert {chunk.term for chunk in head.table.chunks} == {1}
        await second.aclose()

    run_virtual(main())


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_run_with_an_incomplete_table_is_refused_and_left_alone(damage: str) -> None:
    async def main() -> None:
        ledger = CountingLedger()
        first, coordinator = await new_owner(ledger, 1)
        await met(ledger, coordinator)
        await first.hand_over_lease(1.0)
        await first.aclose()
        broken = (await ledger.chunks())[1]
        found = await ledger.read(broken)
        assert found is not None
        if damage == "missing":
            await ledger.delete(broken)
        else:
            await ledger.swap(broken, found.version, found.value[:-1])
        second, other = await new_coordinator(ledger, 2)
        run = other.open_run("run")
        told: list[str] = []
        run.turn_away = lambda refusal: told.append(refusal.message)  # type: ignore[method-assign]
        second.claim("run")
        await until(lambda: bool(told))
        assert damage in told[0]
        assert "cannot be taken over" in told[0]
        assert not run.is_claimed
        assert (await ledger.head()).number == 1
        await second.aclose()

    run_virtual(main())


@pytest.mark.parametrize("what", ["runs/", "chunks/", "both"])
def test_a_run_continues_when_its_record_fits_again(what: str) -> None:
    """The engine refuses a value for its size some times, as while etcd's limit is raised."""

    async def main() -> None:
        ledger = CountingLedger()
        shared, coordinator = await new_owner(ledger, 1, CoordinatorConfig())
        prefixes = ["chunks/", "runs/"] if what == "both" else [what]
        ledger.too_large = prefixes * 3
        come(coordinator)
        are_ready(coordinator, 0)
        membership = coordinator.runs["run"].membership
        await until(lambda: membership.phase is Phase.SUSPENDED)
        assert "refuses a request of this size" in membership.suspended_reason
        await until(lambda: membership.phase is Phase.ACTIVE)
        assert (await ledger.head()).number == 1
        are_ready(coordinator, 1)
        await until(lambda: membership.number == 2)
        await shared.aclose()

    run_virtual(main())


def test_a_chunk_with_an_unknown_outcome_is_written_again() -> None:
    async def main() -> None:
        ledger = CountingLedger()
        shared, coordinator = await new_owner(ledger, 1)
        ledger.unsure = ["chunks/", "chunks/", "runs/"]
        await met(ledger, coordinator)
        assert len(await ledger.chunks()) == 2
        await shared.aclose()

    run_virtual(main())


def test_the_chunks_of_a_removed_run_are_removed() -> None:
    async def main() -> None:
        config = CoordinatorConfig(lease_ttl_s=0.3, closed_run_keep_s=1.0)
        ledger = CountingLedger()
        shared, coordinator = await new_owner(ledger, 1, config)
        await met(ledger, coordinator)
        run = coordinator.runs["run"]
        run.post(on.CloseRequested("n0000", Outcome.SUCCEEDED, "trained"))
        await until(lambda: run.is_closed)
        for i in range(NODES):
            run.post(on.NodeLeft(NodeId(f"n{i:04}", 1), "done"))
        for _ in range(40):
            await asyncio.sleep(0.1)
            coordinator.tick()
        assert coordinator.runs == {}
        assert await ledger.chunks() == ()
        assert await ledger.read(run_key("run")) is None
        await shared.aclose()

    run_virtual(main())


def test_a_close_with_a_long_cause_is_taken() -> None:
    async def main() -> None:
        ledger = CountingLedger()
        shared, coordinator = await new_owner(ledger, 1)
        await met(ledger, coordinator)
        close, ledger.largest_bytes = a_close(20, 4_000), 0
        shared.commit(coordinator.runs["run"], close)
        await until(lambda: ledger.largest_bytes > 0)
        kept = (await ledger.head()).close
        assert kept is not None
        assert kept.cause is not None
        assert kept.cause.failure is not None
        assert kept.cause.failure.last_lines[-1] == "the end"
        assert ledger.largest_bytes < 32 * 1024
        await shared.aclose()

    run_virtual(main())


# -- what it costs ---------------------------------------------------------------------------------


async def rounds(
    ledger: CountingLedger, tables: Tables, tablesets: list[tuple[RoundMember, ...]]
) -> None:
    """Commit these rounds as a lease manager does, chunks first, then the head."""
    register = e.RunRegister(e.FORMAT, ledger.ledger_id, "run", 1, "p")
    tables.won("run", register)
    version = None
    for number, rows in enumerate(tablesets, start=1):
        plan = tables.plan("run", rows)
        await tables.write("run", plan)
        head = RoundHead(number, 1, len(rows), 8 * len(rows), Address("h", 1), "0" * 16)
        register = msgspec.structs.replace(
            register, sequence=number, round=head, table=plan.table, settings=RunSettings()
        )
        outcome = await ledger.swap(run_key("run"), version, e.encode(register))
        version = outcome.version  # type: ignore[union-attr]
        await tables.remove("run", tables.committed("run", register))


def test_100_rounds_of_10_000_members_cost_less_than_200_mb() -> None:
    """An engine that keeps history, as etcd until it is compacted, keeps all that was written."""

    async def main() -> None:
        ledger = CountingLedger()
        tables = Tables(ledger)
        rows = members(10_000, LABELS)
        every = [rows]
        for number in range(1, 100):
            # Two nodes are replaced in most rounds, and three in ten of all in every tenth.
            is_wave = number % 10 == 0
            lost = range(number, 10_000, 3) if is_wave else (number, 9_999 - number)
            every.append(restarted(every[-1], *lost))
        await rounds(ledger, tables, every)
        assert ledger.written_bytes < 60e6
        assert ledger.largest_bytes < 256 * 1024
        head = await ledger.head()
        assert await read_members(ledger, "run", head.table) == every[-1]
        assert head.table is not None
        assert len(await ledger.chunks()) == len(head.table.chunks)

    asyncio.run(main())


def test_100_rounds_of_new_members_cost_less_than_200_mb_too() -> None:
    async def main() -> None:
        ledger = CountingLedger()
        rows = members(10_000)
        tables = Tables(ledger)
        await rounds(ledger, tables, [rows, restarted(rows, *range(10_000))])
        assert ledger.written_bytes * 50 < 200e6

    asyncio.run(main())


def test_100_000_members_with_labels_fit() -> None:
    async def main() -> None:
        ledger = CountingLedger()
        rows = members(100_000, LABELS)
        await rounds(ledger, Tables(ledger), [rows])
        head = await ledger.head()
        assert len(e.encode(head)) < 16 * 1024
        assert ledger.largest_bytes < 256 * 1024
        assert await read_members(ledger, "run", head.table) == rows

    asyncio.run(main())


def test_an_engine_of_one_value_reports_its_room_in_bytes() -> None:
    one_value = TorchBackendLedger.limits
    assert one_value.is_one_value
    assert table_room(one_value) == one_value.value_bytes_max - HEAD_BYTES_MAX
    assert table_room(MemoryLedger.limits) == TABLE_BYTES_MAX

    async def main() -> None:
        ledger = CountingLedger()
        ledger.limits = msgspec.structs.replace(one_value, value_bytes_max=HEAD_BYTES_MAX + 20_000)
        shared, coordinator = await new_owner(ledger, 1)
        come(coordinator)
        membership = coordinator.runs["run"].membership
        assert 0 < len(membership.roster) < NODES
        assert membership.roster.table_bytes <= 20_000
        await shared.aclose()

    run_virtual(main())


class Paused(CountingLedger):
    """Lets one process pause before it lists the chunks of a run that it removes."""

    def __init__(self) -> None:
        super().__init__()
        self.before_list: Callable[[], Awaitable[None]] | None = None

    async def keys(self, prefix: str = "") -> tuple[str, ...]:
        if prefix.startswith("chunks/") and self.before_list is not None:
            first, self.before_list = self.before_list, None
            await first()
        return await super().keys(prefix)


def test_a_late_removal_removes_no_chunk_of_the_next_run() -> None:
    async def main() -> None:
        ledger = Paused()
        await ledger.open()
        closed = e.RunRegister(e.FORMAT, ledger.ledger_id, "run", 1, "p", close=a_close(1, 10))
        outcome = await ledger.swap(run_key("run"), None, e.encode(closed))
        assert isinstance(outcome, Swapped)
        await ledger.swap(chunk_key("run", 1, 1), None, b"of the run that is over")
        begun: list[tuple[str, ...]] = []

        async def meanwhile() -> None:
            """Another process removes the run, and it begins again."""
            await delete_run(ledger, closed, outcome.version)
            assert await ledger.chunks() == ()
            shared, coordinator = await new_owner(ledger, 1)
            await met(ledger, coordinator)
            begun.append(await ledger.chunks())
            await shared.aclose()

        ledger.before_list = meanwhile
        await delete_run(ledger, closed, outcome.version)
        (chunks,) = begun
        assert len(chunks) == 2
        assert await ledger.chunks() == chunks
        assert (await ledger.head()).term == 2

    run_virtual(main())


def test_a_removal_keeps_the_chunks_that_the_head_names() -> None:
    async def main() -> None:
        ledger = CountingLedger()
        tables = Tables(ledger)
        rows = members(2_000)
        await rounds(ledger, tables, [rows])
        named = await ledger.chunks()
        for left in ("chunks/run/1-99", "chunks/run/0-1", "chunks/run/2-1", "chunks/run-2/1-99"):
            await ledger.swap(left, None, b"left")
        await tables.sweep("run")
        there = sorted((*named, "chunks/run/2-1", "chunks/run-2/1-99"))
        assert sorted(await ledger.chunks()) == there
        with contextlib.suppress(KeyError):
            tables.forget("run")
        await tables.sweep("run")
        assert sorted(await ledger.chunks()) == there

    asyncio.run(main())
