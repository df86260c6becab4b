"""A shared ledger that cannot be read or sealed at a takeover: without connections."""

from __future__ import annotations

import asyncio
import logging

import pytest

from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.log_reader import RETRY_S
from rallypoint.coordinator.log_records import (
    FORMAT,
    Record,
    encode_record,
)
from rallypoint.coordinator.run_ownership import RunOwnership
from rallypoint.coordinator.takeover import read_and_seal
from rallypoint.core import election as e
from rallypoint.core.election import Chunk, RunRegister, Table
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.store import (
    Get,
    Set,
    StoreLimits,
    StoreValue,
)
from rallypoint.core.values import (
    Address,
    CloseRecord,
    Outcome,
    Phase,
    RoundHead,
    RunSettings,
    Stamp,
)
from rallypoint.errors import (
    LedgerCorruptError,
    LedgerFormatError,
    LedgerFullError,
    LedgerLimitError,
)
from rallypoint.ledger.contract import SwapOutcome, Unknown
from rallypoint.wire import messages as wire
from tests.coordinator.lines import Line
from tests.coordinator.shared_ledger import CONFIG, has_begun, new_coordinator, new_owner, until
from tests.coordinator.troubled_ledger import LOG, Troubled, a_round
from tests.core.member_rows import members
from tests.loops import run_virtual

SETTINGS = RunSettings(min_nodes=2, max_nodes=2)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda ledger, log: ledger._logs[log].__setitem__(0, b"\xc1 no record"),
        lambda ledger, log: ledger._logs[log].__setitem__(0, encode_record(Record(FORMAT + 1, 1))),
        lambda ledger, log: setattr(ledger, "listing", LedgerCorruptError("record 0 is damaged")),
        lambda ledger, log: setattr(ledger, "listing", LedgerFormatError("format 9")),
    ],
    ids=["no-record", "newer-record", "damaged", "newer-envelope"],
)
def test_an_unreadable_log_is_left_alone_and_its_nodes_get_the_reason(spoil) -> None:
    """R10: acknowledged writes are missing, so the round must not go on."""

    async def main() -> None:
        ledger = Troubled()
        await a_round(ledger)
        log = LOG
        second, coordinator = await new_coordinator(ledger, 2)
        spoil(ledger, log)
        second.claim("run")
        await until(lambda: second.may_decide("run"))
        before = list(ledger._logs[log])
        node = Line(coordinator)
        await until(lambda: bool(node.refusals()))
        (refusal,) = node.refusals()
        assert "'run' cannot be taken over" in refusal.message
        assert refusal.hint
        # A node that has seen a higher term must not take it for an older coordinator's.
        assert node.said[-1].stamp == Stamp(ledger.ledger_id, 0, 0)
        assert "run" not in coordinator.runs
        assert ledger._logs[log] == before
        # A node that asks again is refused again; the others cost nothing.
        other = Line(coordinator, name="b")
        await until(lambda: bool(other.refusals()))
        calls = ledger.calls
        await asyncio.sleep(3 * RETRY_S)
        assert ledger.calls == calls
        await second.aclose()

    run_virtual(main())


def test_an_unreadable_or_unwritable_record_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def lines(words: str) -> list[str]:
        told = [each.getMessage() for each in caplog.records]
        return [each for each in told if words in each]

    async def main() -> None:
        ledger = Troubled()
        shared, coordinator = await new_coordinator(ledger, 1)
        node = Line(coordinator)
        await node.formed()
        ledger.appending = LedgerLimitError("too large")
        node.say(wire.StoreCall(node.stamp, 1, Set("k", b"v")))
        await until(lambda: coordinator.runs["run"].membership.phase is Phase.SUSPENDED)
        await asyncio.sleep(5 * RETRY_S)
        assert len(lines("suspended: ")) == 1
        ledger.appending = None
        await until(lambda: coordinator.runs["run"].membership.phase is Phase.ACTIVE)
        await shared.aclose()

        ledger.listing = LedgerCorruptError("record 0 is damaged")
        second, coordinator = await new_coordinator(ledger, 2)
        second.claim("run")
        await until(lambda: second.may_decide("run"))
        for name in "abc":
            asking = Line(coordinator, name=name)
            await until(lambda asking=asking: bool(asking.refusals()))  # type: ignore[misc]
        assert len(lines("cannot be taken over")) == 1
        ledger.listing = LedgerFormatError("format 9")
        asking = Line(coordinator, name="d")
        await until(lambda: bool(asking.refusals()))
        assert len(lines("cannot be taken over")) == 2
        await second.aclose()

    with caplog.at_level(logging.WARNING, "rallypoint.coordinator"):
        run_virtual(main())


