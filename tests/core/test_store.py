"""The round's store, one rule at a time: torch's semantics, waiting, barriers, limits, resends."""

import math
import random
from collections.abc import Sequence
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
    StoreLimits,
    StoreOp,
    StoreResult,
    StoreValue,
    Wait,
)
from rallypoint.core.store.store import RoundStore
from rallypoint.core.store.waits import WAITING_KEY_BYTES


class Desk:
    """A store for the nodes a (ranks 0, 1), b (2) and c (3). It numbers the requests."""

    def __init__(self, **limits: int) -> None:
        self.store = RoundStore([("a", 0, 2), ("b", 2, 1), ("c", 3, 1)], StoreLimits(**limits))
        self.now_s = 100.0
        self.last_id = 0

    def send(self, op: StoreOp, node: str = "a", timeout_s: float | None = None) -> list[Answer]:
        self.last_id += 1
        return self.store.apply(node, self.last_id, op, timeout_s, self.now_s)

    def call(self, op: StoreOp, node: str = "a") -> StoreResult:
        """The result of a call that is answered at once, without another answer."""
        (answer,) = self.send(op, node)
        assert (answer.node, answer.request_id) == (node, self.last_id)
        return answer.result

    def value(self, op: StoreOp) -> object:
        result = self.call(op)
        assert isinstance(result, StoreValue), result
        return result.value

    def failure(self, op: StoreOp, node: str = "a") -> StoreFailure:
        result = self.call(op, node)
        assert isinstance(result, StoreFailure), result
        return result

    def waits(self, op: StoreOp, node: str = "a", timeout_s: float | None = None) -> int:
        """Send a call that is not answered yet. Returns its request id."""
        assert self.send(op, node, timeout_s) == []
        return self.last_id

    def arrive(self, rank: int, timeout_s: float | None = None) -> list[Answer]:
        return self.send(Barrier("step", rank), "aabc"[rank], timeout_s)

    def later(self, seconds: float) -> list[Answer]:
        self.now_s += seconds
        return self.store.expire(self.now_s)


def ids(answers: Sequence[Answer]) -> list[int]:
    return [answer.request_id for answer in answers]


def failed(answer: Answer) -> StoreFailure:
    assert isinstance(answer.result, StoreFailure), answer
    return answer.result


@pytest.fixture
def desk() -> Desk:
    return Desk()


