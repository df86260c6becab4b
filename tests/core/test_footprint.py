"""The footprint of a round's store, compared with the memory that it really takes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest

from rallypoint.core.store import (
    Append,
    Barrier,
    CompareSet,
    DeleteKey,
    Get,
    MultiGet,
    MultiSet,
    Set,
    StoreOp,
    StoreValue,
    Wait,
)
from rallypoint.core.store.store import CALL_BYTES, REMEMBERED_READ_BYTES_MAX, RoundStore

SEATS = [("a", 0, 1), ("b", 1, 1)]


def keys_and_values(store: RoundStore) -> None:
    for number in range(5_000):
        store.apply("a", number, Set(f"key/{number}", b"%d" % number), None, 0.0)
        store.acknowledge("a", number)


def large_values(store: RoundStore) -> None:
    for number in range(20):
        store.apply("a", number, Set(f"key/{number}", bytes(100_000)), None, 0.0)


def keys_that_are_waited_for(store: RoundStore) -> None:
    for number in range(20):
        keys = tuple(f"{number}/{key}" for key in range(500))
        store.apply("a", number, Wait(keys), 1000.0, 0.0)


def calls_that_wait(store: RoundStore) -> None:
    for number in range(5_000):
        store.apply("a", number, Get(f"key/{number}"), 1000.0 - number / 10, 0.0)


def unacknowledged_answers(store: RoundStore) -> None:
    for number in range(5_000):
        store.apply("a", number, CompareSet("key", b"", bytes(number % 200)), None, 0.0)


def numbers_left_open(store: RoundStore) -> None:
    store.acknowledge("a", 15_000, range(15_000))


KINDS = (
    keys_and_values,
    large_values,
    keys_that_are_waited_for,
    calls_that_wait,
    unacknowledged_answers,
    numbers_left_open,
)


@pytest.mark.parametrize("fill", KINDS, ids=lambda fill: fill.__name__)
def test_the_footprint_matches_the_memory_used(fill: Callable[[RoundStore], None]) -> None:
    """Too low a figure would not limit the process. Much too high a figure would refuse calls."""
    fill(RoundStore(SEATS))  # what is made once
    store = RoundStore(SEATS)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        fill(store)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.6 * store.footprint() < taken < 1.1 * store.footprint()


def test_everything_is_released_at_the_end() -> None:
    store = RoundStore(SEATS)
    for number, fill in enumerate(KINDS[:-1]):
        fill(store)
        store.acknowledge("a", 10_000)
        store.forget_node("a")
        assert store.footprint() >= 0, number
    for number, (key, _) in enumerate(store.freeze().data):
        store.apply("a", number, DeleteKey(key), None, 0.0)
    store.forget_node("a")
    assert store.footprint() == 0


@pytest.mark.parametrize(
    "op",
    [
        Set("new", b"x" * 100),
        Set("old", b"x" * 100),
        Append("old", b"x" * 100),
        CompareSet("old", b"12345", b"x" * 100),
        CompareSet("old", b"else", b"x" * 100),
        MultiSet(("old", "new", "new"), (b"", b"1", b"22")),
        DeleteKey("old"),
        Get("old"),
        Get("new"),
        Wait(("old", "new", "newer")),
        MultiGet(("old", "old")),
        Barrier("step", 0),
    ],
)
def test_the_size_of_a_call_is_known_beforehand(op: StoreOp) -> None:
    store = RoundStore(SEATS)
    store.apply("a", 1, Set("old", b"12345"), None, 0.0)
    store.apply("a", 2, Get("nothing"), None, 0.0)
    store.acknowledge("a", 2, (2, 3))
    before, growth = store.footprint(), store.growth_of(op)
    picture = store.freeze()
    assert store.growth_of(op) == growth
    assert store.freeze() == picture
    store.apply("a", 3, op, 5.0, 0.0)
    store.acknowledge("b", 0)
    # It is not acknowledged, and a small answer is remembered.
    assert store.footprint() - before <= growth + CALL_BYTES + REMEMBERED_READ_BYTES_MAX
    assert store.footprint() - before >= min(growth, 0)


def test_a_large_read_is_repeated_and_a_small_one_remembered() -> None:
    """R11 is about calls that change the store. A large read must not keep an overwritten value."""
    store = RoundStore(SEATS)
    store.apply("a", 1, MultiSet(("large", "small"), (bytes(4096), b"1")), None, 0.0)
    store.acknowledge("a", 1)
    kept = store.footprint()
    for number in range(2, 52):
        store.apply("a", number, Get("large"), None, 0.0)
        store.apply("b", number, Set("large", b"%d" % number * 2048), None, 0.0)
        store.acknowledge("b", number)
    store.apply("a", 60, Get("small"), None, 0.0)
    assert store.footprint() < kept + 50 * 500
    store.apply("b", 60, MultiSet(("large", "small"), (b"new" * 1000, b"2")), None, 0.0)
    assert store.remembers("a", 2)
    assert [a.result for a in store.apply("a", 2, Get("large"), None, 0.0)] == [
        StoreValue(b"new" * 1000)
    ]
    assert [a.result for a in store.apply("a", 60, Get("small"), None, 0.0)] == [StoreValue(b"1")]
    store.acknowledge("a", 60)
    assert store.apply("a", 2, Get("large"), None, 0.0) == []


def test_a_repeated_large_read_may_wait() -> None:
    store = RoundStore(SEATS)
    store.apply("a", 1, Set("large", bytes(4096)), None, 0.0)
    store.apply("a", 2, Get("large"), None, 0.0)
    store.apply("b", 1, DeleteKey("large"), None, 0.0)
    assert store.apply("a", 2, Get("large"), None, 0.0) == []
    assert store.apply("a", 2, Get("large"), None, 0.0) == []
    (_, answer) = store.apply("b", 2, Set("large", b"back"), None, 0.0)
    assert (answer.node, answer.request_id, answer.result) == ("a", 2, StoreValue(b"back"))
    store.acknowledge("a", 2)
    store.acknowledge("b", 2)
