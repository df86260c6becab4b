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
from rallypoint.core.store.store import RoundStore
from rallypoint.core.store.waits import WAITING_KEY_BYTES
from tests.core.store_client import StoreClient, failed


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
        client = StoreClient(**limits)
        failure = client.failure(op)
        assert failure.code == LIMIT
        assert failure.message.startswith(message)
        assert client.store.usage() == (0, 0)
        assert client.store.freeze().waiting == ()

    def test_calls_up_to_a_limit_are_applied(self) -> None:
        client = StoreClient(key_bytes_max=2, value_bytes_max=3, total_bytes_max=5, keys_max=1)
        client.value(Set("kk", b"123"))
        client.value(Set("kk", b"321"))
        assert client.failure(Append("kk", b"4")).code == LIMIT
        assert client.failure(Set("l", b"")).code == LIMIT
        client.value(DeleteKey("kk"))
        client.value(Set("l", b"123"))

    def test_a_repeated_key_counts_once(self) -> None:
        client = StoreClient(total_bytes_max=2, keys_max=1)
        client.value(MultiSet(("k", "k", "k"), (b"1", b"2", b"3")))
        assert client.store.usage() == (1, 2)

    def test_a_value_read_often_in_one_call_makes_a_large_answer(self) -> None:
        client = StoreClient(answer_bytes_max=10)
        client.value(Set("k", b"1234"))
        assert client.failure(MultiGet(("k",) * 3)).code == LIMIT
        client.waits(MultiGet(("k", "k", "l")))
        assert failed(client.send(Set("l", b"1234"))[1]).code == LIMIT

    def test_waiting_calls_of_a_node(self) -> None:
        client = StoreClient(waiting_calls_per_node_max=1)
        waiting = client.waits(Get("k"))
        assert client.failure(Barrier("step", 0)).code == LIMIT
        client.waits(Get("k"), node="b")
        client.store.cancel("a", waiting)
        client.waits(Barrier("step", 0))

    def test_keys_that_a_node_waits_for(self) -> None:
        client = StoreClient(waiting_bytes_per_node_max=3 * (1 + WAITING_KEY_BYTES))
        client.waits(Wait(("k", "l", "m")), timeout_s=1)
        assert client.failure(Get("n")).code == LIMIT
        client.later(1)
        client.waits(Get("n"))

    def test_unacknowledged_calls_of_a_node(self) -> None:
        client = StoreClient(unacknowledged_calls_per_node_max=2)
        client.value(Add("n", 1))
        client.waits(Get("k"))
        assert client.failure(Add("n", 1)).code == LIMIT
        client.store.acknowledge("a", 1)
        assert client.store.apply("a", 3, Add("n", 1), None, 0.0)[0].result == StoreValue(2)

    def test_unacknowledged_bytes_of_a_node(self) -> None:
        client = StoreClient(unacknowledged_bytes_per_node_max=5)
        client.value(Set("k", b"123"))
        assert [client.value(Get("k")) for _ in range(2)] == [b"123"] * 2
        assert client.failure(Get("k")).code == LIMIT
        client.store.acknowledge("a", 2)
        assert client.value(Get("k")) == b"123"

    def test_limits_are_positive(self) -> None:
        with pytest.raises(ValueError, match="keys_max must be at least 1, not 0"):
            StoreLimits(keys_max=0)


def test_a_wait_that_has_ended_leaves_no_memory() -> None:
    store = RoundStore([("a", 0, 1)], StoreLimits())

    def wait(request_id: int) -> int:
        """The most bytes of the store while this call waits, until it is withdrawn."""
        store.apply("a", request_id, Wait(("key",)), None, 0.0)
        kept = store.footprint()
        store.cancel("a", request_id)
        store.acknowledge("a", request_id)
        return kept

    first, after = wait(1), store.footprint()
    assert first > after
    assert (wait(2), store.footprint()) == (first, after)