class TestOneCall:
    def test_set_then_get(self, desk: Desk) -> None:
        assert desk.value(Set("k", b"1")) is None
        assert desk.value(Get("k")) == b"1"
        desk.value(Set("k", b""))
        assert desk.value(Get("k")) == b""

    def test_add_counts_from_zero_and_leaves_a_decimal(self, desk: Desk) -> None:
        assert [desk.value(Add("n", amount)) for amount in (5, -7, 0)] == [5, -2, -2]
        assert desk.value(Get("n")) == b"-2"

    def test_add_of_zero_makes_the_key(self, desk: Desk) -> None:
        assert desk.value(Add("n", 0)) == 0
        assert desk.value(Check(("n",))) is True

    def test_add_continues_what_was_set(self, desk: Desk) -> None:
        desk.value(MultiSet(("n", "m"), (b"+041", b"")))
        assert desk.value(Add("n", 1)) == 42
        assert desk.value(Add("m", 1)) == 1

    @pytest.mark.parametrize(
        "value", [b"x", b"12x", b" 1", b"1_0", b"1.0", b"9" * 19, b"9" * 10_000, "٣".encode()]
    )
    def test_add_to_what_is_no_integer(self, desk: Desk, value: bytes) -> None:
        desk.value(Set("n", value))
        assert desk.failure(Add("n", 1)).code == NOT_AN_INTEGER
        assert desk.value(Get("n")) == value

    def test_add_beyond_64_bits(self, desk: Desk) -> None:
        desk.value(Add("n", 2**63 - 1))
        assert desk.failure(Add("n", 1)).code == LIMIT
        assert desk.failure(Add("n", 2**63)).code == BAD_REQUEST
        assert desk.value(Get("n")) == b"9223372036854775807"

    def test_compare_set_on_an_absent_key(self, desk: Desk) -> None:
        assert desk.value(CompareSet("k", b"old", b"new")) == b"old"
        assert desk.value(Check(("k",))) is False
        assert desk.value(CompareSet("k", b"", b"new")) == b"new"
        assert desk.value(Get("k")) == b"new"

    def test_compare_set_on_a_present_key(self, desk: Desk) -> None:
        desk.value(Set("k", b"1"))
        assert desk.value(CompareSet("k", b"0", b"2")) == b"1"
        assert desk.value(CompareSet("k", b"", b"2")) == b"1"
        assert desk.value(CompareSet("k", b"1", b"2")) == b"2"
        assert desk.value(Get("k")) == b"2"

    def test_append(self, desk: Desk) -> None:
        for part in (b"a", b"b", b"", b"c"):
            assert desk.value(Append("k", part)) is None
        assert desk.value(Get("k")) == b"abc"
        desk.value(Append("k", b"d"))
        assert desk.value(CompareSet("k", b"abcd", b"e")) == b"e"

    def test_what_was_read_does_not_change_when_more_is_appended(self, desk: Desk) -> None:
        desk.value(Append("k", b"a"))
        read = desk.value(Get("k"))
        desk.value(Append("k", b"b"))
        assert (read, desk.value(Get("k"))) == (b"a", b"ab")

    def test_multi_set_and_multi_get_keep_their_order(self, desk: Desk) -> None:
        assert desk.value(MultiSet(("b", "a", "b"), (b"1", b"2", b"3"))) is None
        assert desk.value(MultiGet(("a", "b", "a"))) == (b"2", b"3", b"2")
        assert desk.value(MultiGet(())) == ()
        assert desk.value(Wait(())) is None

    def test_multi_set_needs_a_value_for_each_key(self, desk: Desk) -> None:
        assert desk.failure(MultiSet(("a", "b"), (b"1",))).code == BAD_REQUEST
        assert desk.value(NumKeys()) == 0

    def test_check_wants_all_keys(self, desk: Desk) -> None:
        desk.value(Set("a", b""))
        assert desk.value(Check(("a",))) is True
        assert desk.value(Check(("a", "b"))) is False
        assert desk.value(Check(())) is True

    def test_delete_key_and_num_keys(self, desk: Desk) -> None:
        desk.value(Set("a", b"1"))
        assert desk.value(NumKeys()) == 1
        assert desk.value(DeleteKey("a")) is True
        assert desk.value(DeleteKey("a")) is False
        assert desk.value(NumKeys()) == 0

    def test_usage_counts_utf8_bytes_of_keys_and_values(self, desk: Desk) -> None:
        desk.value(Set("ä", b"123"))
        desk.value(Append("ä", b"4"))
        desk.value(Append("b", b"5"))
        assert desk.store.usage() == (2, 2 + 4 + 1 + 1)
        desk.value(DeleteKey("ä"))
        assert desk.store.usage() == (1, 2)

    def test_r4_who_is_not_in_the_round_is_not_served(self, desk: Desk) -> None:
        assert desk.failure(Set("k", b"1"), node="stranger").code == BAD_REQUEST
        assert desk.store.usage() == (0, 0)


