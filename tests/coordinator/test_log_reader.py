"""R5, R10: a log of any length can be read and sealed while its former owner writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from rallypoint import runtime
from rallypoint.coordinator import log_reader, store_log
from rallypoint.coordinator.log_reader import LogReader, SealedLog, StoreLostError
from rallypoint.coordinator.log_records import (
    FORMAT,
    Record,
    decode_record,
    encode_record,
    header_record,
    seal_record,
)
from rallypoint.coordinator.round_log import LogId, first_log, older
from rallypoint.coordinator.store_log import StoreLog
from rallypoint.core.store import Set
from rallypoint.core.store.store import RoundStore
from rallypoint.core.values import Address, RoundHead
from rallypoint.errors import LedgerUnreachableError
from rallypoint.ledger.contract import AppendOutcome, Exists, Gap, Ledger, Unknown
from rallypoint.ledger.file import logs as file_logs
from rallypoint.ledger.file.disk import Disk
from rallypoint.ledger.file.ledger import FileLedger
from rallypoint.ledger.keys import log_prefix
from rallypoint.ledger.memory import MemoryLedger
from tests.loops import run_virtual

SEATS = (("a", 0, 1),)
HEAD = RoundHead(1, 1, 1, 1, Address("h", 1), "digest")
LOG = first_log(1, 1)


class Owner:
    """The round's coordinator of one term: writes, and moves from segment to segment."""

    def __init__(self, ledger: Ledger, sealed: SealedLog | None = None, term: int = 1) -> None:
        self.ledger = ledger
        self.store = StoreLog(
            sealed.replay.store if sealed else RoundStore(SEATS),
            term,
            run_id="run",
            log=sealed.log if sealed else LOG,
            next_index=sealed.next_index if sealed else 1,
            batch_bytes_max=1_000,
            replay=sealed.replay if sealed else None,
        )
        self.written = 0

    async def begin(self) -> None:
        await self.ledger.append(LOG.name("run"), 0, header_record("run", 1, 1))

    async def write(self, count: int, *, records_max: int = 10_000) -> None:
        for _ in range(count):
            self.written += 1
            number = self.written
            self.store.apply("a", number, Set(f"k{number % 9}", b"%d" % number), None, 0.0)
            self.store.store.acknowledge("a", number - 1)
            while records_max and await self.append_one():
                records_max -= 1

    async def append_one(self) -> bool:
        record = self.store.take_record()
        if record is None:
            return False
        outcome = await self.ledger.append(record.name, record.index, record.data)
        assert not isinstance(outcome, Exists | Gap), outcome
        self.store.appended()
        for name in older(await self.ledger.logs(log_prefix("run")), self.store.base):
            await self.ledger.drop_log(name)
        return True


def reader(
    ledger: Ledger, term: int = 2, make_sure: Callable[[], Awaitable[None]] | None = None
) -> LogReader:
    async def sure() -> None:
        pass

    return LogReader(
        ledger,
        "run",
        HEAD,
        term,
        new_store=lambda: RoundStore(SEATS),
        make_sure=make_sure or sure,
    )


def data_of(sealed: SealedLog) -> dict[str, bytes]:
    return dict(sealed.replay.store.freeze().data)


def wanted(count: int) -> dict[str, bytes]:
    return {f"k{number % 9}": b"%d" % number for number in range(1, count + 1)}


