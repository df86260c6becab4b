"""The round's store: calls that wait for keys, and barriers."""

import math
import random

import pytest

from rallypoint.core.store import (
    BAD_REQUEST,
    TIMEOUT,
    Add,
    Answer,
    Append,
    Barrier,
    CompareSet,
    DeleteKey,
    Get,
    MultiGet,
    MultiSet,
    Set,
    StoreFailure,
    StoreOp,
    StoreValue,
    Wait,
)
from rallypoint.core.store.store import RoundStore
from tests.core.store_client import StoreClient, failed, ids


class TestWaiting:
    def test_get_waits_until_the_key_exists(self, client: StoreClient) -> None:
        waiting = client.waits(Get("k"))
        done = client.send(Set("k", b"1"), "b")
        assert done == [Answer("b", 2, StoreValue(None)), Answer("a", waiting, StoreValue(b"1"))]

    @pytest.mark.parametrize(
        "op",
        [Add("k", 1), Append("k", b"1"), CompareSet("k", b"", b"1"), MultiSet(("k",), (b"1",))],
    )
    def test_every_kind_of_write_wakes_waits(self, client: StoreClient, op: StoreOp) -> None:
        waiting = client.waits(Get("k"))
        assert client.send(op)[1:] == [Answer("a", waiting, StoreValue(b"1"))]

    def test_all_keys_must_exist_at_once(self, client: StoreClient) -> None:
        client.waits(MultiGet(("x", "y", "x")))
        client.value(Set("x", b"1"))
        client.value(DeleteKey("x"))
        client.value(Set("y", b"2"))
        assert client.send(Set("x", b"3"))[1].result == StoreValue((b"3", b"2", b"3"))

    def test_a_key_deleted_before_the_wait_is_complete_is_missing(
        self, client: StoreClient
    ) -> None:
        client.value(Set("x", b"1"))
        client.waits(Wait(("x", "y")), timeout_s=5)
        client.value(DeleteKey("x"))
        client.value(Set("y", b"2"))
        (answer,) = client.later(5)
        assert failed(answer).missing == ("x",)

    def test_one_multi_set_can_complete_a_wait(self, client: StoreClient) -> None:
        waiting = client.waits(Wait(("x", "y")))
        assert ids(client.send(MultiSet(("y", "x"), (b"", b"")))) == [2, waiting]

    def test_waiters_are_woken_in_order(self, client: StoreClient) -> None:
        waiting = [client.waits(Get("k"), node) for node in "cab"]
        assert ids(client.send(Set("k", b"")))[1:] == waiting

    def test_the_first_deadline_is_right_whichever_waits_were_cancelled(
        self, client: StoreClient
    ) -> None:
        chance = random.Random(7)
        for _ in range(20):
            deadlines_s = [float(number) for number in range(1, 301)]
            chance.shuffle(deadlines_s)
            waits = {
                client.waits(Get("never"), timeout_s=after_s): after_s for after_s in deadlines_s
            }
            for request in chance.sample(list(waits), 250):
                client.store.cancel("a", request)
                del waits[request]
            # One more, at which the cancelled ones are removed.
            last = client.waits(Get("never"), timeout_s=1_000.0)
            assert client.store.next_deadline_s() == client.now_s + min(waits.values())
            for request in (*waits, last):
                client.store.cancel("a", request)

    def test_timeout_names_the_missing_keys(self, client: StoreClient) -> None:
        client.value(Set("b", b""))
        waiting = client.waits(Wait(("a", "b", "c")), timeout_s=2.5)
        assert client.store.next_deadline_s() == 102.5
        assert client.later(2.4) == []
        (answer,) = client.later(0.2)
        assert answer == Answer(
            "a",
            waiting,
            StoreFailure(TIMEOUT, "after 2.5 s: 2 of 3 keys do not exist: a, c", ("a", "c"), 2),
        )
        assert client.store.next_deadline_s() is None

    def test_missing_names_are_bounded(self, client: StoreClient) -> None:
        client.waits(Wait(tuple(f"key{i}" for i in range(100))), timeout_s=1)
        (answer,) = client.later(1)
        assert len(failed(answer).missing) == 8
        assert failed(answer).missing_count == 100
        assert failed(answer).message.endswith("key7 and 92 more")

    def test_a_long_or_unprintable_key_is_shown_short_and_quoted(self, client: StoreClient) -> None:
        client.waits(Wait(("x" * 1000, "a\nb")), timeout_s=1)
        message = failed(client.later(1)[0]).message
        assert message.endswith("x" * 64 + r"..., 'a\nb'")

    def test_an_answered_wait_does_not_time_out(self, client: StoreClient) -> None:
        client.waits(Get("k"), timeout_s=1)
        client.send(Set("k", b""))
        assert client.store.next_deadline_s() is None
        assert client.later(2) == []

    @pytest.mark.parametrize("timeout_s", [None, math.inf])
    def test_without_a_timeout_there_is_no_deadline(
        self, client: StoreClient, timeout_s: float | None
    ) -> None:
        client.waits(Get("k"), timeout_s=timeout_s)
        assert client.store.next_deadline_s() is None

    @pytest.mark.parametrize("timeout_s", [0, -1, -math.inf])
    def test_a_timeout_of_zero_or_less_is_answered_at_once(
        self, client: StoreClient, timeout_s: float
    ) -> None:
        waiting = client.waits(Get("k"), timeout_s=timeout_s)
        assert ids(client.later(0)) == [waiting]

    def test_a_timeout_must_be_a_number(self, client: StoreClient) -> None:
        (answer,) = client.send(Get("k"), timeout_s=math.nan)
        assert failed(answer).code == BAD_REQUEST

    def test_timeouts_come_in_order_of_their_deadlines(self, client: StoreClient) -> None:
        waiting = [client.waits(Get("k"), timeout_s=timeout_s) for timeout_s in (3, 1, 2, 1)]
        assert ids(client.later(5)) == [waiting[i] for i in (1, 3, 2, 0)]

    def test_answered_waits_leave_no_deadlines_behind(self, client: StoreClient) -> None:
        for _ in range(5_000):
            client.waits(Get("k"), timeout_s=1e6)
            client.send(Set("k", b""))
            client.value(DeleteKey("k"))
            client.store.acknowledge("a", client.last_id)
        assert len(client.store._waits._deadlines) < 100

    def test_a_cancelled_wait_is_never_answered(self, client: StoreClient) -> None:
        waiting = client.waits(Get("k"), timeout_s=1)
        client.store.cancel("a", waiting)
        assert client.store.apply("a", waiting, Get("k"), 1, client.now_s) == []
        assert ids(client.send(Set("k", b""))) == [client.last_id]
        assert client.later(2) == []
        assert client.store._waits.by_key == {}

    def test_cancelling_an_unknown_wait_does_nothing(self, client: StoreClient) -> None:
        answers = client.send(Set("k", b"1"))
        client.store.cancel("a", 1)
        client.store.cancel("a", 99)
        client.store.cancel("stranger", 1)
        assert client.store.apply("a", 1, Set("k", b"1"), None, 0.0) == answers


