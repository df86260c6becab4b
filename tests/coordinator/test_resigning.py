"""Which nodes an owner hears, as its resignation sees them. Without connections."""

from __future__ import annotations

import msgspec
import pytest

from rallypoint.core.values import NodeId
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.wire import messages as wire
from tests.coordinator.lines import Line
from tests.coordinator.shared_ledger import CONFIG, new_owner, until
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
