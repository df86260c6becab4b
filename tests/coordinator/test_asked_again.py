"""A process is asked for a run that it owns already: by a node that looks for a better coordinator.

In virtual time, without connections.
"""

from __future__ import annotations

import asyncio

from rallypoint.coordinator.log_records import decode_record
from rallypoint.core import election as e
from rallypoint.core import events as on
from rallypoint.core.store import Set
from rallypoint.errors import LedgerLimitError
from rallypoint.ledger.keys import LOGS, run_key
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.wire import messages as wire
from tests.coordinator.lines import Line
from tests.coordinator.shared_ledger import new_coordinator, until
from tests.coordinator.troubled_ledger import Troubled
from tests.loops import run_virtual


async def _seals(ledger: MemoryLedger) -> int:
    found = 0
    for log in await ledger.logs(LOGS):
        found += sum(decode_record(each).is_seal for _, each in await ledger.records(log))
    return found


def test_r10_an_owner_does_not_seal_the_log_of_its_own_run() -> None:
    """Seed 51736: it did, and was deposed by its own seal."""

    async def main() -> None:
        ledger = Troubled()
        shared, coordinator = await new_coordinator(ledger, 1)
        node = Line(coordinator)
        await node.formed()
        run = coordinator.runs["run"]
        ledger.appending = LedgerLimitError("full")
        node.say(wire.StoreCall(node.stamp, 1, Set("k", b"v")))
        shared.claim("run")
        ledger.appending = None
        await until(lambda: node.count(wire.StoreAnswer) == 1)
        await asyncio.sleep(1.0)
        shared.claim("run")
        await asyncio.sleep(1.0)
        assert await _seals(ledger) == 0
        assert coordinator.runs["run"] is run
        assert not node.refusals()
        await shared.aclose()

    run_virtual(main())


def test_r5_a_run_that_was_deposed_here_begins_in_another_term() -> None:
    """What it has written last in the old term is not known: a write of it may be under way."""

    async def main() -> None:
        ledger = MemoryLedger()
        shared, coordinator = await new_coordinator(ledger, 1)
        node = Line(coordinator, redials=True)
        await node.formed()
        run = coordinator.runs["run"]
        run.post(on.CommitRefused("another coordinator has sealed the round's log"))
        await until(lambda: "run" in coordinator.runs and coordinator.runs["run"] is not run)
        await until(lambda: coordinator.runs["run"].is_claimed)
        assert coordinator.runs["run"].membership.term == 2
        found = await ledger.read(run_key("run"))
        assert found is not None
        assert e.decode_run(found.value).term == 2
        await shared.aclose()

    run_virtual(main())
