"""One worker's side of the agreement on a last step (R14)."""

from __future__ import annotations

import threading

import pytest

from rallypoint.client.step_gate import Pass, StepGate
from rallypoint.errors import UsageError


def gate_at(step: int) -> StepGate:
    gate = StepGate()
    for each in range(step + 1):
        assert gate.enter(each) is Pass.GO_ON
    return gate


def test_before_a_promise_each_step_is_passed() -> None:
    gate = gate_at(3)
    assert gate.enter(3) is Pass.GO_ON
    assert gate.enter(100) is Pass.GO_ON


def test_from_the_promise_on_a_later_step_waits_for_the_decision() -> None:
    gate = gate_at(3)
    assert gate.promise() == 3
    assert gate.enter(3) is Pass.GO_ON
    assert gate.enter(4) is Pass.WAIT
    gate.decide(6)
    assert [gate.enter(step) for step in (4, 5)] == [Pass.GO_ON] * 2
    assert [gate.enter(step) for step in (6, 7)] == [Pass.STOP] * 2


def test_a_program_that_asks_at_some_steps_stops_at_the_first_that_is_not_below() -> None:
    gate = StepGate()
    assert gate.enter(0) is gate.enter(10) is Pass.GO_ON
    gate.promise()
    gate.decide(13)
    assert gate.enter(20) is Pass.STOP


def test_a_promise_and_a_decision_never_change() -> None:
    gate = gate_at(3)
    assert gate.promise() == 3
    gate.decide(5)
    assert gate.enter(4) is Pass.GO_ON
    assert gate.promise() == 3
    gate.decide(9)
    assert gate.enter(5) is Pass.STOP


def test_a_worker_that_has_passed_nothing_promises_nothing() -> None:
    gate = StepGate()
    assert gate.promise() is None
    assert not gate.is_used
    assert gate.enter(7) is Pass.GO_ON
    assert (gate.is_used, gate.promise()) == (True, 7)


def test_a_step_that_goes_backwards_is_an_error_that_says_so() -> None:
    gate = gate_at(3)
    with pytest.raises(UsageError, match=r"should_yield\(2\) after should_yield\(3\)"):
        gate.enter(2)
    assert gate.enter(4) is Pass.GO_ON


@pytest.mark.parametrize("step", [-1, 1.5, "7", None, 2**62])
def test_a_step_is_a_whole_number(step: object) -> None:
    with pytest.raises(UsageError, match="a step is a whole number"):
        StepGate().enter(step)  # type: ignore[arg-type]


def test_no_step_slips_past_a_promise_of_another_thread() -> None:
    """Whatever the moment of the promise, no step above it is passed before the decision."""
    for _ in range(200):
        gate, passed = StepGate(), -1
        promises: list[int | None] = []
        thread = threading.Thread(target=lambda: promises.append(gate.promise()))  # noqa: B023
        gate.enter(0)
        thread.start()
        for step in range(1, 200):
            if gate.enter(step) is Pass.WAIT:
                break
            passed = step
        thread.join()
        assert promises[0] is not None
        if passed < 199:
            assert passed <= promises[0] or passed == -1