class Faulty(MemoryLedger):
    """Answers each page only the second time, and does `before_page` before the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[int] = []
        self.before_page: Callable[[], Awaitable[None]] | None = None

    async def records(
        self, log: str, start: int = 0, limit: int | None = None
    ) -> tuple[tuple[int, bytes], ...]:
        self.starts.append(start)
        if self.before_page is not None:
            first, self.before_page = self.before_page, None
            found = await super().records(log, start, limit)
            await first()
            return found
        if self.starts.count(start) % 2:
            raise LedgerUnreachableError("no answer")
        return await super().records(log, start, limit)


def test_only_the_page_that_failed_is_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_reader, "PAGE_RECORDS", 10)

    async def main() -> None:
        ledger = Faulty()
        owner = Owner(ledger)
        await owner.begin()
        await owner.write(95)
        sealed = await reader(ledger).sealed()
        assert data_of(sealed) == wanted(95)
        pages = [*range(0, 100, 10), 96]
        assert ledger.starts == [start for start in pages for _ in range(2)]

    run_virtual(main())


def test_the_former_owner_may_drop_segments_that_are_being_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_reader, "PAGE_RECORDS", 10)
    monkeypatch.setattr(store_log, "COMPACT_RECORDS", 20)

    async def main() -> None:
        ledger = Faulty()
        owner = Owner(ledger)
        await owner.begin()
        await owner.write(15)
        ledger.before_page = lambda: owner.write(100)
        sealed = await reader(ledger).sealed()
        assert data_of(sealed) == wanted(115)
        assert sealed.log.segment > 0
        (name,) = await ledger.logs()
        assert name == sealed.log.name("run")
        # R5: no append of the former owner gets into the log any more.
        owner.store.apply("a", 999, Set("k", b"late"), None, 0.0)
        with pytest.raises(AssertionError, match="Exists"):
            await owner.append_one()

    run_virtual(main())


@pytest.mark.parametrize("steps", range(30))
def test_a_takeover_at_any_step_of_a_snapshot_keeps_everything(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its successor does the same again, and both take the segments that are their own."""
    monkeypatch.setattr(store_log, "COMPACT_RECORDS", 5)
    monkeypatch.setattr(store_log, "PART_BYTES_MAX", 200)

    async def main() -> None:
        ledger = MemoryLedger()
        owner = Owner(ledger)
        await owner.begin()
        await owner.write(40, records_max=steps)
        durable = owner.store._durable
        # The deposed one has made the header of its next segment, or was just about to.
        sealed = await reader(ledger).sealed()
        assert data_of(sealed) == wanted(durable)
        successor = Owner(ledger, sealed, 2)
        successor.written = durable
        await successor.write(30)
        again = await reader(ledger, 3).sealed()
        assert data_of(again) == wanted(durable + 30)
        logs = await ledger.logs()
        assert len(logs) <= 2

    run_virtual(main())


def test_calls_between_the_parts_of_a_snapshot_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner is served on while it writes the snapshot. A takeover may come at any moment."""
    monkeypatch.setattr(store_log, "COMPACT_RECORDS", 5)
    monkeypatch.setattr(store_log, "PART_BYTES_MAX", 50)

    async def main() -> None:
        for calls in range(60):
            ledger = MemoryLedger()
            owner = Owner(ledger)
            await owner.begin()
            for _ in range(calls):
                await owner.write(1, records_max=1)
            sealed = await reader(ledger).sealed()
            assert data_of(sealed) == wanted(owner.store._durable)
            assert sealed.replay.base == owner.store.base

    run_virtual(main())


def test_a_segment_of_a_deposed_coordinator_is_not_the_next_one() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        owner = Owner(ledger)
        await owner.begin()
        await owner.write(5)
        orphan = LogId(1, 1, 1, 1).name("run")
        await ledger.append(orphan, 0, header_record("run", 1, 1, 1))
        sealed = await reader(ledger).sealed()
        assert sealed.log == LOG
        assert data_of(sealed) == wanted(5)

    run_virtual(main())


def test_a_log_without_the_segment_that_it_names_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_log, "COMPACT_RECORDS", 5)
    monkeypatch.setattr(store_log, "PART_BYTES_MAX", 50)

    async def main() -> None:
        ledger = MemoryLedger()
        owner = Owner(ledger)
        await owner.begin()
        await owner.write(8, records_max=8)
        _, later = await ledger.logs()
        await ledger.drop_log(later)
        with pytest.raises(StoreLostError, match=f"log {later!r} was removed"):
            await reader(ledger).sealed()

    run_virtual(main())


class SlowDisk:
    """A clock that only the reading of a file moves on, and what each page took by it."""

    OPENS_S = 0.3

    def __init__(self) -> None:
        self.now_s = 0.0
        self.pages_s: list[float] = []

    def monotonic(self, _runtime: Any) -> float:
        return self.now_s

    def content(self, disk: Disk, path: Path) -> bytes:
        self.now_s += self.OPENS_S
        return CONTENT(disk, path)

    def records(self, files: Any, *given: Any) -> list[tuple[int, bytes]]:
        before_s = self.now_s
        try:
            return FILES_RECORDS(files, *given)
        finally:
            self.pages_s.append(self.now_s - before_s)


FILES_RECORDS = file_logs.Logs.records
CONTENT = Disk.content


def test_no_page_of_a_slow_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it takes several times as long as one call may: a file server that opens slowly."""
    disk = SlowDisk()

    async def main() -> None:
        async with FileLedger(tmp_path / "ledger", timeout_s=20.0) as ledger:
            owner = Owner(ledger)
            await owner.begin()
            await owner.write(200)
            monkeypatch.setattr(Disk, "content", lambda files, path: disk.content(files, path))
            monkeypatch.setattr(runtime.SystemRuntime, "monotonic_s", lambda it: disk.monotonic(it))
            monkeypatch.setattr(
                file_logs.Logs, "records", lambda files, *given: disk.records(files, *given)
            )
            sealed = await reader(ledger).sealed()
            assert data_of(sealed) == wanted(200)
            assert len(await ledger.records(LOG.name("run"))) == 202
        assert sum(disk.pages_s) > 5 * 20.0
        # A call that takes longer than its deadline has failed; one that is near it may have.
        assert max(disk.pages_s) < 20.0 / 2

    asyncio.run(main())


