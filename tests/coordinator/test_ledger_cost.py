"""What a coordinator asks of its ledger: little, and no more for more runs."""

from __future__ import annotations

import asyncio

import pytest

from rallypoint.core.values import Address
from rallypoint.ledger.contract import AppendOutcome, SwapOutcome, Versioned
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.wire import messages as wire
from tests.coordinator.lines import Line
from tests.coordinator.shared_ledger import CONFIG, new_coordinator, until
from tests.loops import run_virtual

RENEW_S = CONFIG.lease_ttl_s / 3


class Counted(MemoryLedger):
    """Notes what it is asked for, but for the renewals of leases: those are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.renewals = 0

    async def read(self, key: str) -> Versioned | None:
        self.asked.append(f"read {key}")
        return await super().read(key)

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        if key.startswith("coordinators/"):
            self.renewals += 1
        else:
            self.asked.append(f"swap {key}")
        return await super().swap(key, expected, value)

    async def records(
        self, log: str, start: int = 0, limit: int | None = None
    ) -> tuple[tuple[int, bytes], ...]:
        self.asked.append(f"records {log}")
        return await super().records(log, start, limit)

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        self.asked.append(f"append {log}")
        return await super().append(log, index, value)

    async def drop_log(self, log: str) -> None:
        self.asked.append(f"drop {log}")
        await super().drop_log(log)


def test_forming_a_round_takes_few_operations() -> None:
    """The first one asks twice for the ledger's floor, before and after the run is created (R13).

    One creates the round's log, before the round is committed.
    """

    async def main() -> None:
        ledger = Counted()
        shared, coordinator = await new_coordinator(ledger, 1)
        node = Line(coordinator)
        await node.formed()
        assert len(ledger.asked) <= 7, ledger.asked
        ledger.asked.clear()
        node.say(wire.Ready(node.stamp, 1, Address("127.0.0.1", 1), 1))
        await until(lambda: node.stamp.round == 2)
        await asyncio.sleep(0.05)
        assert len(ledger.asked) <= 4, ledger.asked
        await shared.aclose()

    run_virtual(main())


@pytest.mark.parametrize("runs", [1, 30])
def test_an_idle_coordinator_only_renews_its_lease(runs: int) -> None:
    async def main() -> None:
        ledger = Counted()
        shared, coordinator = await new_coordinator(ledger, 1)
        for number in range(runs):
            await Line(coordinator, f"run{number}").formed()
        await asyncio.sleep(RENEW_S)
        ledger.asked.clear()
        ledger.renewals = 0
        idle_s = 1.0
        await asyncio.sleep(idle_s)
        assert ledger.asked == []
        assert 1 <= ledger.renewals <= idle_s / RENEW_S + 1
        await shared.aclose()

    run_virtual(main())