class TestBarrier:
    def test_a_barrier_is_released_when_every_rank_has_arrived(self, client: StoreClient) -> None:
        assert [client.arrive(rank) for rank in (3, 0, 1)] == [[], [], []]
        assert client.arrive(2) == [
            Answer("b", 4, StoreValue(None)),
            Answer("c", 1, StoreValue(None)),
            Answer("a", 2, StoreValue(None)),
            Answer("a", 3, StoreValue(None)),
        ]

    def test_the_name_can_be_used_again_at_once(self, client: StoreClient) -> None:
        for _ in range(3):
            assert [len(client.arrive(rank)) for rank in range(4)] == [0, 0, 0, 4]
        assert client.store.freeze().barriers == ()

    def test_names_are_independent(self, client: StoreClient) -> None:
        client.waits(Barrier("other", 0))
        assert [len(client.arrive(rank)) for rank in range(4)] == [0, 0, 0, 4]
        assert client.store.freeze().barriers == (("other", (0,), ()),)

    def test_timeout_names_who_is_missing(self, client: StoreClient) -> None:
        client.arrive(0, timeout_s=5)
        (answer,) = client.later(5)
        text = "after 5 s: 3 of 4 ranks are not at barrier step: a (rank 1), b, c"
        assert answer.result == StoreFailure(TIMEOUT, text, ("a (rank 1)", "b", "c"), 3)

    def test_a_timeout_names_the_missing_rank_to_all(self, client: StoreClient) -> None:
        for rank in (0, 1, 3):
            client.arrive(rank, timeout_s=5)
            client.now_s += 0.001
        answers = client.later(10)
        assert [failed(answer).missing for answer in answers] == [("b",)] * 3

    def test_the_missing_ranks_are_those_at_that_moment(self, client: StoreClient) -> None:
        first = client.waits(Barrier("step", 0))
        client.arrive(1, timeout_s=1)
        assert failed(client.later(1)[0]).missing == ("b", "c")
        client.arrive(2, timeout_s=1)
        assert failed(client.later(1)[0]).missing == ("c",)
        client.store.cancel("a", first)
        client.arrive(3, timeout_s=1)
        assert failed(client.later(1)[0]).missing == ("a (rank 0)", "a (rank 1)", "b")

    def test_a_cancelled_arrival_is_missing(self, client: StoreClient) -> None:
        first = client.waits(Barrier("step", 0))
        client.arrive(1, timeout_s=1)
        client.arrive(2, timeout_s=2)
        assert failed(client.later(1)[0]).missing == ("c",)
        client.store.cancel("a", first)
        assert failed(client.later(1)[0]).missing == ("a (rank 0)", "c")

    def test_a_rank_that_gave_up_must_arrive_again(self, client: StoreClient) -> None:
        client.arrive(0, timeout_s=1)
        client.arrive(1)
        client.later(1)
        assert [client.arrive(rank) for rank in (2, 3)] == [[], []]
        assert len(client.arrive(0)) == 4

    def test_ranks_that_gave_up_are_missing_even_if_all_came_once(
        self, client: StoreClient
    ) -> None:
        client.arrive(0, timeout_s=1)
        client.arrive(1, timeout_s=9)
        client.later(1)
        client.arrive(2)
        client.arrive(3)
        (answer,) = client.later(9)
        assert (failed(answer).missing, failed(answer).missing_count) == (("a (rank 0)",), 1)

    def test_a_generation_without_waiting_ranks_is_forgotten(self, client: StoreClient) -> None:
        client.arrive(0, timeout_s=1)
        client.later(1)
        client.arrive(1, timeout_s=1)
        assert failed(client.later(1)[0]).missing_count == 3

    def test_a_newer_call_of_a_rank_takes_over(self, client: StoreClient) -> None:
        client.arrive(0, timeout_s=5)
        (answer,) = client.arrive(0)
        assert (answer.request_id, failed(answer).code) == (1, TIMEOUT)
        assert failed(answer).missing == ("a (rank 1)", "b", "c")
        assert client.later(10) == []
        assert [len(client.arrive(rank)) for rank in (1, 2, 3)] == [0, 0, 4]

    def test_a_resend_does_not_take_over(self, client: StoreClient) -> None:
        client.arrive(0)
        assert client.store.apply("a", 1, Barrier("step", 0), None, 0.0) == []
        assert client.store.freeze().barriers == (("step", (0,), ()),)

    def test_a_cancelled_arrival_is_withdrawn(self, client: StoreClient) -> None:
        client.arrive(0)
        client.arrive(1)
        client.store.cancel("a", 1)
        assert [client.arrive(rank) for rank in (2, 3)] == [[], []]
        assert client.store.freeze().barriers == (("step", (1, 2, 3), ()),)

    @pytest.mark.parametrize("rank", [-1, 0, 1, 3, 4])
    def test_a_node_arrives_for_its_own_ranks_only(self, client: StoreClient, rank: int) -> None:
        assert client.failure(Barrier("step", rank), node="b").code == BAD_REQUEST
        assert client.store.freeze().barriers == ()

    def test_a_barrier_of_one_rank_is_released_at_once(self) -> None:
        store = RoundStore([("a", 0, 1)])
        assert store.apply("a", 1, Barrier("", 0), None, 0.0) == [Answer("a", 1, StoreValue(None))]

    def test_missing_ranks_are_bounded(self) -> None:
        store = RoundStore([(f"n{i}", i, 1) for i in range(100)])
        for i in range(50):
            store.apply(f"n{i}", 1, Barrier("b", i), 1.0, 0.0)
        failures = [failed(answer) for answer in store.expire(1.0)]
        assert {f.missing for f in failures} == {tuple(f"n{i}" for i in range(50, 58))}
        assert {f.missing_count for f in failures} == {50}
