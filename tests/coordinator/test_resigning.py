"""Which nodes an owner hears, as its resignation sees them. Without connections."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from rallypoint.core.values import NodeId
from rallypoint.ledger.keys import COORDINATORS
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.wire import messages as wire
from tests.coordinator.lines import Line
from tests.coordinator.shared_ledger import CONFIG, new_coordinator, new_owner, until
from tests.loops import run_virtual


@pytest.mark.parametrize(
    ("names", "is_alone"), [((), True), (("own",), True), (("b",), False), (("own", "b"), False)]
)
def test_r7_an_owner_that_hears_another_node_is_not_alone(
    names: tuple[str, ...], is_alone: bool
) -> None:
    async def main() -> None:
        config = msgspec.structs.replace(CONFIG, own_node=NodeId("own", 1))
        shared, coordinator = await new_owner(MemoryLedger(), 1, config)
        for name in names:
            line = Line(coordinator, name=name)
            await until(lambda line=line: line.count(wire.Welcome) > 0)  # type: ignore[misc]
        heard = shared._runs.heard("run")
        assert heard is not None
        assert heard.is_alone is is_alone
        await shared.aclose()

    run_virtual(main())


def test_r7_a_lease_that_cannot_be_read_stops_no_resignation() -> None:
    async def main() -> None:
        ledger = MemoryLedger()
        config = msgspec.structs.replace(
            *(CONFIG,), yield_after_s=3.0, own_node=NodeId("own", 1), only_run="run"
        )
        await ledger.swap(f"{COORDINATORS}other-release", None, b"\x93\x03\x01\x02")
        shared, _ = await new_owner(ledger, 1, config)
        other = msgspec.structs.replace(config, own_node=NodeId("b", 1))
        waiting, _ = await new_coordinator(ledger, 2, other)
        await asyncio.sleep(60.0)
        assert not shared.may_decide("run")
        for each in (shared, waiting):
            await each.aclose()

    run_virtual(main())
