"""The limits of a round's store: what is refused changes nothing."""

import pytest

from rallypoint.core.store import (
    LIMIT,
    Add,
    Append,
    Barrier,
    Check,
    CompareSet,
    DeleteKey,
    Get,
    MultiGet,
    MultiSet,
    Set,
    StoreLimits,
    StoreOp,
    StoreValue,
    Wait,
)
from rallypoint.core.store.waits import WAITING_KEY_BYTES
from tests.core.store_calls import Desk, failed


class TestLimits:
    @pytest.mark.parametrize(
        ("limits", "op", "message"),
        [
            ({"key_bytes_max": 3}, Get("ää"), "key_bytes_max is 3, and this call needs 4"),
            ({"key_bytes_max": 3}, Barrier("long", 0), "key_bytes_max is 3"),
            ({"key_bytes_max": 3}, Check(("a", "long")), "key_bytes_max is 3"),
            ({"value_bytes_max": 3}, Set("k", b"1234"), "value_bytes_max is 3"),
            ({"value_bytes_max": 3}, Append("k", b"1234"), "value_bytes_max is 3"),
            ({"value_bytes_max": 3}, CompareSet("k", b"", b"1234"), "value_bytes_max is 3"),
            ({"value_bytes_max": 1}, Add("k", 10), "value_bytes_max is 1"),
            ({"total_bytes_max": 3}, MultiSet(("k", "l"), (b"1", b"2")), "total_bytes_max is 3"),
            ({"keys_max": 1}, MultiSet(("k", "l"), (b"1", b"2")), "keys_max is 1"),
            ({"keys_per_call_max": 2}, Wait(("k", "l", "m")), "keys_per_call_max is 2"),
        ],
    )
    def test_beyond_a_limit_nothing_changes(
        self, limits: dict[str, int], op: StoreOp, message: str
    ) -> None:
        desk = Desk(**limits)
        failure = desk.failure(op)
        assert failure.code == LIMIT
        assert failure.message.startswith(message)
        assert desk.store.usage() == (0, 0)
        assert desk.store.freeze().waiting == ()

    def test_calls_up_to_a_limit_are_applied(self) -> None:
        desk = Desk(key_bytes_max=2, value_bytes_max=3, total_bytes_max=5, keys_max=1)
        desk.value(Set("kk", b"123"))
        desk.value(Set("kk", b"321"))
        assert desk.failure(Append("kk", b"4")).code == LIMIT
        assert desk.failure(Set("l", b"")).code == LIMIT
        desk.value(DeleteKey("kk"))
        desk.value(Set("l", b"123"))

    def test_a_repeated_key_counts_once(self) -> None:
        desk = Desk(total_bytes_max=2, keys_max=1)
        desk.value(MultiSet(("k", "k", "k"), (b"1", b"2", b"3")))
        assert desk.store.usage() == (1, 2)

    def test_a_value_read_often_in_one_call_makes_a_large_answer(self) -> None:
        desk = Desk(answer_bytes_max=10)
        desk.value(Set("k", b"1234"))
        assert desk.failure(MultiGet(("k",) * 3)).code == LIMIT
        desk.waits(MultiGet(("k", "k", "l")))
        assert failed(desk.send(Set("l", b"1234"))[1]).code == LIMIT

    def test_waiting_calls_of_a_node(self) -> None:
        desk = Desk(waiting_calls_per_node_max=1)
        waiting = desk.waits(Get("k"))
        assert desk.failure(Barrier("step", 0)).code == LIMIT
        desk.waits(Get("k"), node="b")
        desk.store.cancel("a", waiting)
        desk.waits(Barrier("step", 0))

    def test_keys_that_a_node_waits_for(self) -> None:
        desk = Desk(waiting_bytes_per_node_max=3 * (1 + WAITING_KEY_BYTES))
        desk.waits(Wait(("k", "l", "m")), timeout_s=1)
        assert desk.failure(Get("n")).code == LIMIT
        desk.later(1)
        desk.waits(Get("n"))

    def test_unacknowledged_calls_of_a_node(self) -> None:
        desk = Desk(unacknowledged_calls_per_node_max=2)
        desk.value(Add("n", 1))
        desk.waits(Get("k"))
        assert desk.failure(Add("n", 1)).code == LIMIT
        desk.store.acknowledge("a", 1)
        assert desk.store.apply("a", 3, Add("n", 1), None, 0.0)[0].result == StoreValue(2)

    def test_unacknowledged_bytes_of_a_node(self) -> None:
        desk = Desk(unacknowledged_bytes_per_node_max=5)
        desk.value(Set("k", b"123"))
        assert [desk.value(Get("k")) for _ in range(2)] == [b"123"] * 2
        assert desk.failure(Get("k")).code == LIMIT
        desk.store.acknowledge("a", 2)
        assert desk.value(Get("k")) == b"123"

    def test_limits_are_positive(self) -> None:
        with pytest.raises(ValueError, match="keys_max must be at least 1, not 0"):
            StoreLimits(keys_max=0)
