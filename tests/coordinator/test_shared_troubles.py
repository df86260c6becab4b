"""A shared ledger that cannot be read, or does not take what it is given: without connections."""

from __future__ import annotations

import asyncio

import pytest

from rallypoint.coordinator.durable_store import FORMAT, Record, encode_record
from rallypoint.coordinator.hub import Hub
from rallypoint.coordinator.shared import RETRY_S, SharedRuns
from rallypoint.core.reasons import Refusal, RefusalCode
from rallypoint.core.store import Get, Set, Value
from rallypoint.core.values import Address, NodeInfo, Phase, RunSettings, Stamp
from rallypoint.errors import (
    LedgerCorruptError,
    LedgerError,
    LedgerFormatError,
    LedgerFullError,
    LedgerLimitError,
)
from rallypoint.ledger.contract import AppendOutcome, SwapOutcome, Unknown, Versioned
from rallypoint.ledger.keys import log_name
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.wire import messages as wire
from tests.coordinator.test_shared import CONFIG, coordinator, has_begun, until
from tests.loops import run_virtual


class Asking:
    """The connection of a node that wants the run."""

    peer = "127.0.0.1"

    def __init__(self, hub: Hub, name: str = "a") -> None:
        self.said: list[wire.FromCoordinator] = []
        self._session = hub.connected(self)
        info, settings = NodeInfo(name, 1, f"host-{name}"), RunSettings()
        stamp = Stamp("", 0, 0)
        self.say(wire.Attach(stamp, wire.VERSION, "run", info, settings))

    def say(self, message: wire.FromNode) -> None:
        self._session.received(wire.encode(message))

    def refusals(self) -> list[Refusal]:
        return [each.refusal for each in self.said if isinstance(each, wire.Refused)]

    def send(self, payload: bytes) -> None:
        self.said.append(wire.decode_from_coordinator(payload))

    def backlog_bytes(self) -> int:
        return 0

    def close(self, reason: str) -> None:
        self._session.connection_lost()

    abort = lambda self: None  # noqa: E731


