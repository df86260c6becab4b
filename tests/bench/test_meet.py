"""`bench meet` times one call and one answer of every node, and takes no heartbeat for a call."""

from __future__ import annotations

import pytest

from rallypoint.bench import driver
from rallypoint.bench.meet import settings

pytestmark = pytest.mark.processes


@pytest.mark.parametrize(("nodes", "processes"), [(2, 1), (2, 2), (7, 3)])
def test_each_node_makes_one_call_within_the_time(nodes: int, processes: int) -> None:
    """Also the node whose call ended the last round, and a node alone in its process."""
    with driver.served() as at, driver.fleets(processes) as fleets:
        fleets.connect(at, run_id="meet", nodes=nodes, settings=settings(nodes), ready=True)
        for _ in range(20):
            fleets.end_round()
            before = fleets.ask("counts")
            met = fleets.ask("meet")
            after = fleets.ask("counts")
            sent, beats = (driver.grown(before, after, name) for name in ("sent", "beats"))
            received = driver.grown(before, after, "received")
            # The others' calls may overtake the one that is repeated.
            assert sent + received - beats in (2 * nodes, 2 * nodes - (processes > 1))
            assert all(each["formed_s"] >= each["first_formed_s"] > 0 for each in met)
