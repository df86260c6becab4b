"""The model checker: worlds that hold, bugs that it finds, and what it is made of."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rallypoint.client.machine import DesiredState, NodeMachine
from rallypoint.client.step_gate import Pass, StepGate
from rallypoint.core import (
    agreeing,
    formation,
    gathering,
    hangs,
    ledger_events,
    membership,
    ordering,
    ranks,
    requests,
    rounds,
    rules,
    suspicion,
    witnesses,
    writing,
)
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.committing import Committing
from rallypoint.core.marking import Marking
from rallypoint.core.membership import Membership
from rallypoint.core.orders import KeptOrders
from rallypoint.core.scale_up import ScaleUp
from rallypoint.core.state import MembershipState
from rallypoint.core.takeover import Takeover
from rallypoint.core.values import Marks, RoundRecord
from rallypoint.simulation.explore import explore, main
from rallypoint.simulation.model import Limits, State, World
from rallypoint.simulation.model.deep import Deep, OtherSearchError
from rallypoint.simulation.model.report import Report
from rallypoint.simulation.model.story import as_text, parsed, story
from rallypoint.simulation.model.worlds import WORLDS

Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize("name", ["two", "again"])
def test_worlds_hold(name: str) -> None:
    report = explore(World(WORLDS[name]))
    assert not report.violation, f"{report.violation}\n{as_text(report.path)}"
    assert report.is_whole
    assert report.is_progress_whole
    assert report.states > 200


def test_a_search_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = explore(World(WORLDS["again"]))
    first = Deep("again", World(WORLDS["again"]), tmp_path).go(states_max=50)
    assert 50 <= first.states < whole.states
    assert not first.is_whole
    # Another process had been killed after it had written more than it had saved.
    with (tmp_path / "names.bin").open("ab") as file:
        file.write(b"12345678")
    report = Deep("again", World(WORLDS["again"]), tmp_path).go(states_max=1_000_000)
    assert report.is_whole
    assert (report.states, report.moves, report.depth) == (whole.states, whole.moves, whole.depth)
    with pytest.raises(OtherSearchError, match="again"):
        Deep("two", World(WORLDS["two"]), tmp_path)


def test_a_search_in_a_folder_finds_the_same_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wrong_sign_in_min_nodes(monkeypatch)
    report = explore(World(WORLDS["two"]))
    deep = Deep("two", World(WORLDS["two"]), tmp_path).go(states_max=1_000)
    assert deep.violation == report.violation
    assert deep.path == report.path


def test_a_violation_is_told_and_repeated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _wrong_sign_in_min_nodes(monkeypatch)
    assert main(["--world", "two"]) == 1
    told = capsys.readouterr().out
    command = told.splitlines()[-1]
    assert "n0 is ready for a round" in told
    assert "R3: round 1 has 1 nodes" in told
    path = command.partition("--path ")[2]
    assert main(["--world", "two", "--path", path]) == 1
    again = capsys.readouterr().out
    assert again.strip() in told
    monkeypatch.undo()
    assert main(["--world", "two", "--path", path]) == 0
    assert "BROKEN" not in capsys.readouterr().out
    assert main(["--world", "two", "--path", "die:0:0"]) == 2
    assert "hint: " in capsys.readouterr().err


def test_the_last_line_says_what_held_and_what_was_covered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--world", "two"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "two: no rule broken, no state stuck. Covered: all " in last
    assert last.endswith(
        "World: 2 nodes, 1 coordinator, 1 round, 2 nodes in a round; faults, at most: none."
    )
    part = ["--world", "crash", "--states", "100", "--state", str(tmp_path / "crash")]
    assert main(part) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "no run without faults stuck, of " in last
    assert "states that are nearest to the start" in last
    assert "faults, at most: crash 1." in last


def test_unknown_names_have_hints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--world", "nowhere"]) == 2
    assert main(["--path", "dials:0"]) == 2
    errors = capsys.readouterr().err
    assert errors.count("hint: ") == 2
    with pytest.raises(ValueError, match="no move"):
        parsed("dials")


@pytest.mark.processes
def test_the_hash_seed_changes_nothing() -> None:
    """States get the same numbers in each process, so a folder can be continued in another one."""
    command = [sys.executable, "-m", "rallypoint.simulation.explore", "--world", "again", "--json"]
    found = []
    for seed in ("1", "2"):
        done = subprocess.run(
            command, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True, timeout=100
        )
        report = msgspec.json.decode(done.stdout, type=Report)
        found.append((report.states, report.moves, report.depth))
    assert found[0] == found[1]


def _shapes(limits: Limits) -> set[str]:
    """The states of a world, without what tells one node from another."""
    world, seen = World(limits), set()
    state = world.first()
    found, left = {state}, [state]
    while left:
        state = left.pop()
        seen.add(_shape(world, state))
        for move, _ in list(world.moves(state)):
            after = world.after(state, move)
            if after not in found:
                found.add(after)
                left.append(after)
    return seen


def _shape(world: World, state: State) -> str:
    limits = world.limits
    nodes = []
    for at in range(limits.nodes):
        facts = world.nodes.facts[state[at]]
        link = world.links.all[0] if facts.slot < 0 else world.link_at(state, facts.slot)
        on_the_way = [] if link is None else [link.to_coordinator, link.to_node]
        kinds = [[type(world.messages.all[n]).__name__ for n in each] for each in on_the_way]
        nodes.append(
            f"{facts.desired} {facts.number} {facts.is_attached} {facts.has_workers} {kinds}"
        )
    last = limits.nodes + limits.coordinators
    coordinators = [world.coordinators.facts[number] for number in state[limits.nodes : last]]
    told = [(str(c.phase), c.number, len(c.in_round), len(c.attached)) for c in coordinators]
    return f"{sorted(nodes)} {told}"


def test_the_order_of_first_moves_hides_no_state() -> None:
    ordered = Limits(nodes=2, coordinators=1, rounds=1, successes=False)
    free = msgspec.structs.replace(ordered, first_in_order=False)
    assert _shapes(ordered) == _shapes(free)


# -- planted bugs ---------------------------------------------------------------------------------


def _replace(patch: pytest.MonkeyPatch, owner: Any, name: str, new: Any) -> None:
    """Replace a function, in the table of handlers too, and check that it was there."""
    before = getattr(owner, name)
    patch.setattr(owner, name, new)
    for key, handler in membership._HANDLER_OF.items():
        if handler is before:
            patch.setitem(membership._HANDLER_OF, key, new)


def _acknowledged_before_commit(patch: pytest.MonkeyPatch) -> None:
    def give(run: Membership) -> None:
        record = run._committing.record
        assert record is not None
        run._do(do.Commit(record))
        if isinstance(record, RoundRecord):
            ledger_events.on_committed(run, on.Committed())

    _replace(patch, writing, "give", give)


def _rank_given_twice(patch: pytest.MonkeyPatch) -> None:
    _replace(patch, ranks, "worker_ranks", lambda names, workers: [0] * len(names))


def _ranks_not_kept(patch: pytest.MonkeyPatch) -> None:
    stable = ranks.POLICIES["stable"]

    def moved(previous: Any, candidates: Any) -> list[str]:
        return stable(previous, candidates)[:: -1 if previous else 1]

    patch.setitem(ranks.POLICIES, "stable", moved)


def _old_term_accepted(patch: pytest.MonkeyPatch) -> None:
    _replace(patch, NodeMachine, "_is_stale", lambda self, message: False)


def _done_forgotten_at_takeover(patch: pytest.MonkeyPatch) -> None:
    expect = Takeover.expect_members

    def forget(self: Takeover, record: Any, marks: Marks, *args: Any, **kw: Any) -> Any:
        return expect(self, record, Marks(marks.round, b"", marks.gone, marks.ended), *args, **kw)

    _replace(patch, Takeover, "expect_members", forget)


def _departed_expected_at_takeover(patch: pytest.MonkeyPatch) -> None:
    expect = Takeover.expect_members

    def forget(self: Takeover, record: Any, marks: Marks, *args: Any, **kw: Any) -> Any:
        return expect(self, record, Marks(marks.round, marks.done, b"", marks.ended), *args, **kw)

    _replace(patch, Takeover, "expect_members", forget)


def _done_is_not_marked(patch: pytest.MonkeyPatch) -> None:
    _replace(patch, Marking, "done", lambda self, node, now_s: None)


def _close_forgotten_at_takeover(patch: pytest.MonkeyPatch) -> None:
    restore = Membership.restore

    def forget(self: Membership, state: Any, **kw: Any) -> Any:
        return restore(self, _without_close(state), **kw)

    _replace(patch, Membership, "restore", forget)


def _without_close(state: Any) -> Any:
    return type(state)(
        *(None if name == "close" else getattr(state, name) for name in state.__struct_fields__)
    )


def _wrong_sign_in_min_nodes(patch: pytest.MonkeyPatch) -> None:
    def advance(run: Membership, settings: Any) -> None:
        if 0 < run.roster.ready_count <= settings.min_nodes:
            rounds.form_round(run, settings)

    _replace(patch, rules, "advance_gathering", advance)


def _deposed_goes_on(patch: pytest.MonkeyPatch) -> None:
    def go_on(run: Membership, event: on.CommitRefused) -> None:
        ledger_events.on_committed(run, on.Committed())

    _replace(patch, ledger_events, "on_commit_refused", go_on)


def _decides_without_a_lease(patch: pytest.MonkeyPatch) -> None:
    _replace(patch, ledger_events, "on_ledger_lost", lambda run, event: None)


def _repeat_breaks_the_next_round(patch: pytest.MonkeyPatch) -> None:
    ready = requests.on_ready

    def obey(run: Membership, event: on.NodeReady) -> None:
        member = run.roster.living(event.node)
        number = member.last_round if member is not None else 0
        ready(run, on.NodeReady(event.node, number, event.bootstrap, event.workers, event.change))

    _replace(patch, requests, "on_ready", obey)


def _charged_twice(patch: pytest.MonkeyPatch) -> None:
    charge = rounds.charge

    def twice(run: Membership, change: Any) -> None:
        charge(run, change)
        run.restart_count += change.charged

    _replace(patch, rounds, "charge", twice)


def _lost_without_its_grace(patch: pytest.MonkeyPatch) -> None:
    def at_once(self: suspicion.Suspicion) -> Any:
        return self._roster.troubled()

    _replace(patch, suspicion.Suspicion, "past_deadline", at_once)


def _goodbye_not_answered(patch: pytest.MonkeyPatch) -> None:
    _replace(patch, Marking, "answered_farewells", lambda self: [])


def _last_call_begins_again(patch: pytest.MonkeyPatch) -> None:
    fired = gathering.Gathering.timer_fired

    def again(self: Any, kind: Any, now_s: float) -> None:
        if kind is do.TimerKind.LAST_CALL:
            self.call = formation.Call.NOT_YET
        else:
            fired(self, kind, now_s)

    _replace(patch, gathering.Gathering, "timer_fired", again)


def _standby_not_promoted(patch: pytest.MonkeyPatch) -> None:
    _replace(patch, ScaleUp, "timer_fired", lambda self: None)


def _round_taken_when_not_ready(patch: pytest.MonkeyPatch) -> None:
    formed = NodeMachine._on_formed

    def take(self: NodeMachine, message: Any, now_s: float) -> Any:
        if self.desired is DesiredState.IN_ROUND:
            self.desired = DesiredState.READY
            self.number -= 1
        return formed(self, message, now_s)

    _replace(patch, NodeMachine, "_on_formed", take)


def _step_told_early(patch: pytest.MonkeyPatch) -> None:
    advance = agreeing.advance

    def early(run: Any) -> None:
        advance(run)
        if run._agreement.step is not None and not run._agreement.is_step_told:
            agreeing.tell_step(run)

    _replace(patch, agreeing, "advance", early)


def _worker_does_not_wait(patch: pytest.MonkeyPatch) -> None:
    enter = StepGate.enter

    def goes_on(self: StepGate, step: Any) -> Pass:
        passed = enter(self, step)
        return Pass.GO_ON if passed is Pass.WAIT else passed

    _replace(patch, StepGate, "enter", goes_on)


def _step_too_low(patch: pytest.MonkeyPatch) -> None:
    def latest(run: Any, event: Any) -> None:
        run._agreement.highest = event.step
        run._agreement.promises[event.node] = None

    _replace(patch, agreeing, "on_promised", latest)


def _never_released(patch: pytest.MonkeyPatch) -> None:
    _replace(patch, NodeMachine, "_on_stop_at", lambda self, message: [])


def _orders_forgotten_at_takeover(patch: pytest.MonkeyPatch) -> None:
    _replace(patch, KeptOrders, "restore", lambda self, orders: None)


def _lifted_at_once(patch: pytest.MonkeyPatch) -> None:
    _replace(patch, KeptOrders, "eviction_of", lambda self, name: self.now.eviction_of(name))


def _confirmed_while_it_is_replaced(patch: pytest.MonkeyPatch) -> None:
    # As the release before: only the last write that was answered counts.
    _replace(patch, KeptOrders, "possible", property(lambda self: (self.written,)))


def _evicted_is_admitted(patch: pytest.MonkeyPatch) -> None:
    _replace(patch, KeptOrders, "eviction_of", lambda self, name: None)


def _later_orders_are_not_written(patch: pytest.MonkeyPatch) -> None:
    def recorded(run: Any) -> None:
        ordering.in_ledger(run, run._orders.record_written())

    _replace(patch, ordering, "recorded", recorded)


def _drain_told_early(patch: pytest.MonkeyPatch) -> None:
    wanted = ordering.wanted

    def early(run: Any) -> None:
        wanted(run)
        for each in run._orders.now.drains:
            ordering.ask(run, each)

    _replace(patch, ordering, "wanted", early)


def _drain_not_asked_again(patch: pytest.MonkeyPatch) -> None:
    _replace(patch, ordering, "ask_again", lambda run, member: None)


def _scale_counts_later(patch: pytest.MonkeyPatch) -> None:
    def adopt(self: Membership, asked: Any) -> None:
        self.asked_settings = self.settings = asked

    _replace(patch, MembershipState, "adopt_settings", adopt)


def _too_large_round_begins(patch: pytest.MonkeyPatch) -> None:
    _replace(patch, Committing, "cannot_begin", lambda self, change: None)


def _witnesses_lose_nobody(patch: pytest.MonkeyPatch) -> None:
    _replace(patch, witnesses.Witnesses, "lost", lambda self: [])


def _answers_are_silence(patch: pytest.MonkeyPatch) -> None:
    evidence = witnesses._Question.evidence

    def gone(self: Any) -> Any:
        found = evidence(self)
        return found and witnesses.Evidence(False, found.witnesses)

    _replace(patch, witnesses._Question, "evidence", gone)


def _last_answers_do_not_count(patch: pytest.MonkeyPatch) -> None:
    told = hangs.on_stacks_told

    def overlooked(run: Any, event: on.StacksTold) -> None:
        told(run, on.StacksTold(event.node, event.serial, None, event.stacks))

    _replace(patch, hangs, "on_stacks_told", overlooked)


def _asked_for_ever(patch: pytest.MonkeyPatch) -> None:
    def conclude(run: Any) -> None:
        run._progress.stop_asking()
        run._do(run._progress.watch(1.0))

    _replace(patch, hangs, "conclude", conclude)


DRAIN = Limits(
    nodes=2,
    coordinators=1,
    rounds=1,
    min_nodes=1,
    drains=1,
    steps=2,
    successes=False,
    begins_in_round=True,
)
FAIL = Limits(nodes=2, coordinators=1, rounds=2, failures=1, successes=False)
JOIN = Limits(nodes=2, coordinators=1, rounds=1, min_nodes=1, successes=False)
PLANTED: dict[str, tuple[Plant, Limits, str]] = {
    "acknowledged before the commit": (_acknowledged_before_commit, WORLDS["two"], "R1"),
    "a rank given twice": (_rank_given_twice, WORLDS["two"], "R3"),
    "survivors lose their ranks": (_ranks_not_kept, FAIL, "ranks"),
    "an old term accepted": (_old_term_accepted, WORLDS["freeze"], "R5"),
    "done forgotten at a takeover": (_done_forgotten_at_takeover, WORLDS["crash"], "takeover"),
    "a departed node expected at a takeover": (
        _departed_expected_at_takeover,
        Limits(nodes=2, rounds=1, crashes=1, leaves=1, successes=False),
        "takeover",
    ),
    "done not written to the ledger": (_done_is_not_marked, WORLDS["two"], "marks"),
    "a close forgotten at a takeover": (_close_forgotten_at_takeover, WORLDS["close"], "R6"),
    "a wrong sign in min_nodes": (_wrong_sign_in_min_nodes, WORLDS["two"], "R3"),
    "a deposed coordinator goes on": (_deposed_goes_on, WORLDS["lease"], "R5"),
    "decisions without a lease": (_decides_without_a_lease, WORLDS["lease"], "R8"),
    "a repeat breaks the next round": (
        _repeat_breaks_the_next_round,
        Limits(nodes=2, coordinators=1, rounds=2, cuts=1, failures=1, successes=False),
        "R4",
    ),
    "a round charged twice": (_charged_twice, FAIL, "budget"),
    "lost without its grace": (
        _lost_without_its_grace,
        Limits(nodes=2, coordinators=1, rounds=1, cuts=1, successes=False),
        "R8",
    ),
    "a goodbye never answered": (_goodbye_not_answered, WORLDS["two"], "R7"),
    "a last call that begins again": (
        _last_call_begins_again,
        Limits(nodes=1, coordinators=1, rounds=1, min_nodes=1, max_nodes=2, successes=False),
        "R7",
    ),
    "a standby never promoted": (_standby_not_promoted, JOIN, "R7"),
    "a step told before the ledger has it": (_step_told_early, DRAIN, "R14"),
    "a worker that does not wait": (_worker_does_not_wait, DRAIN, "R14"),
    "a step below a promise": (_step_too_low, DRAIN, "R14"),
    "a worker that is never released": (_never_released, DRAIN, "R7"),
    "orders forgotten at a takeover": (
        _orders_forgotten_at_takeover,
        WORLDS["ordered"],
        "takeover",
    ),
    "an evicted node is admitted": (_evicted_is_admitted, WORLDS["evict"], "R4"),
    "an order confirmed too early": (
        _confirmed_while_it_is_replaced,
        Limits(
            nodes=1,
            coordinators=1,
            rounds=1,
            min_nodes=1,
            scales=3,
            sizes=((1, 1), (1, 2)),
            successes=False,
            begins_in_round=True,
        ),
        "orders",
    ),
    "an eviction lifted while it is written": (
        _confirmed_while_it_is_replaced,
        WORLDS["evict"],
        "R4",
    ),
    "an eviction lifted too early": (_lifted_at_once, WORLDS["evict"], "R4"),
    "later orders not written": (_later_orders_are_not_written, WORLDS["size"], "R7"),
    "a drain told before the ledger has it": (_drain_told_early, WORLDS["order"], "R5"),
    "a drain not told again": (
        _drain_not_asked_again,
        Limits(
            nodes=1,
            coordinators=1,
            rounds=1,
            min_nodes=1,
            drain_orders=1,
            cuts=1,
            successes=False,
            begins_in_round=True,
        ),
        "R7",
    ),
    "a scale that counts for nothing": (_scale_counts_later, WORLDS["scale"], "R7"),
    "a round begun that is too large": (_too_large_round_begins, WORLDS["size"], "R3"),
    "witnesses who lose nobody": (_witnesses_lose_nobody, WORLDS["power"], "R8"),
    "an answer taken for silence": (_answers_are_silence, WORLDS["missed"], "R8"),
    "a hang though a worker advances": (_last_answers_do_not_count, WORLDS["hang"], "R15"),
    "a hang that does not end": (_asked_for_ever, WORLDS["hang"], "R7"),
    "a round taken twice": (
        _round_taken_when_not_ready,
        Limits(nodes=2, coordinators=1, rounds=1, cuts=1, successes=False),
        "R",
    ),
}


SLOW = (
    *("a deposed coordinator goes on", "a repeat breaks the next round", "a round taken twice"),
    "later orders not written",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=pytest.mark.verify if each in SLOW else ()) for each in PLANTED],
)
def test_planted_bugs_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, limits, rule = PLANTED[name]
    plant(monkeypatch)
    report = explore(World(limits), states_max=60_000)
    print(f"{name}: {report.states} states, {len(report.path)} moves, {report.cpu_seconds:.1f} s")
    assert f": {rule}" in f": {report.violation}", report
    # The path leads there again, without any memory of the search.
    lines = list(story(World(limits), report.path))
    assert report.violation.startswith("R7") or "BROKEN" in lines[-1], lines