class Troubled(MemoryLedger):
    """A ledger with faults: those that are set are what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.reading: LedgerError | None = None
        self.listing: LedgerError | None = None
        self.appending: LedgerError | None = None
        self.swapping: LedgerError | None = None
        self.calls = 0

    async def read(self, key: str) -> Versioned | None:
        if self.reading is not None and key.startswith("runs/"):
            self.calls += 1
            raise self.reading
        return await super().read(key)

    async def records(self, log: str, start: int = 0) -> tuple[tuple[int, bytes], ...]:
        self.calls += 1
        if self.listing is not None:
            raise self.listing
        return await super().records(log, start)

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        if self.appending is None:
            return await super().append(log, index, value)
        self.calls += 1
        if isinstance(self.appending, LedgerLimitError):
            raise self.appending
        return Unknown(self.appending.message, self.appending)

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        if self.swapping is not None and key.startswith("runs/") and expected is not None:
            raise self.swapping
        return await super().swap(key, expected, value)


async def a_round(ledger: Troubled) -> tuple[Hub, Asking]:
    """A coordinator that dies after round 1 of one node was formed and a write was acknowledged."""
    shared, hub = await coordinator(ledger, 1)
    node = Asking(hub)
    await formed(node)
    node.say(wire.StoreCall(stamp_of(node), 1, Set("k", b"v")))
    await until(lambda: any(isinstance(each, wire.StoreAnswer) for each in node.said))
    await shared.aclose()
    return hub, node


async def formed(node: Asking) -> None:
    await until(lambda: any(isinstance(each, wire.Welcome) for each in node.said))
    node.say(wire.Ready(stamp_of(node), 0, Address("127.0.0.1", 1), 1))
    await until(lambda: any(isinstance(each, wire.Formed) for each in node.said))


def stamp_of(node: Asking) -> Stamp:
    return node.said[-1].stamp


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
def test_a_log_that_cannot_be_read_is_left_alone_and_its_nodes_are_told(spoil) -> None:
    """R10: what was acknowledged is not there, so nobody may go on as if it were."""

    async def main() -> None:
        ledger = Troubled()
        await a_round(ledger)
        log = log_name("run", 1)
        second, hub = await coordinator(ledger, 2)
        spoil(ledger, log)
        second.claim("run")
        await until(lambda: second.office.may_decide("run"))
        before = list(ledger._logs[log])
        node = Asking(hub)
        await until(lambda: bool(node.refusals()))
        (refusal,) = node.refusals()
        assert "'run' cannot be taken over" in refusal.message
        assert refusal.hint
        assert "run" not in hub.runs
        assert ledger._logs[log] == before
        # Whoever asks again is told again; who does not ask, costs nothing.
        other = Asking(hub, "b")
        await until(lambda: bool(other.refusals()))
        calls = ledger.calls
        await asyncio.sleep(3 * RETRY_S)
        assert ledger.calls == calls
        await second.aclose()

    run_virtual(main())


def test_a_log_that_cannot_be_sealed_yet_is_sealed_later() -> None:
    async def main() -> None:
        ledger = Troubled()
        await a_round(ledger)
        second, hub = await coordinator(ledger, 2)
        ledger.appending = LedgerFullError("no room")
        ledger.calls = 0
        second.claim("run")
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await until(lambda: ledger.calls >= 4)
        assert loop.time() - began_s > RETRY_S  # Not again and again at once.
        assert not hub.runs["run"].is_claimed
        ledger.appending = None
        await has_begun(hub, "run")
        node = Asking(hub)
        await until(lambda: any(isinstance(each, wire.Welcome) for each in node.said))
        node.say(wire.StoreCall(stamp_of(node), 7, Get("k")))
        await until(lambda: any(isinstance(each, wire.StoreAnswer) for each in node.said))
        assert node.said[-1].result == Value(b"v")  # type: ignore[union-attr]
        await second.aclose()

    run_virtual(main())


def test_a_register_that_cannot_be_read_is_asked_for_when_a_node_asks() -> None:
    async def main() -> None:
        ledger = Troubled()
        shared, hub = await coordinator(ledger, 1)
        ledger.reading = LedgerCorruptError("the register is damaged")
        for name in "ab":
            node = Asking(hub, name)
            await until(lambda node=node: bool(node.refusals()))  # type: ignore[misc]
            (refusal,) = node.refusals()
            assert "the register is damaged" in refusal.message
            calls = ledger.calls
            await asyncio.sleep(3 * CONFIG.lease_ttl_s)
            assert ledger.calls == calls
        await shared.aclose()

    run_virtual(main())


def test_a_commit_that_does_not_fit_suspends_the_run_with_the_reason() -> None:
    async def main() -> None:
        ledger = Troubled()
        shared, hub = await coordinator(ledger, 1)
        ledger.swapping = LedgerLimitError("too large", hint="use another ledger")
        node = Asking(hub)
        await until(lambda: any(isinstance(each, wire.Welcome) for each in node.said))
        node.say(wire.Ready(stamp_of(node), 0, Address("127.0.0.1", 1), 1))
        membership = hub.runs["run"].membership
        await until(lambda: membership.phase is Phase.SUSPENDED)
        assert "too large" in membership.suspended_reason
        assert "use another ledger" in membership.suspended_reason
        await shared.aclose()

    run_virtual(main())


def test_a_record_that_the_engine_refuses_waits_for_the_engine() -> None:
    async def main() -> None:
        ledger = Troubled()
        shared, hub = await coordinator(ledger, 1)
        node = Asking(hub)
        await formed(node)
        ledger.appending = LedgerLimitError("too large")
        node.say(wire.StoreCall(stamp_of(node), 1, Set("k", b"v")))
        membership = hub.runs["run"].membership
        await until(lambda: membership.phase is Phase.SUSPENDED)
        assert not any(isinstance(each, wire.StoreAnswer) for each in node.said)
        ledger.appending = None
        await until(lambda: any(isinstance(each, wire.StoreAnswer) for each in node.said))
        await until(lambda: membership.phase is Phase.ACTIVE)
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

    async def records(self, log: str, start: int = 0) -> tuple[tuple[int, bytes], ...]:
        is_first, self.is_reading = not self.is_reading, True
        if is_first:
            await self.reads.wait()
        return await super().records(log, start)

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        return Unknown("no answer") if self.is_mute else await super().swap(key, expected, value)


async def overtaken(ledger: Troubled) -> tuple[Slow, SharedRuns, Hub, Asking, SharedRuns]:
    """The second coordinator, cut off while it reads the log, and a third that has the run now."""
    await a_round(ledger)
    slow = Slow(ledger)
    second, hub = await coordinator(slow, 2)
    second.claim("run")
    await until(lambda: slow.is_reading)
    node = Asking(hub)
    slow.is_mute = True
    third, other = await coordinator(ledger, 3)
    third.claim("run")
    await has_begun(other, "run")
    assert other.runs["run"].membership.term == 3
    return slow, second, hub, node, third


def test_who_is_overtaken_while_it_reads_the_log_sends_its_nodes_away_and_ends_no_run() -> None:
    async def main() -> None:
        slow, second, _, node, third = await overtaken(Troubled())
        slow.reads.set()
        await asyncio.sleep(2 * CONFIG.lease_ttl_s)
        assert node.refusals() == []  # It knows of a later seal, and not yet of its own lease.
        slow.is_mute = False
        await until(lambda: bool(node.refusals()))
        assert [each.code for each in node.refusals()] == [RefusalCode.MOVED]
        for each in (second, third):
            await each.aclose()

    run_virtual(main())


def test_a_run_that_is_won_again_is_begun_though_it_was_still_being_taken_over() -> None:
    async def main() -> None:
        slow, second, hub, node, third = await overtaken(Troubled())
        slow.is_mute = False
        await until(lambda: bool(node.refusals()))
        await third.aclose()
        second.claim("run")
        await has_begun(hub, "run")
        assert hub.runs["run"].membership.term == 4
        again = Asking(hub)
        await until(lambda: any(isinstance(each, wire.Welcome) for each in again.said))
        slow.reads.set()
        await asyncio.sleep(2 * RETRY_S)
        assert again.refusals() == []
        await second.aclose()

    run_virtual(main())


def test_a_seal_of_a_later_term_under_a_good_lease_is_no_work_of_a_successor() -> None:
    """As when a backup was put back that holds more of the log than of the register."""

    async def main() -> None:
        ledger = Troubled()
        await a_round(ledger)
        ledger._logs[log_name("run", 1)].append(encode_record(Record(FORMAT, 9, is_seal=True)))
        second, hub = await coordinator(ledger, 2)
        second.claim("run")
        await until(lambda: second.office.may_decide("run"))
        node = Asking(hub)
        await until(lambda: bool(node.refusals()))
        assert "term 9 has sealed it" in node.refusals()[0].message
        await second.aclose()

    run_virtual(main())


def test_a_log_that_is_gone_suspends_the_run_with_the_reason() -> None:
    async def main() -> None:
        ledger = Troubled()
        shared, hub = await coordinator(ledger, 1)
        node = Asking(hub)
        await formed(node)
        node.say(wire.StoreCall(stamp_of(node), 1, Set("k", b"v")))
        await until(lambda: any(isinstance(each, wire.StoreAnswer) for each in node.said))
        kept = ledger._logs.pop(log_name("run", 1))
        node.say(wire.StoreCall(stamp_of(node), 2, Set("k", b"w")))
        membership = hub.runs["run"].membership
        await until(lambda: membership.phase is Phase.SUSPENDED)
        assert "is gone from the ledger" in membership.suspended_reason
        ledger._logs[log_name("run", 1)] = kept
        await until(lambda: membership.phase is Phase.ACTIVE)
        await until(lambda: sum(isinstance(each, wire.StoreAnswer) for each in node.said) == 2)
        await shared.aclose()

    run_virtual(main())


def test_a_record_is_not_tried_for_ever_once_its_run_is_another_s() -> None:
    async def main() -> None:
        ledger = Troubled()
        shared, hub = await coordinator(ledger, 1)
        node = Asking(hub)
        await formed(node)
        ledger.appending = LedgerFullError("no room")
        node.say(wire.StoreCall(stamp_of(node), 1, Set("k", b"v")))
        await until(lambda: ledger.calls > 2)
        shared.deposed("run", "term 2 has begun")
        await asyncio.sleep(2 * RETRY_S)
        calls = ledger.calls
        await asyncio.sleep(3 * RETRY_S)
        assert ledger.calls == calls
        await shared.aclose()

    run_virtual(main())