class TestWaiting:
    def test_get_waits_until_the_key_exists(self, desk: Desk) -> None:
        waiting = desk.waits(Get("k"))
        done = desk.send(Set("k", b"1"), "b")
        assert done == [Answer("b", 2, StoreValue(None)), Answer("a", waiting, StoreValue(b"1"))]

    @pytest.mark.parametrize(
        "op",
        [Add("k", 1), Append("k", b"1"), CompareSet("k", b"", b"1"), MultiSet(("k",), (b"1",))],
    )
    def test_every_write_wakes(self, desk: Desk, op: StoreOp) -> None:
        waiting = desk.waits(Get("k"))
        assert desk.send(op)[1:] == [Answer("a", waiting, StoreValue(b"1"))]

    def test_all_keys_must_exist_at_once(self, desk: Desk) -> None:
        desk.waits(MultiGet(("x", "y", "x")))
        desk.value(Set("x", b"1"))
        desk.value(DeleteKey("x"))
        desk.value(Set("y", b"2"))
        assert desk.send(Set("x", b"3"))[1].result == StoreValue((b"3", b"2", b"3"))

    def test_a_key_that_was_there_before_the_wait_may_go(self, desk: Desk) -> None:
        desk.value(Set("x", b"1"))
        desk.waits(Wait(("x", "y")), timeout_s=5)
        desk.value(DeleteKey("x"))
        desk.value(Set("y", b"2"))
        (answer,) = desk.later(5)
        assert failed(answer).missing == ("x",)

    def test_one_multi_set_can_complete_a_wait(self, desk: Desk) -> None:
        waiting = desk.waits(Wait(("x", "y")))
        assert ids(desk.send(MultiSet(("y", "x"), (b"", b"")))) == [2, waiting]

    def test_waiters_are_woken_in_order(self, desk: Desk) -> None:
        waiting = [desk.waits(Get("k"), node) for node in "cab"]
        assert ids(desk.send(Set("k", b"")))[1:] == waiting

    def test_the_first_deadline_is_known_whichever_waits_were_given_up(self, desk: Desk) -> None:
        chance = random.Random(7)
        for _ in range(20):
            deadlines_s = [float(number) for number in range(1, 301)]
            chance.shuffle(deadlines_s)
            waits = {
                desk.waits(Get("never"), timeout_s=after_s): after_s for after_s in deadlines_s
            }
            for request in chance.sample(list(waits), 250):
                desk.store.cancel("a", request)
                del waits[request]
            # One more, which is when those that were given up are swept out.
            last = desk.waits(Get("never"), timeout_s=1_000.0)
            assert desk.store.next_deadline_s() == desk.now_s + min(waits.values())
            for request in (*waits, last):
                desk.store.cancel("a", request)

    def test_timeout_names_the_missing_keys(self, desk: Desk) -> None:
        desk.value(Set("b", b""))
        waiting = desk.waits(Wait(("a", "b", "c")), timeout_s=2.5)
        assert desk.store.next_deadline_s() == 102.5
        assert desk.later(2.4) == []
        (answer,) = desk.later(0.2)
        assert answer == Answer(
            "a",
            waiting,
            StoreFailure(TIMEOUT, "after 2.5 s: 2 of 3 keys do not exist: a, c", ("a", "c"), 2),
        )
        assert desk.store.next_deadline_s() is None

    def test_missing_names_are_bounded(self, desk: Desk) -> None:
        desk.waits(Wait(tuple(f"key{i}" for i in range(100))), timeout_s=1)
        (answer,) = desk.later(1)
        assert len(failed(answer).missing) == 8
        assert failed(answer).missing_count == 100
        assert failed(answer).message.endswith("key7 and 92 more")

    def test_a_long_or_unprintable_key_is_shown_short_and_quoted(self, desk: Desk) -> None:
        desk.waits(Wait(("x" * 1000, "a\nb")), timeout_s=1)
        message = failed(desk.later(1)[0]).message
        assert message.endswith("x" * 64 + r"..., 'a\nb'")

    def test_an_answered_wait_does_not_time_out(self, desk: Desk) -> None:
        desk.waits(Get("k"), timeout_s=1)
        desk.send(Set("k", b""))
        assert desk.store.next_deadline_s() is None
        assert desk.later(2) == []

    @pytest.mark.parametrize("timeout_s", [None, math.inf])
    def test_without_a_timeout_there_is_no_deadline(
        self, desk: Desk, timeout_s: float | None
    ) -> None:
        desk.waits(Get("k"), timeout_s=timeout_s)
        assert desk.store.next_deadline_s() is None

    @pytest.mark.parametrize("timeout_s", [0, -1, -math.inf])
    def test_no_time_at_all(self, desk: Desk, timeout_s: float) -> None:
        waiting = desk.waits(Get("k"), timeout_s=timeout_s)
        assert ids(desk.later(0)) == [waiting]

    def test_a_timeout_must_be_a_number(self, desk: Desk) -> None:
        (answer,) = desk.send(Get("k"), timeout_s=math.nan)
        assert failed(answer).code == BAD_REQUEST

    def test_timeouts_come_by_deadline(self, desk: Desk) -> None:
        waiting = [desk.waits(Get("k"), timeout_s=timeout_s) for timeout_s in (3, 1, 2, 1)]
        assert ids(desk.later(5)) == [waiting[i] for i in (1, 3, 2, 0)]

    def test_answered_waits_leave_no_deadlines_behind(self, desk: Desk) -> None:
        for _ in range(5_000):
            desk.waits(Get("k"), timeout_s=1e6)
            desk.send(Set("k", b""))
            desk.value(DeleteKey("k"))
            desk.store.acknowledge("a", desk.last_id)
        assert len(desk.store._waits._deadlines) < 100

    def test_cancelled_is_never_answered(self, desk: Desk) -> None:
        waiting = desk.waits(Get("k"), timeout_s=1)
        desk.store.cancel("a", waiting)
        assert desk.store.apply("a", waiting, Get("k"), 1, desk.now_s) == []
        assert ids(desk.send(Set("k", b""))) == [desk.last_id]
        assert desk.later(2) == []
        assert desk.store._waits.by_key == {}

    def test_cancelling_what_does_not_wait_does_nothing(self, desk: Desk) -> None:
        answers = desk.send(Set("k", b"1"))
        desk.store.cancel("a", 1)
        desk.store.cancel("a", 99)
        desk.store.cancel("stranger", 1)
        assert desk.store.apply("a", 1, Set("k", b"1"), None, 0.0) == answers


