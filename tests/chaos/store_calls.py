"""What must hold for all calls of a round's store that workers have written down (worker.py).

The simulator judges its calls by the same model: rallypoint.simulation.store_history. What must not
be here: which calls a worker makes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from rallypoint.core.store import Barrier, StoreOp, StoreValue
from rallypoint.simulation.linearizability import Call, explained
from rallypoint.simulation.store_history import NOTHING, family, is_free, shown, step
from tests.failover.records import Story

STATES_MAX: Final = 300_000
"""How long to look for an order of one key's calls."""
CALLS_SHOWN: Final = 40
Value = bytes | int | bool | tuple[bytes, ...] | None


def check(stories: list[Story]) -> tuple[int, int]:
    """Raises AssertionError, which begins with the rule.

    Returns how many calls were answered, and how many keys have too many calls to decide.
    """
    barriers_meet(stories)
    by_key: dict[tuple[int, str], list[Call]] = defaultdict(list)
    for number, call in _calls(stories):
        if not isinstance(call.operation, Barrier) and not is_free(call):
            by_key[number, family(call.operation)].append(call)
    undecided = 0
    for (number, key), calls in by_key.items():
        found = explained(calls, NOTHING, step, states_max=STATES_MAX)
        undecided += found is None
        if found is False:
            told = "; ".join(map(shown, _shortest(calls)))
            raise AssertionError(f"R10/R11: round {number}, key {key}: no order explains {told}")
    return sum(len(story.of("answered")) for story in stories), undecided


def barriers_meet(stories: Iterable[Story]) -> None:
    """R10: nobody has passed a barrier before every rank of the round has come to it."""
    told = list(stories)
    sizes = {each["round"]: each["size"] for story in told for each in story.of("working")}
    came: dict[tuple[int, str], dict[int, float]] = defaultdict(dict)
    passed: list[tuple[float, str, int, Barrier]] = []
    for number, call in _calls(told):
        if isinstance(call.operation, Barrier):
            first = came[number, call.operation.name]
            rank = call.operation.rank
            first[rank] = min(first.get(rank, math.inf), call.began_s)
            if not call.is_unknown:
                passed.append((call.ended_s, call.caller, number, call.operation))
    for ended_s, who, number, barrier in passed:
        there = sorted(rank for rank, at_s in came[number, barrier.name].items() if at_s <= ended_s)
        assert there == list(range(sizes[number])), (
            f"R10: {who} has passed {barrier.name} of round {number} with ranks {there} "
            f"of {sizes[number]}"
        )


def _calls(stories: Iterable[Story]) -> Iterator[tuple[int, Call]]:
    """Each call with the number of its round."""
    for story in stories:
        answers = {call_of(each): each for each in story.of("answered")}
        for each in story.of("called"):
            answer = answers.get(call_of(each))
            ended_s, result = math.inf, None
            if answer is not None:
                ended_s = answer["at_s"]
                result = StoreValue(msgspec.convert(answer["result"], Value))
            operation = msgspec.convert(each["operation"], StoreOp)
            yield each["round"], Call(story.node, each["at_s"], ended_s, operation, result)


def call_of(event: dict[str, Any]) -> tuple[int, int, int]:
    """Which call this line is of, among those of one file."""
    return event["round"], event["pid"], event["call"]


def _shortest(calls: list[Call]) -> list[Call]:
    """The calls up to the first answer that nothing explains, and of these the last ones."""
    ends = sorted(each.ended_s for each in calls if not each.is_unknown)
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        if explained(_until(calls, ends[middle]), NOTHING, step, states_max=STATES_MAX) is False:
            high = middle
        else:
            low = middle + 1
    return sorted(_until(calls, ends[low]), key=lambda each: each.began_s)[-CALLS_SHOWN:]


def _until(calls: list[Call], at_s: float) -> list[Call]:
    """What was known at this time: later answers are not, and later calls were not made."""
    return [
        each if each.ended_s <= at_s else msgspec.structs.replace(each, ended_s=math.inf)
        for each in calls
        if each.began_s <= at_s
    ]
