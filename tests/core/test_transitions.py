"""The table of transitions: it is complete, each cell has a function, and no run leaves it."""

from typing import get_type_hints

import pytest

from rallypoint.core import events as on
from rallypoint.core.effects import Effect
from rallypoint.core.membership import HANDLERS, Membership
from rallypoint.core.transitions import TRANSITIONS, Handling, as_markdown
from rallypoint.core.values import HostReport, Phase
from tests.core.driver import Driver, node_id
from tests.core.walks import walk

WALKS = 160
pytestmark = pytest.mark.timeout(600)  # all walks are one fixture: seconds, on an idle machine


def test_every_phase_meets_every_event() -> None:
    assert set(TRANSITIONS) == {(phase, event) for phase in Phase for event in on.EVENTS}


def test_every_event_of_the_module_is_in_the_table() -> None:
    bases = {on.SignOfLife}
    found = {event for base in (on.Event, *bases) for event in base.__subclasses__()}
    assert set(on.EVENTS) == found - bases


def test_every_cell_has_a_function() -> None:
    """And each function is for that event, and is named by a cell."""
    named = {(event, cell.handling) for (_, event), cell in TRANSITIONS.items()}
    assert named <= set(HANDLERS)
    for_all = (Handling.IGNORED, Handling.UNDERLYING)
    assert {pair for pair in HANDLERS if pair[1] not in for_all} <= named
    for (event, handling), function in HANDLERS.items():
        if handling not in for_all and function is not Membership._ignore:
            asked = get_type_hints(function)["event"]
            assert issubclass(event, asked), (event, handling)


def test_every_cell_says_what_it_means() -> None:
    for pair, cell in TRANSITIONS.items():
        assert cell.means, pair
        assert cell.to, pair
        assert len(set(cell.to)) == len(cell.to), pair


def test_nothing_follows_closed() -> None:
    for event in on.EVENTS:
        assert TRANSITIONS[Phase.CLOSED, event].to == (Phase.CLOSED,)


def test_the_markdown_has_a_row_for_every_event_and_a_column_for_every_phase() -> None:
    header, _, *rows = as_markdown().splitlines()
    assert [cell.strip() for cell in header.split("|")[2:-1]] == [str(phase) for phase in Phase]
    assert [row.split("|")[1].strip() for row in rows] == [e.__name__ for e in on.EVENTS]
    assert {row.count("|") for row in rows} == {len(Phase) + 2}


Move = tuple[Phase, type[on.Event], Phase]


def silent_standby_when_newcomers_are_admitted() -> Driver:
    """A round with room for b, which was silent when it should have been admitted."""
    driver = Driver(min=1, max=2, last_call=1)
    driver.join("a")
    driver.advance(1.0)
    driver.join("b")
    driver.silent("b")
    driver.advance(1.0)
    return driver


def of_a_drain(token: str) -> list[on.Event]:
    node = node_id(token)
    return [
        on.NodeTakesPart(node, 1),
        on.NodeDraining(node, 1, "a reason", 5.0),
        on.StepPromised(node, 1, 7),
    ]


def rare_runs() -> None:
    """Cases that walks seldom reach."""
    silent_standby_when_newcomers_are_admitted().heard("b")
    silent_standby_when_newcomers_are_admitted().answer("b")
    silent_standby_when_newcomers_are_admitted().done("b")
    silent_standby_when_newcomers_are_admitted().testify("b", 1, HostReport.UNSEEN)
    # Witnesses are not answered any more by the host of a member, which falls silent then.
    driver = Driver(min=2, max=3)
    driver.hosts = {name: f"10.0.0.{number}" for number, name in enumerate("abc", 1)}
    driver.join("a", "b", "c")
    driver.advance(2.0)
    driver.missed("c")
    driver.testify("a", 1, HostReport.NOT_ANSWERED)
    driver.testify("b", 1, HostReport.NOT_ANSWERED)
    driver.advance(1.0)
    driver.silent("c")
    for event in of_a_drain("b"):
        silent_standby_when_newcomers_are_admitted().step(event)
        driver = Driver(min=1, max=1)
        driver.join("b")
        driver.close()
        driver.step(event)
    # A round ends at once while members are not ready yet, and not at a deadline.
    driver = Driver(min=2, max=3)
    driver.join("a", "b", "c")
    driver.attach("a'")
    driver.disconnect("a")
    driver = Driver(min=2, max=2)
    driver.join("a", "b")
    driver.step(on.StoreLost(1, "its log was removed"))
    # A member falls silent after its probe is over, and a newcomer is ready.
    driver = Driver(min=2, max=3)
    driver.join("a", "b", "c", "x")
    driver.fail("a")
    driver.ready("a", "b")
    driver.advance(1.0)
    driver.silent("c")
    # A survivor that keeps its place after the last call cannot be heard any more.
    driver = Driver(min=2, max=3, last_call=1.0)
    driver.join("a", "b", "c")
    driver.ready("a", "b")
    driver.advance(2.0)
    driver.disconnect("c")
    # A member that was ready is heard again, and completes the round.
    driver = Driver(max=2)
    driver.join("a", "b")
    driver.ready("b")
    driver.silent("b")
    driver.ready("a")
    driver.fail("b")
    driver = Driver(max=2)
    driver.join("a", "b")
    driver.ready("b")
    driver.silent("b")
    driver.ready("a")
    driver.testify("b", 1, HostReport.UNSEEN)
    for event in of_a_drain("b"):
        driver = Driver(max=2)
        driver.join("a", "b")
        driver.ready("b")
        driver.silent("b")
        driver.ready("a")
        driver.step(event)
    # An operator takes out a node for which a round waits, and lowers the minimum.
    driver = Driver(min=2, max=3)
    driver.join("a", "b", "c")
    driver.fail("a")
    driver.ready("a", "b")
    driver.advance(1.0)
    driver.evict("c")
    driver = Driver(min=2, max=3)
    driver.join("a")
    driver.scale(1, 1)
    # No worker advances: the last answer ends the round, or the run.
    for restarts in (0, 1):
        driver = Driver(min=2, max=2, restarts=restarts)
        driver.join("a", "b")
        driver.progress("a", timeout_s=1.0)
        driver.advance(1.0)
        driver.stacks("a")
        driver.stacks("b")
    # What an operator does ends the run, or is followed by the next record at once.
    driver = Driver(min=2, max=2)
    driver.join("a", "b")
    driver.done("a")
    driver.evict("b")
    driver = Driver(min=2, max=3)
    driver.join("a", "b", "c")
    driver.done("a")
    driver.ready("b")
    driver.evict("c")


@pytest.fixture(scope="module")
def moves() -> set[Move]:
    """Every (phase, event, next phase) of many random runs, each checked against every rule."""
    seen: set[Move] = set()
    step = Membership.step

    def seeing_step(self: Membership, event: on.Event, now_s: float) -> list[Effect]:
        before = self.phase
        effects = step(self, event, now_s)
        seen.add((before, type(event), self.phase))
        return effects

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Membership, "step", seeing_step)
        rare_runs()
        for seed in range(WALKS):
            walk(seed)
            walk(seed, has_operator=True)
        for seed in range(WALKS // 2):
            walk(seed, has_witnesses=True)
    return seen


def test_no_run_leaves_its_cell_of_the_table(moves: set[Move]) -> None:
    outside = [move for move in moves if move[2] not in TRANSITIONS[move[0], move[1]].to]
    assert outside == []


def test_every_next_phase_is_reached(moves: set[Move]) -> None:
    named = {(*pair, to) for pair, cell in TRANSITIONS.items() for to in cell.to}
    assert sorted(named - moves, key=str) == []