class TestBarrier:
    def test_releases_when_every_rank_has_come(self, desk: Desk) -> None:
        assert [desk.arrive(rank) for rank in (3, 0, 1)] == [[], [], []]
        assert desk.arrive(2) == [
            Answer("b", 4, StoreValue(None)),
            Answer("c", 1, StoreValue(None)),
            Answer("a", 2, StoreValue(None)),
            Answer("a", 3, StoreValue(None)),
        ]

    def test_the_name_can_be_used_again_at_once(self, desk: Desk) -> None:
        for _ in range(3):
            assert [len(desk.arrive(rank)) for rank in range(4)] == [0, 0, 0, 4]
        assert desk.store.freeze().barriers == ()

    def test_names_are_independent(self, desk: Desk) -> None:
        desk.waits(Barrier("other", 0))
        assert [len(desk.arrive(rank)) for rank in range(4)] == [0, 0, 0, 4]
        assert desk.store.freeze().barriers == (("other", (0,), ()),)

    def test_timeout_names_who_is_missing(self, desk: Desk) -> None:
        desk.arrive(0, timeout_s=5)
        (answer,) = desk.later(5)
        text = "after 5 s: 3 of 4 ranks are not at barrier step: a (rank 1), b, c"
        assert answer.result == StoreFailure(TIMEOUT, text, ("a (rank 1)", "b", "c"), 3)

    def test_all_are_told_of_the_one_that_never_came(self, desk: Desk) -> None:
        for rank in (0, 1, 3):
            desk.arrive(rank, timeout_s=5)
            desk.now_s += 0.001
        answers = desk.later(10)
        assert [failed(answer).missing for answer in answers] == [("b",)] * 3

    def test_the_missing_are_those_of_the_moment(self, desk: Desk) -> None:
        first = desk.waits(Barrier("step", 0))
        desk.arrive(1, timeout_s=1)
        assert failed(desk.later(1)[0]).missing == ("b", "c")
        desk.arrive(2, timeout_s=1)
        assert failed(desk.later(1)[0]).missing == ("c",)
        desk.store.cancel("a", first)
        desk.arrive(3, timeout_s=1)
        assert failed(desk.later(1)[0]).missing == ("a (rank 0)", "a (rank 1)", "b")

    def test_a_cancelled_arrival_is_missing(self, desk: Desk) -> None:
        first = desk.waits(Barrier("step", 0))
        desk.arrive(1, timeout_s=1)
        desk.arrive(2, timeout_s=2)
        assert failed(desk.later(1)[0]).missing == ("c",)
        desk.store.cancel("a", first)
        assert failed(desk.later(1)[0]).missing == ("a (rank 0)", "c")

    def test_who_gave_up_has_to_come_again(self, desk: Desk) -> None:
        desk.arrive(0, timeout_s=1)
        desk.arrive(1)
        desk.later(1)
        assert [desk.arrive(rank) for rank in (2, 3)] == [[], []]
        assert len(desk.arrive(0)) == 4

    def test_when_all_came_once_those_that_gave_up_are_missing(self, desk: Desk) -> None:
        desk.arrive(0, timeout_s=1)
        desk.arrive(1, timeout_s=9)
        desk.later(1)
        desk.arrive(2)
        desk.arrive(3)
        (answer,) = desk.later(9)
        assert (failed(answer).missing, failed(answer).missing_count) == (("a (rank 0)",), 1)

    def test_a_generation_that_all_gave_up_is_forgotten(self, desk: Desk) -> None:
        desk.arrive(0, timeout_s=1)
        desk.later(1)
        desk.arrive(1, timeout_s=1)
        assert failed(desk.later(1)[0]).missing_count == 3

    def test_a_newer_call_of_a_rank_takes_over(self, desk: Desk) -> None:
        desk.arrive(0, timeout_s=5)
        (answer,) = desk.arrive(0)
        assert (answer.request_id, failed(answer).code) == (1, TIMEOUT)
        assert failed(answer).missing == ("a (rank 1)", "b", "c")
        assert desk.later(10) == []
        assert [len(desk.arrive(rank)) for rank in (1, 2, 3)] == [0, 0, 4]

    def test_a_resend_does_not_take_over(self, desk: Desk) -> None:
        desk.arrive(0)
        assert desk.store.apply("a", 1, Barrier("step", 0), None, 0.0) == []
        assert desk.store.freeze().barriers == (("step", (0,), ()),)

    def test_a_cancelled_arrival_is_withdrawn(self, desk: Desk) -> None:
        desk.arrive(0)
        desk.arrive(1)
        desk.store.cancel("a", 1)
        assert [desk.arrive(rank) for rank in (2, 3)] == [[], []]
        assert desk.store.freeze().barriers == (("step", (1, 2, 3), ()),)

    @pytest.mark.parametrize("rank", [-1, 0, 1, 3, 4])
    def test_a_node_comes_for_its_own_ranks_only(self, desk: Desk, rank: int) -> None:
        assert desk.failure(Barrier("step", rank), node="b").code == BAD_REQUEST
        assert desk.store.freeze().barriers == ()

    def test_alone(self) -> None:
        store = RoundStore([("a", 0, 1)])
        assert store.apply("a", 1, Barrier("", 0), None, 0.0) == [Answer("a", 1, StoreValue(None))]

    def test_missing_ranks_are_bounded(self) -> None:
        store = RoundStore([(f"n{i}", i, 1) for i in range(100)])
        for i in range(50):
            store.apply(f"n{i}", 1, Barrier("b", i), 1.0, 0.0)
        failures = [failed(answer) for answer in store.expire(1.0)]
        assert {f.missing for f in failures} == {tuple(f"n{i}" for i in range(50, 58))}
        assert {f.missing_count for f in failures} == {50}


