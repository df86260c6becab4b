"""The checker of histories: what it accepts, what it refuses; it agrees with trying all orders."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from rallypoint.simulation.linearizability import Call, explained


def register(state: int, operation: tuple[str, int], result: int | None) -> tuple[bool, int]:
    """A register of a number. ("write", n) gives n; ("read", 0) the state; ("add", n) the sum."""
    kind, value = operation
    after = {"write": value, "read": state, "add": state + value}[kind]
    return result is None or result == after, after


def call(caller: str, began: float, ended: float, kind: str, value: int, result: int) -> Call:
    return Call(caller, began, ended, (kind, value), result)


def test_a_read_after_a_write_sees_it() -> None:
    write = call("a", 0, 1, "write", 5, 5)
    assert explained([write, call("b", 2, 3, "read", 0, 5)], 0, register)
    assert not explained([write, call("b", 2, 3, "read", 0, 0)], 0, register)


def test_a_read_beside_a_write_may_see_both() -> None:
    write = call("a", 0, 3, "write", 5, 5)
    for seen in (0, 5):
        assert explained([write, call("b", 1, 2, "read", 0, seen)], 0, register)


def test_two_reads_do_not_go_back() -> None:
    history = [
        call("a", 0, 9, "write", 5, 5),
        call("b", 1, 2, "read", 0, 5),
        call("b", 3, 4, "read", 0, 0),
    ]
    assert not explained(history, 0, register)


def test_a_call_without_an_answer_may_have_been_applied_late_or_never() -> None:
    lost = Call("a", 0, math.inf, ("add", 5), None)
    assert explained([lost, call("b", 1, 2, "read", 0, 0)], 0, register)
    assert explained([lost, call("b", 1, 2, "read", 0, 5)], 0, register)
    late = [lost, call("b", 1, 2, "read", 0, 0), call("b", 3, 4, "read", 0, 5)]
    assert explained(late, 0, register)
    twice = [lost, call("b", 1, 2, "read", 0, 10)]
    assert not explained(twice, 0, register)


def test_a_sum_is_given_once() -> None:
    history = [call("a", 0, 2, "add", 1, 1), call("b", 0, 2, "add", 1, 1)]
    assert not explained(history, 0, register)


def test_it_says_when_it_does_not_know() -> None:
    history = [call(str(i), 0, 100, "add", 1 << i, 0) for i in range(12)]
    assert explained(history, 0, register, states_max=5) in (None, False)
    reads = [call(str(i), 0, 100, "write", i, i) for i in range(12)]
    impossible = [*reads, call("z", 200, 300, "read", 0, 99)]
    assert explained(impossible, 0, register, states_max=50) is None


def test_many_calls_without_an_answer_do_not_hide_the_order() -> None:
    """Most sets of them lead to the same values."""
    lost = [Call(f"l{i}", 0.1, math.inf, ("write", 10 + i), None) for i in range(20)]
    answered = [
        call("a", 0, 9, "write", 1, 1),
        call("b", 5, 6, "read", 0, 29),
        call("c", 7, 8, "read", 0, 1),
    ]
    assert explained([*answered, *lost], 0, register, states_max=1_000)
    never = call("d", 8.5, 9, "read", 0, 99)
    assert explained([*answered, never, *lost], 0, register, states_max=1_000) is False


def by_all_orders(calls: list[Call]) -> bool:
    known = [each for each in calls if not each.is_unknown]
    unknown = [each for each in calls if each.is_unknown]
    for size in range(len(unknown) + 1):
        for some in itertools.combinations(unknown, size):
            for order in itertools.permutations([*known, *some]):
                later = itertools.combinations(order, 2)
                if any(two.ended_s < one.began_s for one, two in later):
                    continue
                state, holds = 0, True
                for each in order:
                    result = None if each.is_unknown else each.result
                    can_be, state = register(state, each.operation, result)
                    holds = holds and can_be
                if holds:
                    return True
    return False


def only_reads(operation: tuple[str, int], result: int) -> bool:
    return operation[0] == "read"


def test_many_calls_at_a_time_are_explained_soon() -> None:
    """As seed 540: if reads had any place, the search would try all their orders."""
    history = []
    for at in range(0, 60, 3):
        history.append(call(f"w{at}", at, at + 20, "write", at, at))
        reads = (call(f"r{at}{each}", at + each / 10, at + 24, "read", 0, at) for each in range(6))
        history += reads
    assert explained(history, 0, register, states_max=2_000, is_read=only_reads)


@pytest.mark.parametrize("seed", range(300))
def test_it_agrees_with_trying_all_orders(seed: int) -> None:
    draw = random.Random(seed)
    calls = []
    for index in range(draw.randint(1, 6)):
        began = draw.randint(0, 8)
        is_unknown = draw.random() < 0.2
        ended = math.inf if is_unknown else began + draw.randint(0, 6) + 0.5
        operation = (draw.choice(("write", "read", "add")), draw.randint(0, 2))
        result = None if is_unknown else draw.randint(0, 3)
        calls.append(Call(f"node-{index}", began, ended, operation, result))
    expected = by_all_orders(calls)
    assert explained(calls, 0, register) == expected
    assert explained(calls, 0, register, is_read=only_reads) == expected
