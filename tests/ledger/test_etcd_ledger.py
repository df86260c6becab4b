"""The ledger over real etcd: the suite on 3.4 and 3.5, refusals, and members that fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from rallypoint.errors import (
    LedgerCorruptError,
    LedgerForeignError,
    LedgerFormatError,
    LedgerFullError,
    LedgerLimitError,
    LedgerUnreachableError,
    UsageError,
)
from rallypoint.ledger import record_format
from rallypoint.ledger.contract import Changed, Conflict, Swapped, Unknown
from rallypoint.ledger.etcd.client import EtcdClient
from rallypoint.ledger.etcd.ledger import EtcdLedger
from rallypoint.ledger.etcd.options import EtcdOptions
from rallypoint.testing import Connect, LedgerSuite
from tests.ledger.etcd_processes import EtcdCluster, EtcdProcess, Program, etcd

pytestmark = pytest.mark.processes


class TestEtcdLedger(LedgerSuite):
    @pytest.fixture
    def connect(self, one_etcd: EtcdCluster, prefix: str) -> Connect:
        return lambda: EtcdLedger(one_etcd.options, prefix)


# -- what it refuses ----------------------------------------------------------------------------


async def _put(options: EtcdOptions, key: str, value: bytes) -> None:
    client = EtcdClient(options)
    await client.open()
    await client.put(key.encode(), value)
    await client.aclose()


def test_a_prefix_with_other_data_is_refused(one_etcd, prefix) -> None:
    async def body() -> None:
        await _put(one_etcd.options, f"{prefix}/theirs", b"value")
        with pytest.raises(LedgerForeignError, match=f"{prefix}/theirs") as told:
            await EtcdLedger(one_etcd.options, prefix).open()
        assert told.value.hint
        # A neighbour whose name only begins the same is no reason.
        async with EtcdLedger(one_etcd.options, prefix[:-1]) as ledger:
            assert await ledger.keys() == ()

    asyncio.run(body())


def test_a_key_in_the_markers_place_is_refused(one_etcd, prefix) -> None:
    async def body() -> None:
        await _put(one_etcd.options, f"{prefix}/ledger", b"theirs")
        with pytest.raises(LedgerForeignError):
            await EtcdLedger(one_etcd.options, prefix).open()

    asyncio.run(body())


@pytest.mark.parametrize(("format", "by"), [(1, "an older"), (record_format.FORMAT + 1, "a newer")])
def test_another_format_is_refused(one_etcd, prefix, format: int, by: str) -> None:
    async def body() -> None:
        other = record_format.seal(b"value", record_format.new_nonce(), format=format)
        async with EtcdLedger(one_etcd.options, prefix) as ledger:
            await _put(one_etcd.options, f"{prefix}/r/run", other)
            with pytest.raises(LedgerFormatError, match=f"format {format} by {by}"):
                await ledger.read("run")
            await _put(one_etcd.options, f"{prefix}/ledger", other)
        with pytest.raises(LedgerFormatError, match=f"format {format} by {by}"):
            await EtcdLedger(one_etcd.options, prefix).open()

    asyncio.run(body())


def test_a_damaged_record_is_refused_and_named(one_etcd, prefix) -> None:
    async def body() -> None:
        async with EtcdLedger(one_etcd.options, prefix) as ledger:
            whole = record_format.seal(b"value", record_format.new_nonce())
            for damaged in (whole[:-1], whole[:3], b"", b"other" * 10):
                await _put(one_etcd.options, f"{prefix}/r/run", damaged)
                with pytest.raises(LedgerCorruptError, match=f"{prefix}/r/run"):
                    await ledger.read("run")
                outcome = await ledger.swap("run", 1, b"over it")
                assert isinstance(outcome, Unknown)
                assert isinstance(outcome.error, LedgerCorruptError)

    asyncio.run(body())


def test_a_replaced_ledger_refuses_earlier_writes(one_etcd, prefix) -> None:
    async def body() -> None:
        async with EtcdLedger(one_etcd.options, prefix) as old:
            swapped = await old.swap("run", None, b"old")
            assert isinstance(swapped, Swapped)
            client = EtcdClient(one_etcd.options)
            await client.open()
            await client.delete(f"{prefix}/".encode(), f"{prefix}0".encode())
            await client.aclose()
            async with EtcdLedger(one_etcd.options, prefix) as new:
                assert new.ledger_id != old.ledger_id
                for expected in (None, swapped.version):
                    outcome = await old.swap("run", expected, b"late")
                    assert isinstance(outcome, Unknown)
                    assert isinstance(outcome.error, LedgerForeignError)
                outcome_of_append = await old.append("log", 0, b"late")
                assert isinstance(outcome_of_append, Unknown)
                assert await new.read("run") is None

    asyncio.run(body())


def test_a_prefix_is_required() -> None:
    for prefix in ("", "/", "a\0b"):
        with pytest.raises(UsageError):
            EtcdLedger(EtcdOptions(endpoints=("127.0.0.1:1",)), prefix)


def test_a_full_etcd_is_reported_and_loses_nothing(etcd_program: Program) -> None:
    async def body(cluster: EtcdCluster) -> None:
        async with EtcdLedger(cluster.options) as ledger:
            assert isinstance(await ledger.swap("run", None, b"kept"), Swapped)
            version, value = None, bytes(1 << 20)
            for _ in range(100):
                outcome = await ledger.swap("large", version, value)
                if isinstance(outcome, Unknown):
                    break
                assert isinstance(outcome, Swapped)
                version = outcome.version
            assert isinstance(outcome, Unknown)
            assert isinstance(outcome.error, LedgerFullError)
            assert outcome.error.hint
            kept = await ledger.read("run")
            assert kept is not None
            assert kept.value == b"kept"
        with pytest.raises(LedgerFullError):
            await EtcdLedger(cluster.options).open()

    with etcd(etcd_program, options=[f"--quota-backend-bytes={16 << 20}"]) as cluster:
        asyncio.run(body(cluster))


def test_an_etcd_with_a_smaller_limit_is_reported(etcd_program: Program) -> None:
    async def body(cluster: EtcdCluster) -> None:
        async with EtcdLedger(cluster.options) as ledger:
            with pytest.raises(LedgerLimitError) as told:
                await ledger.swap("run", None, bytes(1 << 19))
            assert "max-request-bytes" in told.value.hint

    with etcd(etcd_program, options=[f"--max-request-bytes={1 << 18}"]) as cluster:
        asyncio.run(body(cluster))


def test_a_log_longer_than_one_answer_is_read_whole(one_etcd, prefix) -> None:
    patient = one_etcd.options

    async def body() -> None:
        async with EtcdLedger(patient, prefix) as ledger:
            for index in range(12):
                await ledger.append("log", index, bytes([index]) * (1 << 20))
            records = await ledger.records("log")
            assert [(index, value[0], len(value)) for index, value in records] == [
                (index, index, 1 << 20) for index in range(12)
            ]

    asyncio.run(body())


# -- three members, of which some fail ------------------------------------------------------------


async def _write(ledger: EtcdLedger, until: Callable[[int], bool]) -> tuple[int, float]:
    """Write on as the contract says until `until(count)`. The count and the longest time for one.

    Each value is the count: none may be lost, and none written twice.
    """
    count, version, worst_s = 0, None, 0.0
    started = time.monotonic()
    while not until(count):
        value = b"%d" % (count + 1)
        outcome = await ledger.swap("run", version, value)
        if isinstance(outcome, Unknown):
            assert time.monotonic() - started < 30, outcome.reason
            continue
        if isinstance(outcome, Conflict):
            # Only an earlier try of ours can have been there.
            assert outcome.current is not None
            assert outcome.current.value == value
            version = outcome.current.version
        else:
            version = outcome.version
        count += 1
        worst_s = max(worst_s, time.monotonic() - started)
        started = time.monotonic()
    return count, worst_s


def _follower(cluster: EtcdCluster) -> EtcdProcess:
    leader = cluster.leader()
    return next(member for member in cluster.members if member is not leader)


@pytest.mark.parametrize(
    ("fault", "who"),
    [
        ("kill", _follower),
        ("kill", EtcdCluster.leader),
        ("freeze", _follower),
        ("freeze", EtcdCluster.leader),
    ],
    ids=["kill-a-follower", "kill-the-leader", "freeze-a-follower", "freeze-the-leader"],
)
def test_a_member_that_fails_costs_seconds_and_no_write(three_etcd, prefix, fault, who) -> None:
    victim = who(three_etcd)
    options = EtcdOptions(endpoints=three_etcd.endpoints)  # those that users have

    async def body() -> None:
        hit = asyncio.Event()

        def enough(count: int) -> bool:
            if count == 20 and not hit.is_set():
                hit.set()
                getattr(victim, fault)()
            return count >= 60

        async with (
            EtcdLedger(options, prefix) as ledger,
            EtcdLedger(options, prefix) as other,
        ):
            # All handles prefer the victim: the worst case.
            for each in (ledger, other):
                each._client._preferred = three_etcd.members.index(victim)
            watching = asyncio.ensure_future(_follow(other, b"60"))
            count, worst_s = await _write(ledger, enough)
            assert count == 60
            assert worst_s < 10.0
            assert (await ledger.read("run")).value == b"60"  # type: ignore[union-attr]
            await asyncio.wait_for(watching, 60)

    try:
        asyncio.run(body())
    finally:
        if fault == "freeze":
            victim.thaw()
        else:
            victim.start()
        three_etcd.wait_until_ready()

    async def after() -> None:
        async with EtcdLedger(three_etcd.options, prefix) as ledger:
            # What the frozen member had in its sockets changes nothing, now that it reads it.
            assert (await ledger.read("run")).value == b"60"  # type: ignore[union-attr]

    asyncio.run(after())


async def _follow(ledger: EtcdLedger, last: bytes) -> None:
    """Wait for one change after another, until this value."""
    version: int | None = None
    while True:
        changed = await ledger.changed("run", version, 30)
        assert isinstance(changed, Changed)
        assert changed.current is not None
        version = changed.current.version
        if changed.current.value == last:
            return


def test_without_a_majority_nothing_is_acknowledged(three_etcd, prefix) -> None:
    options = EtcdOptions(endpoints=three_etcd.endpoints, timeout_s=3.0)

    async def body() -> None:
        async with (
            EtcdLedger(three_etcd.options, prefix) as patient,
            EtcdLedger(options, prefix) as ledger,
        ):
            version = (await patient.swap("run", None, b"before")).version  # type: ignore[union-attr]
            for member in three_etcd.members[:2]:
                member.freeze()
            started = time.monotonic()
            outcome = await ledger.swap("run", version, b"during")
            assert isinstance(outcome, Unknown)
            assert time.monotonic() - started < 20
            with pytest.raises(LedgerUnreachableError):
                await ledger.read("run")
            for member in three_etcd.members[:2]:
                member.thaw()
            await asyncio.to_thread(three_etcd.wait_until_ready)
            # The same bytes again: done now, or done by the try whose answer was lost.
            outcome = await patient.swap("run", version, b"during")
            if isinstance(outcome, Conflict):
                assert outcome.current is not None
                assert outcome.current.value == b"during"
            else:
                assert isinstance(outcome, Swapped)

    try:
        asyncio.run(body())
    finally:
        for member in three_etcd.members:
            member.thaw()
