"""The round's store, one rule at a time: torch's semantics, its end, and its values on the wire."""

from typing import get_args

import msgspec
import pytest

from rallypoint.core.store import (
    BAD_REQUEST,
    LIMIT,
    NOT_AN_INTEGER,
    ROUND_ENDED,
    TIMEOUT,
    Add,
    Answer,
    Append,
    Barrier,
    Check,
    CompareSet,
    DeleteKey,
    Get,
    MultiGet,
    MultiSet,
    NumKeys,
    Set,
    StoreFailure,
    StoreOp,
    StoreResult,
    StoreValue,
    Wait,
)
from rallypoint.core.store.store import RoundStore
from tests.core.store_client import StoreClient


class TestOneCall:
    def test_set_then_get(self, client: StoreClient) -> None:
        assert client.value(Set("k", b"1")) is None
        assert client.value(Get("k")) == b"1"
        client.value(Set("k", b""))
        assert client.value(Get("k")) == b""

    def test_add_counts_from_zero_and_leaves_a_decimal(self, client: StoreClient) -> None:
        assert [client.value(Add("n", amount)) for amount in (5, -7, 0)] == [5, -2, -2]
        assert client.value(Get("n")) == b"-2"

    def test_add_of_zero_makes_the_key(self, client: StoreClient) -> None:
        assert client.value(Add("n", 0)) == 0
        assert client.value(Check(("n",))) is True

    def test_add_continues_what_was_set(self, client: StoreClient) -> None:
        client.value(MultiSet(("n", "m"), (b"+041", b"")))
        assert client.value(Add("n", 1)) == 42
        assert client.value(Add("m", 1)) == 1

    @pytest.mark.parametrize(
        "value", [b"x", b"12x", b" 1", b"1_0", b"1.0", b"9" * 19, b"9" * 10_000, "٣".encode()]
    )
    def test_add_to_a_value_that_is_no_integer_fails(
        self, client: StoreClient, value: bytes
    ) -> None:
        client.value(Set("n", value))
        assert client.failure(Add("n", 1)).code == NOT_AN_INTEGER
        assert client.value(Get("n")) == value

    def test_add_beyond_64_bits(self, client: StoreClient) -> None:
        client.value(Add("n", 2**63 - 1))
        assert client.failure(Add("n", 1)).code == LIMIT
        assert client.failure(Add("n", 2**63)).code == BAD_REQUEST
        assert client.value(Get("n")) == b"9223372036854775807"

    def test_compare_set_on_an_absent_key(self, client: StoreClient) -> None:
        assert client.value(CompareSet("k", b"old", b"new")) == b"old"
        assert client.value(Check(("k",))) is False
        assert client.value(CompareSet("k", b"", b"new")) == b"new"
        assert client.value(Get("k")) == b"new"

    def test_compare_set_on_a_present_key(self, client: StoreClient) -> None:
        client.value(Set("k", b"1"))
        assert client.value(CompareSet("k", b"0", b"2")) == b"1"
        assert client.value(CompareSet("k", b"", b"2")) == b"1"
        assert client.value(CompareSet("k", b"1", b"2")) == b"2"
        assert client.value(Get("k")) == b"2"

    def test_append_extends_a_value(self, client: StoreClient) -> None:
        for part in (b"a", b"b", b"", b"c"):
            assert client.value(Append("k", part)) is None
        assert client.value(Get("k")) == b"abc"
        client.value(Append("k", b"d"))
        assert client.value(CompareSet("k", b"abcd", b"e")) == b"e"

    def test_a_value_that_was_read_does_not_change_on_append(self, client: StoreClient) -> None:
        client.value(Append("k", b"a"))
        read = client.value(Get("k"))
        client.value(Append("k", b"b"))
        assert (read, client.value(Get("k"))) == (b"a", b"ab")

    def test_multi_set_and_multi_get_keep_their_order(self, client: StoreClient) -> None:
        assert client.value(MultiSet(("b", "a", "b"), (b"1", b"2", b"3"))) is None
        assert client.value(MultiGet(("a", "b", "a"))) == (b"2", b"3", b"2")
        assert client.value(MultiGet(())) == ()
        assert client.value(Wait(())) is None

    def test_multi_set_needs_a_value_for_each_key(self, client: StoreClient) -> None:
        assert client.failure(MultiSet(("a", "b"), (b"1",))).code == BAD_REQUEST
        assert client.value(NumKeys()) == 0

    def test_check_is_true_only_with_all_keys(self, client: StoreClient) -> None:
        client.value(Set("a", b""))
        assert client.value(Check(("a",))) is True
        assert client.value(Check(("a", "b"))) is False
        assert client.value(Check(())) is True

    def test_delete_key_and_num_keys_work(self, client: StoreClient) -> None:
        client.value(Set("a", b"1"))
        assert client.value(NumKeys()) == 1
        assert client.value(DeleteKey("a")) is True
        assert client.value(DeleteKey("a")) is False
        assert client.value(NumKeys()) == 0

    def test_usage_counts_utf8_bytes_of_keys_and_values(self, client: StoreClient) -> None:
        client.value(Set("ä", b"123"))
        client.value(Append("ä", b"4"))
        client.value(Append("b", b"5"))
        assert client.store.usage() == (2, 2 + 4 + 1 + 1)
        client.value(DeleteKey("ä"))
        assert client.store.usage() == (1, 2)

    def test_r4_only_members_of_the_round_are_served(self, client: StoreClient) -> None:
        assert client.failure(Set("k", b"1"), node="stranger").code == BAD_REQUEST
        assert client.store.usage() == (0, 0)


