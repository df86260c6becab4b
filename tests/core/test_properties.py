"""Random runs: every rule holds after every step, and a round forms when everything has healed.

Some events are such as no honest coordinator would send: other incarnations, connections and
rounds, stale timers, requests repeated and out of order. `invariants.Checked` checks each step, so
the tests assert little themselves.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.roster import Bucket
from rallypoint.core.stopping import STOP_MARGIN_S
from rallypoint.core.values import (
    Address,
    ConnectionEnd,
    Failure,
    FailureKind,
    MemberState,
    NodeId,
    Outcome,
    Phase,
)
from tests.core.driver import STOP_S, Driver, node_id, token_of
from tests.core.walks import walk
from tests.kinds import examples, seeds

NAMES = "abcde"
TOKENS = [*NAMES, "a", "b", "c", "a'", "b'"]

nodes = st.sampled_from(TOKENS)
small_s = st.sampled_from([0.0, 0.01, 0.05, 0.5, 1.0, 1.5, 5.0, 31.0, 130.0])
honest = st.one_of(
    st.tuples(st.sampled_from(["join", "join", "attach", "ready", "ready", "done"]), nodes),
    st.tuples(st.sampled_from(["depart", "leave", "answer", "heard"]), nodes),
    st.tuples(st.sampled_from(["disconnect", "die"]), nodes),
    st.tuples(st.just("silent"), nodes),
    st.tuples(st.just("fail"), nodes, st.sampled_from(FailureKind)),
    st.tuples(st.just("advance"), small_s),
    st.tuples(st.sampled_from(["commit", "marks_written", "lose_ledger", "restore_ledger"])),
)
hostile = st.one_of(
    st.tuples(st.just("event"), st.sampled_from(range(9)), nodes, st.integers(-1, 9)),
    st.tuples(st.just("old_timer"), st.integers(0, 40)),
    st.tuples(st.just("again"), st.integers(0, 20)),
)
final = st.sampled_from([("close",), ("refuse_commit",)])
anything = st.one_of(honest, honest, honest, hostile)
endings = st.lists(st.one_of(anything, anything, anything, final), max_size=5)
met = st.lists(st.sampled_from("abcd").map(lambda name: ("join", name)), max_size=6)
lives = st.builds(
    lambda *parts: [step for part in parts for step in part],
    met,
    st.lists(anything, max_size=40),
    endings,
)


@st.composite
def run_settings(draw: st.DrawFn) -> dict[str, Any]:
    minimum = draw(st.integers(1, 3))
    maximum = draw(st.integers(minimum, 4))
    return {
        "min": minimum,
        "max": maximum,
        "expected": draw(st.none() | st.integers(minimum, maximum)),
        "restarts": draw(st.sampled_from([0, 1, None])),
        "mass_min": draw(st.sampled_from([1, 2, 9])),
        "manual_commit": draw(st.booleans()),
    }


def live(driver: Driver, life: list[tuple[Any, ...]]) -> None:
    """Play the steps of a life."""
    for action, *arguments in life:
        match action, arguments:
            case "event", [which, token, number]:
                driver.step(strange_event(which, node_id(token), number))
            case "old_timer", [back] if driver.fired:
                driver.step(on.TimerFired(driver.fired[back % len(driver.fired)]))
            case "again", [back] if driver.said:
                driver.step(driver.said[-1 - back % len(driver.said)])
            case "old_timer" | "again", _:
                pass
            case "silent", [token]:
                driver.silent(token)
            case "fail", [token, kind]:
                driver.fail(token, kind=kind)
            case "disconnect", [token]:
                driver.disconnect_if_linked(token)
            case "die", [token]:
                driver.die_if_linked(token)
            case "advance", [duration_s]:
                driver.advance(duration_s)
            case _:
                getattr(driver, action)(*arguments)


def strange_event(which: int, node: NodeId, number: int) -> on.Event:
    """An event about a node, a round or a connection that may not exist."""
    match which:
        case 0:
            return on.NodeReady(node, number, Address("host", 1), 1)
        case 1:
            return on.WorkerFailed(node, number, Failure(FailureKind.SIGNAL, "signal", signal=9))
        case 2:
            return on.NodeDone(node, number)
        case 3:
            return on.ConnectionLost(
                node, number, tuple(ConnectionEnd)[number % len(ConnectionEnd)]
            )
        case 4:
            return on.NodeSilent(node, 5.0 + max(0, number) * 10)
        case 5:
            return on.NodeDeparting(node, "a reason")
        case 6:
            return on.NodeLeft(node, "a reason")
        case 7:
            return on.ProbeAnswered(node)
    return on.NodeHeard(node)


@settings(max_examples=examples(400))
@given(run_settings(), lives)
def test_every_rule_holds_after_every_step(options: dict[str, Any], life: list[Any]) -> None:
    live(Driver(**options), life)


@settings(max_examples=examples(250))
@given(run_settings(), lives, st.integers(0, 4), st.randoms(use_true_random=False))
def test_r7_a_round_is_formed_once_enough_nodes_are_ready(
    options: dict[str, Any], life: list[Any], more: int, random: Any
) -> None:
    """R7. If at least min_nodes stay alive, connected and ready, and a coordinator and its ledger
    answer, a round is formed within the last call plus one second (plus any grace set)."""
    driver = Driver(**options)
    live(driver, life)
    enough = min(len(NAMES), options["min"] + more)
    a_round_is_formed(driver, random.sample(NAMES, enough))


@pytest.mark.parametrize("tens", seeds(5, verify=15, long=150))
def test_r7_a_round_is_formed_after_a_long_life(tens: int) -> None:
    """R7, after runs that are longer and more like real ones."""
    for seed in range(10 * tens, 10 * tens + 10):
        driver = walk(seed, steps=60)
        a_round_is_formed(driver, list(NAMES[: driver.settings.min_nodes + seed % 3]))


def a_round_is_formed(driver: Driver, good: list[str]) -> None:
    """Everything heals, these nodes behave well, and no other node does anything."""
    heal(driver)
    start_afresh(driver, good)
    run, bounds = driver.run, driver.settings
    stop_s = STOP_S + STOP_MARGIN_S
    bound_s = max(bounds.last_call_s, stop_s) + bounds.probe_s + bounds.reconnect_grace_s + 1.0
    broken_s: float | None = None
    end_s = driver.now_s + 2 * bound_s + bounds.lost_after_s + bounds.mass_grace_s
    while driver.advance_once(end_s):
        keep_ready(driver)
        if run.deposed or run.phase in (Phase.ACTIVE, Phase.CLOSED):
            broken_s = None
        elif broken_s is None:
            broken_s = driver.now_s
        assert broken_s is None or driver.now_s - broken_s <= bound_s, run.waiting(driver.now_s)
    if not run.deposed:
        assert run.phase in (Phase.ACTIVE, Phase.CLOSED), run.waiting(driver.now_s)


def heal(driver: Driver) -> None:
    """The ledger answers again, and has what it was asked to write."""
    driver.manual_commit = driver.manual_marks = False
    driver.marks_written()
    for cause in driver.run.suspension.causes:
        driver.restore_ledger(cause)
    if driver.phase is Phase.COMMITTING:
        driver.commit()


def start_afresh(driver: Driver, names: list[str]) -> None:
    """These nodes connect and answer; those that cannot go on are started again."""
    for name in names:
        member = driver.run.roster.get(name)
        token = token_of(member.id) if member else name
        driver.attach(token)
        member = driver.run.roster.get(name)
        if member and member.state in (MemberState.DONE, MemberState.DEPARTING):
            driver.leave(token)
            driver.attach(token)
    driver.good = names
    keep_ready(driver)


def keep_ready(driver: Driver) -> None:
    """A node that is not in an active round asks for the next one at once."""
    for name in driver.good:
        member = driver.run.roster.get(name)
        if member is not None and member.bucket in (Bucket.OTHER, Bucket.PLACE, Bucket.STOPPING):
            driver.ready(token_of(member.id))


@settings(max_examples=examples(50))
@given(run_settings(), lives)
def test_the_same_events_give_the_same_effects(options: dict[str, Any], life: list[Any]) -> None:
    one, other = Driver(**options), Driver(**options)
    live(one, life)
    live(other, life)
    assert one.effects == other.effects
    assert one.run.freeze() == other.run.freeze()


@settings(max_examples=examples(50))
@given(run_settings(), lives)
def test_r6_nothing_follows_a_close(options: dict[str, Any], life: list[Any]) -> None:
    """R6. A closed run forms no further round under any coordinator."""
    driver = Driver(**options)
    driver.manual_commit = False
    driver.close(Outcome.STOPPED)
    driver.take()
    live(driver, life)
    kinds = {type(effect) for _, effect in driver.take()}
    assert kinds <= {do.Refuse, do.StepDown}, kinds
    assert driver.phase is Phase.CLOSED