def test_a_seal_that_fails_is_written_later() -> None:
    async def main() -> None:
        ledger = Troubled()
        await a_round(ledger)
        second, coordinator = await new_coordinator(ledger, 2)
        ledger.appending = LedgerFullError("no room")
        ledger.calls = 0
        second.claim("run")
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await until(lambda: ledger.calls >= 4)
        assert loop.time() - began_s > RETRY_S  # Not again and again at once.
        assert not coordinator.runs["run"].is_claimed
        ledger.appending = None
        await has_begun(coordinator, "run")
        node = Line(coordinator)
        await until(lambda: any(isinstance(each, wire.Welcome) for each in node.said))
        node.say(wire.StoreCall(node.stamp, 7, Get("k")))
        await until(lambda: any(isinstance(each, wire.StoreAnswer) for each in node.said))
        assert node.said[-1].result == StoreValue(b"v")  # type: ignore[union-attr]
        await second.aclose()

    run_virtual(main())


def test_an_unreadable_register_is_read_again_when_a_node_attaches() -> None:
    async def main() -> None:
        ledger = Troubled()
        shared, coordinator = await new_coordinator(ledger, 1)
        ledger.reading = LedgerCorruptError("the register is damaged")
        for name in "ab":
            node = Line(coordinator, name=name)
            await until(lambda node=node: bool(node.refusals()))  # type: ignore[misc]
            (refusal,) = node.refusals()
            assert "the register is damaged" in refusal.message
            calls = ledger.calls
            await asyncio.sleep(3 * CONFIG.lease_ttl_s)
            assert ledger.calls == calls
        await shared.aclose()

    run_virtual(main())


class Slow(Troubled):
    """A process's own way to a ledger: the first reading of a log waits for `reads`."""

    def __init__(self, behind: Troubled) -> None:
        super().__init__()
        self.__dict__.update(behind.__dict__)
        self.reads = asyncio.Event()
        self.is_reading = False
        self.is_mute = False

    async def records(
        self, log: str, start: int = 0, limit: int | None = None
    ) -> tuple[tuple[int, bytes], ...]:
        is_first, self.is_reading = not self.is_reading, True
        if is_first:
            await self.reads.wait()
        return await super().records(log, start, limit)

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        return Unknown("no answer") if self.is_mute else await super().swap(key, expected, value)


async def overtaken(
    ledger: Troubled,
) -> tuple[Slow, RunOwnership, Coordinator, Line, RunOwnership]:
    """The second coordinator, cut off while it reads the log, and a third that has the run now."""
    await a_round(ledger)
    slow = Slow(ledger)
    second, coordinator = await new_coordinator(slow, 2)
    second.claim("run")
    await until(lambda: slow.is_reading)
    node = Line(coordinator)
    slow.is_mute = True
    third, other = await new_owner(ledger, 3)
    assert other.runs["run"].membership.term == 3
    return slow, second, coordinator, node, third


def test_a_coordinator_replaced_while_it_reads_the_log_redirects_its_nodes() -> None:
    async def main() -> None:
        slow, second, _, node, third = await overtaken(Troubled())
        slow.reads.set()
        await asyncio.sleep(2 * CONFIG.lease_ttl_s)
        assert node.refusals() == []  # It has seen a later seal, but its lease is not judged yet.
        slow.is_mute = False
        await until(lambda: bool(node.refusals()))
        assert [each.code for each in node.refusals()] == [RefusalCode.MOVED]
        for each in (second, third):
            await each.aclose()

    run_virtual(main())