class TestResends:
    def test_r11_a_repeat_is_not_applied_but_answered(self, desk: Desk) -> None:
        first = desk.send(Add("n", 1))
        assert desk.store.apply("a", 1, Add("n", 1), None, 0.0) == first
        assert desk.value(Get("n")) == b"1"

    def test_ids_are_per_node(self, desk: Desk) -> None:
        desk.store.apply("a", 1, Add("n", 1), None, 0.0)
        assert desk.store.apply("b", 1, Add("n", 1), None, 0.0)[0].result == StoreValue(2)

    def test_a_failure_is_remembered_too(self, desk: Desk) -> None:
        desk.waits(Get("k"), timeout_s=1)
        timed_out = desk.later(1)
        desk.send(Set("k", b""))
        assert desk.store.apply("a", 1, Get("k"), 1, desk.now_s) == timed_out

    def test_a_repeat_of_a_wait_does_not_put_off_its_deadline(self, desk: Desk) -> None:
        waiting = desk.waits(Get("k"), timeout_s=5)
        desk.later(4)
        assert desk.store.apply("a", waiting, Get("k"), 5, desk.now_s) == []
        assert ids(desk.later(1)) == [waiting]

    def test_acknowledged_is_never_applied_again(self, desk: Desk) -> None:
        desk.send(Add("n", 1))
        desk.store.acknowledge("a", 1)
        assert desk.store.apply("a", 1, Add("n", 1), None, 0.0) == []
        assert desk.store.apply("a", 0, Add("n", 1), None, 0.0) == []
        assert desk.value(Get("n")) == b"1"

    def test_a_long_wait_stays_open_below_what_is_acknowledged(self, desk: Desk) -> None:
        waiting = desk.waits(Get("k"))
        desk.value(Add("n", 1))
        desk.store.acknowledge("a", 2, still_open=[waiting])
        assert desk.store.apply("a", 2, Add("n", 1), None, 0.0) == []
        (_, woken) = desk.send(Set("k", b"1"))
        assert desk.store.apply("a", waiting, Get("k"), None, 0.0) == [woken]
        desk.store.acknowledge("a", 3)
        assert desk.store.apply("a", waiting, Get("k"), None, 0.0) == []

    def test_what_was_open_and_never_came_can_still_come_once(self, desk: Desk) -> None:
        desk.store.acknowledge("a", 10, still_open=[4, 99])
        first = desk.store.apply("a", 4, Add("n", 1), None, 0.0)
        assert desk.store.apply("a", 4, Add("n", 1), None, 0.0) == first
        desk.store.acknowledge("a", 10)
        assert desk.store.apply("a", 4, Add("n", 1), None, 0.0) == []

    def test_what_is_closed_cannot_be_opened_again(self, desk: Desk) -> None:
        desk.send(Add("n", 1))
        desk.store.acknowledge("a", 1)
        desk.store.acknowledge("a", 2, still_open=[1])
        assert desk.store.apply("a", 1, Add("n", 1), None, 0.0) == []

    def test_a_late_acknowledgement_does_nothing(self, desk: Desk) -> None:
        waiting = desk.waits(Get("k"))
        desk.store.acknowledge("a", 2, still_open=[waiting])
        desk.store.acknowledge("a", 1)
        assert ids(desk.send(Set("k", b""), "b")) == [2, waiting]

    def test_acknowledging_a_wait_withdraws_it(self, desk: Desk) -> None:
        desk.arrive(0)
        desk.store.acknowledge("a", 1)
        assert desk.store.freeze().barriers == ()

    def test_a_new_incarnation_begins_anew(self, desk: Desk) -> None:
        desk.value(Add("n", 1))
        desk.waits(Get("k"), timeout_s=1)
        desk.arrive(0)
        desk.store.forget_node("a")
        picture = desk.store.freeze()
        assert (picture.waiting, picture.barriers) == ((), ())
        assert desk.store.apply("a", 1, Add("n", 1), None, 0.0)[0].result == StoreValue(2)
        assert desk.later(2) == []

    def test_strangers_are_ignored(self, desk: Desk) -> None:
        desk.store.acknowledge("stranger", 5)
        desk.store.forget_node("stranger")