def test_a_reader_that_finds_a_later_seal_checks_its_lease_first() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        owner = Owner(ledger)
        await owner.begin()
        await ledger.append(LOG.name("run"), 1, seal_record(9))
        asked = []

        async def make_sure() -> None:
            asked.append(True)
            await asyncio.Event().wait()

        task = asyncio.ensure_future(reader(ledger, 2, make_sure).sealed())
        await asyncio.sleep(1.0)
        assert asked
        assert not task.done()
        task.cancel()
        records = [decode_record(each) for _, each in await ledger.records(LOG.name("run"))]
        assert [each.term for each in records if each.is_seal] == [9]

    run_virtual(main())


@pytest.mark.parametrize("records", [1, 2], ids=["header", "header-and-record"])
@pytest.mark.parametrize("segment", [0, 1])
def test_a_record_appended_after_its_log_was_dropped_is_no_beginning(
    segment: int, records: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R10: a first try that got no answer, or what a deposed coordinator sent before it stood
    still. The log is gone by then, so its first index is free again."""
    monkeypatch.setattr(store_log, "COMPACT_RECORDS", 5)

    async def main() -> None:
        ledger = MemoryLedger()
        owner = Owner(ledger)
        await owner.begin()
        await owner.write(40)
        (live,) = await ledger.logs()
        late = LogId(1, 1, segment, 1).name("run")
        assert late < live
        await ledger.append(late, 0, header_record("run", 1, 1, segment))
        if records > 1:
            await ledger.append(late, 1, encode_record(Record(FORMAT, 1)))
        sealed = await reader(ledger).sealed()
        assert data_of(sealed) == wanted(40)
        assert sealed.log.name("run") == live
        # Nor by those that come after.
        successor = Owner(ledger, sealed, 2)
        successor.written = 40
        await successor.write(3)
        assert data_of(await reader(ledger, 3).sealed()) == wanted(43)

    run_virtual(main())


def test_one_record_behind_its_header_proves_that_a_segment_was_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_log, "COMPACT_RECORDS", 5)

    async def main() -> None:
        sizes = set()
        for steps in range(20):
            ledger = MemoryLedger()
            owner = Owner(ledger)
            await owner.begin()
            await owner.write(20, records_max=steps)
            *_, live = await ledger.logs()
            sizes.add(len(await ledger.records(live)))
            await ledger.append(LOG.name("run"), 0, header_record("run", 1, 1))
            sealed = await reader(ledger).sealed()
            assert data_of(sealed) == wanted(owner.store._durable)
        assert 2 in sizes

    run_virtual(main())


def test_an_earlier_term_does_not_seal_a_log_of_a_later_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R5: the seal of the later one went with its segment, but all that it writes has its term."""
    monkeypatch.setattr(store_log, "COMPACT_RECORDS", 5)

    async def main() -> None:
        ledger = MemoryLedger()
        owner = Owner(ledger)
        await owner.begin()
        await owner.write(3)
        successor = Owner(ledger, await reader(ledger, 9).sealed(), 9)
        successor.written = 3
        await successor.write(30)
        (live,) = await ledger.logs()
        before = await ledger.records(live)
        asked = []

        async def make_sure() -> None:
            asked.append(True)
            await asyncio.Event().wait()

        task = asyncio.ensure_future(reader(ledger, 2, make_sure).sealed())
        await asyncio.sleep(1.0)
        assert asked
        task.cancel()
        assert await ledger.records(live) == before

    run_virtual(main())


def test_an_owner_reads_and_seals_what_it_has_written_in_its_own_term() -> None:
    """R5: only a later owner's log is not its to seal."""

    async def main() -> None:
        ledger = MemoryLedger()
        owner = Owner(ledger, term=1)
        await owner.begin()
        await owner.write(3)
        successor = Owner(ledger, await reader(ledger, 9).sealed(), 9)
        successor.written = 3
        await successor.write(2)
        sealed = await reader(ledger, 9).sealed()
        assert sealed.replay.latest_term == 9

    run_virtual(main())


def test_a_reader_that_finds_no_log_checks_its_lease_first() -> None:
    """A successor that formed the next round has dropped it: that is no loss of anything."""

    async def main() -> None:
        asked = []

        async def make_sure() -> None:
            asked.append(True)
            await asyncio.Event().wait()

        task = asyncio.ensure_future(reader(MemoryLedger(), 2, make_sure).sealed())
        await asyncio.sleep(1.0)
        assert asked
        assert not task.done()
        task.cancel()

    run_virtual(main())


class Doubtful(MemoryLedger):
    """Does the next append, and then says that its outcome is unknown."""

    is_doubtful = False

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        outcome = await super().append(log, index, value)
        if not self.is_doubtful:
            return outcome
        self.is_doubtful = False
        return Unknown("no answer")


def test_a_log_is_sealed_once_though_the_outcome_was_unknown() -> None:
    async def main() -> None:
        ledger = Doubtful()
        owner = Owner(ledger)
        await owner.begin()
        await owner.write(3)
        ledger.is_doubtful = True
        sealed = await reader(ledger).sealed()
        records = [decode_record(each) for _, each in await ledger.records(LOG.name("run"))]
        assert [each.term for each in records if each.is_seal] == [2]
        assert sealed.next_index == len(records)

    run_virtual(main())


class Moving(MemoryLedger):
    """After the first page without records, `then` happens before the reader goes on."""

    then: Callable[[], Awaitable[None]] | None = None
    appends = 0

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        self.appends += 1
        assert self.appends < 100, "it never ends"
        return await super().append(log, index, value)

    async def records(
        self, log: str, start: int = 0, limit: int | None = None
    ) -> tuple[tuple[int, bytes], ...]:
        found = await super().records(log, start, limit)
        if start and not found and self.then is not None:
            then, self.then = self.then, None
            await then()
        return found

    async def drop_log(self, log: str) -> None:
        """The former owner is about to do so."""


@pytest.mark.parametrize("steps", range(2, 12))
def test_an_owner_that_moves_to_another_segment_meanwhile_leaves_no_remnant(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_log, "COMPACT_RECORDS", 5)
    monkeypatch.setattr(store_log, "PART_BYTES_MAX", 50)

    async def main() -> None:
        ledger = Moving()
        owner = Owner(ledger)
        await owner.begin()
        await owner.write(4)
        ledger.then = lambda: owner.write(8, records_max=steps)
        sealed = await reader(ledger).sealed()
        assert data_of(sealed) == wanted(owner.store._durable)

    run_virtual(main())


def test_a_log_that_is_dropped_before_it_is_sealed_is_lost() -> None:
    async def main() -> None:
        ledger = Moving()
        owner = Owner(ledger)
        await owner.begin()
        await owner.write(3)
        ledger.then = lambda: MemoryLedger.drop_log(ledger, LOG.name("run"))
        with pytest.raises(StoreLostError, match="was removed"):
            await reader(ledger).sealed()
        assert ledger.appends == 5

    run_virtual(main())
