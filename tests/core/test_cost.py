"""What an event costs does not grow with the number of nodes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

from rallypoint.core import events as on
from rallypoint.core.effects import Effect
from rallypoint.core.membership import Membership
from rallypoint.core.values import Address, ConnectionEnd, NodeInfo, Phase, RunSettings


class Large:
    """A run of so many nodes, unchecked: the checks cost O(N) per step themselves."""

    def __init__(self, nodes: int, *, minimum: int = 1, maximum: int | None = None) -> None:
        self.settings = RunSettings(min_nodes=minimum, max_nodes=maximum or nodes)
        self.run = Membership("large")
        self.infos = [NodeInfo(f"n{number}", 1, f"h{number}") for number in range(nodes)]
        for connection_id, info in enumerate(self.infos):
            self.run.step(on.NodeAttached(info, self.settings, connection_id), 0.0)

    def ready(self, info: NodeInfo, leaving: int = 0, now_s: float = 0.0) -> list[Effect]:
        return self.run.step(on.NodeReady(info.id, leaving, Address("h", 1), 1), now_s)

    def seconds_per_event(self, events: list[on.Event]) -> float:
        gc.collect()
        began_s = time.process_time()  # what others do on the machine does not count
        for event in events:
            self.run.step(event, 0.0)
        return (time.process_time() - began_s) / len(events)

    def ready_events(self) -> list[on.Event]:
        """The events of all but the last node, so that no round is formed."""
        return [on.NodeReady(info.id, 0, Address("h", 1), 1) for info in self.infos[:-1]]


def least(seconds: Callable[[int], float], nodes: int) -> float:
    """The least of three, as a virtual machine may count the time of its host."""
    return min(seconds(nodes) for _ in range(3))


def test_ten_thousand_nodes_cost_no_more_each_than_a_thousand() -> None:
    def seconds(nodes: int) -> float:
        run = Large(nodes)
        return run.seconds_per_event(run.ready_events())

    assert least(seconds, 10_000) < 5 * least(seconds, 1_000)


def test_ten_thousand_standbys_cost_no_more_each_than_a_thousand() -> None:
    """Newcomers beside an active round that has room for them."""

    def seconds(nodes: int) -> float:
        run = Large(nodes + 2, minimum=2)
        run.ready(run.infos[0])
        [armed] = run.ready(run.infos[1])
        run.run.step(on.TimerFired(armed.timer), 30.0)  # type: ignore[attr-defined]
        run.run.step(on.Committed(), 30.0)
        assert run.run.phase is Phase.ACTIVE
        events = [on.NodeReady(info.id, 0, Address("h", 1), 1) for info in run.infos[2:]]
        return run.seconds_per_event(list(events))

    assert least(seconds, 10_000) < 5 * least(seconds, 1_000)


def test_ten_thousand_done_nodes_that_hang_up_cost_no_more_each_than_a_thousand() -> None:
    def seconds(nodes: int) -> float:
        run = Large(nodes)
        for info in run.infos:
            run.ready(info)
        run.run.step(on.Committed(), 0.0)
        for info in run.infos[:-1]:
            run.run.step(on.NodeDone(info.id, 1), 0.0)
        events: list[on.Event] = []
        for connection_id, info in enumerate(run.infos[:-1]):
            [grace] = run.run.step(on.ConnectionLost(info.id, connection_id), 0.0)
            events.append(on.TimerFired(grace.timer))  # type: ignore[attr-defined]
        taken = run.seconds_per_event(events)
        assert len(run.run.roster) == 1
        return taken

    assert least(seconds, 10_000) < 5 * least(seconds, 1_000)


def test_the_effects_of_a_step_do_not_grow_in_number() -> None:
    large = Large(10_000)
    counts = [len(large.ready(info)) for info in large.infos]
    assert counts[0] == 1  # the last call
    assert set(counts[1:-1]) == {0}
    assert counts[-1] == 1  # Commit
    assert len(large.run.step(on.Committed(), 0.0)) == 1  # Publish
    broken = large.run.step(on.NodeLeft(large.infos[0].id, ""), 0.0)
    assert len(broken) == 3  # Forget, Break, WriteMarks
    assert [len(large.ready(info, 1)) for info in large.infos[1:5_000]] == [1] + [0] * 4_998


def test_five_thousand_processes_that_end_together_cost_no_more_each_than_five_hundred() -> None:
    def seconds(nodes: int) -> float:
        run = Large(2 * nodes)
        for info in run.infos:
            run.ready(info)
        run.run.step(on.Committed(), 0.0)
        ended = ConnectionEnd.PROCESS_ENDED
        events = [
            on.ConnectionLost(info.id, at, ended) for at, info in enumerate(run.infos[:nodes])
        ]
        return run.seconds_per_event(list(events))

    assert least(seconds, 5_000) < 5 * least(seconds, 500)