def test_a_run_won_again_during_its_takeover_begins() -> None:
    async def main() -> None:
        slow, second, coordinator, node, third = await overtaken(Troubled())
        slow.is_mute = False
        await until(lambda: bool(node.refusals()))
        await third.aclose()
        second.claim("run")
        await has_begun(coordinator, "run")
        assert coordinator.runs["run"].membership.term == 4
        again = Line(coordinator)
        await until(lambda: any(isinstance(each, wire.Welcome) for each in again.said))
        slow.reads.set()
        await asyncio.sleep(2 * RETRY_S)
        assert again.refusals() == []
        await second.aclose()

    run_virtual(main())


def test_a_seal_of_a_later_term_under_a_good_lease_is_refused() -> None:
    """As when a backup was put back that holds more of the log than of the register."""

    async def main() -> None:
        ledger = Troubled()
        await a_round(ledger)
        ledger._logs[LOG].append(encode_record(Record(FORMAT, 9, is_seal=True)))
        second, coordinator = await new_coordinator(ledger, 2)
        second.claim("run")
        await until(lambda: second.may_decide("run"))
        node = Line(coordinator)
        await until(lambda: bool(node.refusals()))
        assert "term 9 has sealed it" in node.refusals()[0].message
        await second.aclose()

    run_virtual(main())


class WithoutLog(Troubled):
    """As an engine with one register."""

    has_log = False

    async def logs(self, prefix: str = "") -> tuple[str, ...]:
        raise AssertionError("this engine keeps no logs")


@pytest.mark.parametrize("kind", [WithoutLog, Troubled], ids=["engine-without-log", "log-gone"])
def test_a_round_without_its_store_in_the_ledger_ends_at_a_takeover(kind) -> None:
    """Its members would go on with an empty store: counters begin again, keys are gone."""

    async def main() -> None:
        ledger = kind()
        await a_round(ledger)
        ledger._logs.clear()
        second, coordinator = await new_owner(ledger, 2)
        node = Line(coordinator)
        await until(lambda: any(isinstance(each, wire.Welcome) for each in node.said))
        (welcome,) = [each for each in node.said if isinstance(each, wire.Welcome)]
        assert welcome.standing.round == 0
        change = welcome.standing.change
        assert change is not None
        assert change.round == 1
        assert "the round's store was lost" in str(change)
        node.say(wire.Ready(node.stamp, 1, Address("127.0.0.1", 1), 1, change))
        await until(lambda: node.stamp.round == 2)
        assert coordinator.runs["run"].membership.restart_count == 0
        await second.aclose()

    run_virtual(main())


# -- what the last owner has left ----------------------------------------------------------------

CHUNK = Chunk(1, 1, 2, b"digest")


def left_behind(close: CloseRecord | None, table: Table) -> RunRegister:
    """The register of a run in its first round. The ledger has neither its table nor its log."""
    head = RoundHead(1, 1, 2, 2, Address("host", 1), "digest")
    return RunRegister(
        e.FORMAT, "ledger", "run", 2, "me", round=head, close=close, table=table, settings=SETTINGS
    )


async def never() -> None:
    await asyncio.Event().wait()


def test_r6_a_closed_run_is_taken_over_without_its_table_and_its_log() -> None:
    register = left_behind(CloseRecord(Outcome.SUCCEEDED, "trained"), Table(chunks=(CHUNK,)))
    left = run_virtual(read_and_seal(Troubled(), register, StoreLimits(), never))
    assert (left.state.close, left.sealed, left.store_lost) == (register.close, None, "")


@pytest.mark.parametrize("table", [Table(chunks=(CHUNK,)), Table(rows=members(2))])
def test_r5_a_missing_table_or_log_is_judged_after_a_renewal(table: Table) -> None:
    """A later owner may have removed it. Then this process is deposed, and the lease is lost."""

    async def main() -> None:
        register = left_behind(None, table)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60.0):
                await read_and_seal(Troubled(), register, StoreLimits(), never)

    run_virtual(main())
