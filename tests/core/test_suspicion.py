"""Which members are lost, and when none is: deadlines, probes and the mass guard."""

import pytest

from rallypoint.core.effects import Effect, SetTimer, Timer, TimerKind
from rallypoint.core.judging import JudgingClock
from rallypoint.core.probing import Probe
from rallypoint.core.roster import Member, Roster
from rallypoint.core.suspicion import QUEUE_NODES, Suspicion
from rallypoint.core.timers import Timers
from rallypoint.core.values import MemberState, NodeInfo, Reachability, RunSettings

SETTINGS = RunSettings(min_nodes=1, max_nodes=100, mass_min=2)


class Nodes:
    """A roster with this many active members, and its deadlines."""

    def __init__(self, count: int) -> None:
        self.roster = Roster()
        self.timers = Timers()
        self.clock = JudgingClock()
        self.probe = Probe(self.timers, self.clock)
        self.suspicion = Suspicion(self.roster, self.timers, self.clock, self.probe)
        self.members = [self._member(f"n{number}", number) for number in range(count)]

    def _member(self, name: str, number: int) -> Member:
        member = self.roster.add(NodeInfo(name, 1, name), number, 0.0)
        member.state = MemberState.ACTIVE
        self.roster.reindex(member)
        return member

    def disconnect(self, *members: Member, now_s: float = 0.0) -> list[Timer]:
        found = []
        for member in members:
            found += timers(self.suspicion.disconnected(member, SETTINGS, now_s))
        return found

    def guard(self, now_s: float = 0.0, settings: RunSettings = SETTINGS) -> list[Timer]:
        return timers(self.suspicion.update_guard(settings, now_s))

    def fire(self, timer: Timer) -> None:
        if self.timers.take(timer):
            self.suspicion.deadline_passed(timer)

    @property
    def lost(self) -> list[str]:
        return [member.name for member in self.suspicion.past_deadline()]


def timers(effects: list[Effect]) -> list[Timer]:
    return [effect.timer for effect in effects if isinstance(effect, SetTimer)]


def test_a_closed_connection_has_its_grace() -> None:
    nodes = Nodes(3)
    [grace] = nodes.disconnect(nodes.members[0])
    assert grace.kind is TimerKind.GRACE
    assert nodes.lost == []
    nodes.fire(grace)
    assert nodes.lost == ["n0"]


def test_a_grace_of_an_earlier_break_is_stale() -> None:
    nodes = Nodes(3)
    [stale] = nodes.disconnect(nodes.members[0])
    nodes.suspicion.heard(nodes.members[0])
    nodes.disconnect(nodes.members[0])
    nodes.fire(stale)
    assert nodes.lost == []


@pytest.mark.parametrize(
    ("silent", "answered", "probe_over", "is_lost"),
    [
        (True, False, True, True),
        (True, False, False, False),
        (True, True, True, False),
        (False, False, True, False),
        (False, True, True, False),
    ],
)
def test_r8_a_silent_member_that_answers_no_probe_is_lost(
    silent: bool, answered: bool, probe_over: bool, is_lost: bool
) -> None:
    nodes = Nodes(3)
    member = nodes.members[0]
    if silent:
        nodes.suspicion.silent(member, SETTINGS, 10.0, 5.0)
    nodes.probe.begin(["n0"], SETTINGS, 1, 0.0)
    if answered:
        nodes.probe.answered("n0")
    if probe_over:
        nodes.suspicion.probe_over()
    assert nodes.lost == (["n0"] if is_lost else [])


def test_a_member_silent_after_its_probe_ended_is_lost_at_once() -> None:
    nodes = Nodes(3)
    nodes.probe.begin(["n0"], SETTINGS, 1, 0.0)
    nodes.suspicion.probe_over()
    nodes.suspicion.silent(nodes.members[0], SETTINGS, 10.0, 5.0)
    assert nodes.lost == ["n0"]


def test_silence_counts_from_when_it_began() -> None:
    nodes = Nodes(1)
    effects = nodes.suspicion.silent(nodes.members[0], SETTINGS, 100.0, 12.0)
    assert [e.delay_s for e in effects if isinstance(e, SetTimer)] == [18.0]
    assert nodes.members[0].trouble_since_s == 88.0


@pytest.mark.parametrize(
    ("nodes", "missing", "guards"),
    [(8, 8, False), (20, 8, False), (20, 9, True), (150, 15, False), (150, 16, True)],
)
def test_r8_more_than_eight_or_a_tenth_missing_raise_the_guard(
    nodes: int, missing: int, guards: bool
) -> None:
    run = Nodes(nodes)
    run.disconnect(*run.members[:missing])
    run.guard(settings=RunSettings(min_nodes=1, max_nodes=nodes))
    assert run.suspicion.guarding is guards