class TestEnd:
    def test_all_waits_are_answered_in_order_and_later_calls_too(self, desk: Desk) -> None:
        desk.arrive(2)
        desk.waits(Get("k"), timeout_s=1)
        desk.arrive(0)
        over = StoreFailure(ROUND_ENDED, "node-3 was lost")
        assert desk.store.end("node-3 was lost") == [
            Answer("b", 1, over),
            Answer("a", 2, over),
            Answer("a", 3, over),
        ]
        assert desk.call(Set("k", b"")) == over
        assert desk.later(5) == []

    def test_the_first_end_counts(self, desk: Desk) -> None:
        desk.store.end("first")
        assert desk.store.end("second") == []
        assert desk.failure(NumKeys()).message == "first"

    def test_earlier_answers_are_still_remembered(self, desk: Desk) -> None:
        done = desk.send(Add("n", 1))
        desk.store.end("over")
        assert desk.store.apply("a", 1, Add("n", 1), None, 0.0) == done

    def test_the_data_is_dropped(self, desk: Desk) -> None:
        desk.value(Set("k", b"1"))
        desk.store.end("over")
        assert desk.store.usage() == (0, 0)


class TestLimits:
    @pytest.mark.parametrize(
        ("limits", "op", "message"),
        [
            ({"key_bytes_max": 3}, Get("ää"), "key_bytes_max is 3, and this call came to 4"),
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

    def test_up_to_a_limit_all_is_well(self) -> None:
        desk = Desk(key_bytes_max=2, value_bytes_max=3, total_bytes_max=5, keys_max=1)
        desk.value(Set("kk", b"123"))
        desk.value(Set("kk", b"321"))
        assert desk.failure(Append("kk", b"4")).code == LIMIT
        assert desk.failure(Set("l", b"")).code == LIMIT
        desk.value(DeleteKey("kk"))
        desk.value(Set("l", b"123"))

    def test_one_key_often_is_one_key(self) -> None:
        desk = Desk(total_bytes_max=2, keys_max=1)
        desk.value(MultiSet(("k", "k", "k"), (b"1", b"2", b"3")))
        assert desk.store.usage() == (1, 2)

    def test_a_value_named_often_makes_a_large_answer(self) -> None:
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


def test_r11_answers_of_another_coordinator_are_forgotten_once_acknowledged() -> None:
    """Also after a takeover: otherwise they would stay until the round ends."""
    before, after = Desk(), Desk()
    before.store.note_settled()
    for _ in range(3):
        before.call(Add("n", 1))
    for settled in before.store.take_settled():
        after.store.redo(settled)
    assert [after.store.remembers("a", number) for number in (1, 2, 3)] == [True, True, True]
    after.store.acknowledge("a", 2)
    assert [after.store.remembers("a", number) for number in (1, 2, 3)] == [False, False, True]
    before.store.acknowledge("a", 2)
    assert after.store.footprint() == before.store.footprint()