class TestEnd:
    def test_the_end_answers_all_waits_in_order_and_later_calls(self, client: StoreClient) -> None:
        client.arrive(2)
        client.waits(Get("k"), timeout_s=1)
        client.arrive(0)
        over = StoreFailure(ROUND_ENDED, "node-3 was lost")
        assert client.store.end("node-3 was lost") == [
            Answer("b", 1, over),
            Answer("a", 2, over),
            Answer("a", 3, over),
        ]
        assert client.call(Set("k", b"")) == over
        assert client.later(5) == []

    def test_the_first_end_of_a_store_counts(self, client: StoreClient) -> None:
        client.store.end("first")
        assert client.store.end("second") == []
        assert client.failure(NumKeys()).message == "first"

    def test_earlier_answers_are_still_remembered(self, client: StoreClient) -> None:
        done = client.send(Add("n", 1))
        client.store.end("over")
        assert client.store.apply("a", 1, Add("n", 1), None, 0.0) == done

    def test_the_end_drops_the_data(self, client: StoreClient) -> None:
        client.value(Set("k", b"1"))
        client.store.end("over")
        assert client.store.usage() == (0, 0)


@pytest.mark.parametrize(
    "seats",
    [
        [("a", 1, 1)],
        [("a", 0, 2), ("b", 1, 1)],
        [("a", 0, 1), ("b", 2, 1)],
        [("a", 0, 0)],
        [("a", 0, 1), ("a", 1, 1)],
    ],
)
def test_r3_seats_cover_each_rank_once(seats: list[tuple[str, int, int]]) -> None:
    with pytest.raises(ValueError, match="seat"):
        RoundStore(seats)


@pytest.mark.parametrize(
    "op",
    [
        Set("k", b"\0"),
        Get("k"),
        Add("k", -1),
        CompareSet("k", b"", b"1"),
        Append("k", b"1"),
        Wait(("k", "l")),
        Check(()),
        MultiGet(("k",)),
        MultiSet(("k",), (b"1",)),
        DeleteKey("k"),
        NumKeys(),
        Barrier("b", 3),
    ],
)
def test_r12_a_call_travels_as_a_small_typed_array(op: StoreOp) -> None:
    packed = msgspec.msgpack.encode(op)
    assert msgspec.msgpack.decode(packed, type=StoreOp) == op
    assert msgspec.msgpack.decode(packed)[0] == op.__struct_config__.tag
    assert len(packed) < 20


@pytest.mark.parametrize(
    "result",
    [
        *(StoreValue(value) for value in (b"1", 1, True, (b"1", b""), None)),
        StoreFailure(TIMEOUT, "late", ("k",), 1),
    ],
)
def test_r12_an_answer_travels_as_it_is(result: StoreResult) -> None:
    answer = Answer("a", 7, result)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(answer), type=Answer)
    assert again == answer
    if isinstance(result, StoreValue):
        assert isinstance(again.result, StoreValue)
        assert type(again.result.value) is type(result.value)


def test_every_call_has_a_tag_of_its_own() -> None:
    tags = [op.__struct_config__.tag for op in get_args(StoreOp)]
    assert len(set(tags)) == 12