def test_r8_a_process_that_has_ended_is_neither_counted_nor_kept_by_the_guard() -> None:
    run = Nodes(10)
    run.disconnect(*run.members[:3])
    run.guard()
    assert run.suspicion.guarding
    [burst] = timers(run.suspicion.ended(run.members[3], 1.0))
    assert run.suspicion.ended_members() == []
    run.fire(burst)
    assert run.suspicion.ended_members() == [run.members[3]]
    run.suspicion.go_on(SETTINGS, 2.0)
    assert run.suspicion.ended_members() == [run.members[3]]
    run.suspicion.heard(run.members[3])
    assert run.suspicion.ended_members() == []


def test_done_and_departing_members_do_not_count_as_missing() -> None:
    nodes = Nodes(4)
    for member in nodes.members[:2]:
        member.state = MemberState.DONE
        nodes.roster.reindex(member)
    nodes.disconnect(*nodes.members[:3])
    nodes.guard()
    assert not nodes.suspicion.guarding


def test_r8_the_mass_guard_delays_losses() -> None:
    nodes = Nodes(5)
    graces = nodes.disconnect(*nodes.members[:3])
    [mass] = nodes.guard()
    for grace in graces:
        nodes.fire(grace)
    assert nodes.lost == []
    assert nodes.suspicion.guard_left_s(SETTINGS, 20.0) == 100.0
    nodes.fire(mass)
    assert nodes.lost == ["n0", "n1", "n2"]


def test_r8_the_last_to_come_back_get_the_grace_again() -> None:
    nodes = Nodes(5)
    graces = nodes.disconnect(*nodes.members[:3])
    nodes.guard()
    for grace in graces:
        nodes.fire(grace)
    nodes.suspicion.heard(nodes.members[0])
    again = nodes.guard(now_s=10.0)
    assert [timer.name for timer in again] == ["n1", "n2"]
    assert nodes.lost == []
    nodes.fire(again[0])
    assert nodes.lost == ["n1"]


def test_a_guard_that_was_lifted_does_not_spoil_the_next() -> None:
    nodes = Nodes(5)
    nodes.disconnect(*nodes.members[:3])
    [stale] = nodes.guard()
    nodes.suspicion.heard(nodes.members[0])
    nodes.guard()
    nodes.fire(stale)
    nodes.disconnect(nodes.members[0])
    nodes.guard()
    assert nodes.suspicion.guarding


def test_after_an_outage_each_member_has_the_rest_of_its_time() -> None:
    nodes = Nodes(4)
    nodes.disconnect(nodes.members[0])
    nodes.suspicion.silent(nodes.members[1], SETTINGS, 0.0, 5.0)
    nodes.clock.stop(10.0)  # Twice the grace is over by then.
    again = nodes.suspicion.go_on(SETTINGS, 100.0)
    assert nodes.lost == ["n0"]
    (left,) = again
    assert isinstance(left, SetTimer)
    assert (left.timer.kind, left.timer.name) == (TimerKind.LOST, "n1")
    assert left.delay_s == SETTINGS.lost_after_s - 5.0 - 10.0


def test_one_death_in_a_large_run_has_the_grace_of_a_small_one() -> None:
    large = Nodes(4 * QUEUE_NODES)
    large.disconnect(large.members[0])
    assert large.suspicion.grace_s(SETTINGS) == SETTINGS.reconnect_grace_s


def test_many_that_are_missing_have_a_longer_grace() -> None:
    large = Nodes(4 * QUEUE_NODES)
    large.disconnect(*large.members[: 3 * QUEUE_NODES])
    assert large.suspicion.grace_s(SETTINGS) == 3 * SETTINGS.reconnect_grace_s


def test_the_reachability_is_the_last_one_reported() -> None:
    nodes = Nodes(1)
    [member] = nodes.members
    links = [member.reachability]
    nodes.suspicion.silent(member, SETTINGS, 5.0, 5.0)
    links.append(member.reachability)
    nodes.disconnect(member, now_s=6.0)
    links.append(member.reachability)
    assert member.trouble_since_s == 0.0
    nodes.suspicion.heard(member)
    links.append(member.reachability)
    assert links == [
        Reachability.CONNECTED,
        Reachability.SILENT,
        Reachability.DISCONNECTED,
        Reachability.CONNECTED,
    ]
    assert not member.is_troubled
