"""Whether a history of calls can be explained by one order of them.

A history is linearizable if each call can be given one moment between its begin and its end, so
that all results are those of a single copy to which the calls were applied in that order. A call
whose outcome nobody learned has no end: it may have been applied at any later moment, or never.

The algorithm is that of Wing and Gong with Lowe's memory of states already seen, as in porcupine.
Histories are checked key by key: linearizability of each key is linearizability of all
(Herlihy and Wing, 1990).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, Generic, TypeVar

from rallypoint.core.values import FrozenStruct

State = TypeVar("State", bound=Hashable)
Step = Callable[[State, Any, Any], tuple[bool, State]]
"""(state, operation, result) to: whether the result can be, and the state after it.

`result` is None for a call whose outcome is unknown: then anything can be."""


IsRead = Callable[[Any, Any], bool]


class Call(FrozenStruct, frozen=True):
    """One call. `began_s` and `ended_s` are the world's time; `ended_s` is infinite if unknown."""

    caller: str
    began_s: float
    ended_s: float
    operation: Any
    result: Any

    @property
    def is_unknown(self) -> bool:
        """Whether nobody learned what became of it."""
        return math.isinf(self.ended_s)


class _Entry:
    """The begin or the end of a call, in a list that is doubly linked by hand: O(1) to lift out."""

    __slots__ = ("before", "call", "index", "match", "next")

    def __init__(self, call: Call | None, index: int) -> None:
        self.call = call
        self.index = index
        self.match: _Entry | None = None
        """The end of a begin; None for an end."""
        self.next: _Entry | None = None
        self.before: _Entry | None = None


def _entries(calls: Sequence[Call]) -> _Entry:
    """The head of the list: begins and ends in the order of time, begins first at the same time."""
    marks: list[tuple[float, int, int, _Entry]] = []
    for index, call in enumerate(calls):
        begin, end = _Entry(call, index), _Entry(None, index)
        begin.match = end
        marks.append((call.began_s, 0, index, begin))
        marks.append((call.ended_s, 1, index, end))
    marks.sort(key=lambda mark: mark[:3])
    head = last = _Entry(None, -1)
    for *_, entry in marks:
        last.next, entry.before = entry, last
        last = entry
    return head


def _lift(entry: _Entry) -> None:
    """Take a begin and its end out of the list."""
    for each in (entry, entry.match):
        assert each is not None
        assert each.before is not None
        each.before.next = each.next
        if each.next is not None:
            each.next.before = each.before


def _unlift(entry: _Entry) -> None:
    """Undo the last `_lift`."""
    for each in (entry.match, entry):
        assert each is not None
        assert each.before is not None
        each.before.next = each
        if each.next is not None:
            each.next.before = each


WORK_MAX: Final = 20
"""So much work may each place cost, on average, before a search is too long."""


class _Seen(Generic[State]):
    """Where the search has been: by which calls it came to a state.

    Calls with an unknown outcome need not have a place in the order. So what follows after some of
    them can follow after fewer, too, if the state and the calls with an outcome are the same.
    """

    def __init__(self) -> None:
        self.count = 0
        self.work = 0
        """How many choices were found, and sets compared: with many unknown calls, far more than
        places.
        """
        self._places: dict[tuple[int, State], dict[int, int]] = {}
        """For the known calls and the state: sets of unknown calls, each with the last limit."""

    def is_new(self, known: int, state: State, unknown: int, limit: int) -> bool:
        """Whether this was not seen with this limit, nor with fewer unknown calls. Sets are bits.

        With a lower limit, fewer calls were left to try after the same set, but not after a
        smaller one.
        """
        places = self._places.get((known, state), {})
        self.work += 1 + len(places)
        return not any(
            each & unknown == each and (each != unknown or last == limit)
            for each, last in places.items()
        )

    def add(self, known: int, state: State, unknown: int, limit: int) -> None:
        """It is searched now, with this limit."""
        self._places.setdefault((known, state), {})[unknown] = limit
        self.count += 1


def explained(
    calls: Sequence[Call],
    initial: State,
    step: Step[State],
    *,
    states_max: int = 1_000_000,
    is_read: IsRead = lambda operation, result: False,
) -> bool | None:
    """Whether one order explains all results. None if `states_max` states were not enough to say.

    `calls`: of one key. Calls with an unknown outcome need not have a place in the order. Orders
    with few of them are tried first, because each of them multiplies the others. `is_read`:
    whether an operation with this result has changed nothing, whatever was there before.
    """
    seen: _Seen[State] = _Seen()
    unknown = sum(call.is_unknown for call in calls)
    for limit in range(unknown + 1):
        found, is_cut = _search(calls, initial, step, limit, seen, states_max, is_read)
        if found is not False or not is_cut:
            return found
    return False


def _search(
    calls: Sequence[Call],
    initial: State,
    step: Step[State],
    limit: int,
    seen: _Seen[State],
    states_max: int,
    is_read: IsRead,
) -> tuple[bool | None, bool]:
    """Look for an order with at most `limit` unknown calls; and whether the limit mattered."""
    head = _entries(calls)
    done, is_cut = 0, False
    must = sum(1 << index for index, call in enumerate(calls) if not call.is_unknown)
    state = initial
    placed: list[tuple[_Entry, State, list[_Entry]]] = []
    """The calls in their order, with the state before each, and the other choices in its place."""
    choices = _next(head, state, step, is_read)
    while done & must != must:
        while not choices:  # The last choice was wrong.
            if not placed:
                return False, is_cut
            entry, state, choices = placed.pop()
            done &= ~(1 << entry.index)
            _unlift(entry)
        entry = choices.pop()
        can_be, after = _applied(entry, state, step)
        now = done | 1 << entry.index
        place = (now & must, after, now & ~must, limit)
        if seen.count >= states_max or seen.work >= WORK_MAX * states_max:
            return None, is_cut
        if not can_be or not seen.is_new(*place):
            continue
        if place[2].bit_count() > limit:
            is_cut = True
            continue
        seen.add(*place)
        placed.append((entry, state, choices))
        state, done = after, now
        _lift(entry)
        choices = _next(head, state, step, is_read)
        seen.work += len(choices)
    return True, is_cut


def _next(head: _Entry, state: State, step: Step[State], is_read: IsRead) -> list[_Entry]:
    """The calls that may come next, the best last: those that end soonest.

    A read that can be here is the only choice: if it fits later, it fits here, too.
    """
    found: list[_Entry] = []
    entry = head.next
    while entry is not None and entry.match is not None:
        assert entry.call is not None
        call = entry.call
        is_known_read = not call.is_unknown and is_read(call.operation, call.result)
        if is_known_read and _applied(entry, state, step)[0]:
            return [entry]
        found.append(entry)
        entry = entry.next
    found.sort(key=lambda each: each.call.ended_s if each.call else 0.0, reverse=True)
    return found


def _applied(entry: _Entry, state: State, step: Step[State]) -> tuple[bool, State]:
    call = entry.call
    assert call is not None
    return step(state, call.operation, None if call.is_unknown else call.result)
