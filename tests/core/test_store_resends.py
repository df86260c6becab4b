"""R11: a call that is sent again is answered again, and applied once."""

from rallypoint.core.store import (
    Add,
    Get,
    Set,
    StoreValue,
)
from rallypoint.core.store.snapshot import Settled
from rallypoint.core.store.store import REMEMBERED_READ_BYTES_MAX
from tests.core.store_client import StoreClient, ids


class TestResends:
    def test_r11_a_repeat_is_not_applied_but_answered(self, client: StoreClient) -> None:
        first = client.send(Add("n", 1))
        assert client.store.apply("a", 1, Add("n", 1), None, 0.0) == first
        assert client.value(Get("n")) == b"1"

    def test_ids_are_per_node(self, client: StoreClient) -> None:
        client.store.apply("a", 1, Add("n", 1), None, 0.0)
        assert client.store.apply("b", 1, Add("n", 1), None, 0.0)[0].result == StoreValue(2)

    def test_a_failure_is_remembered_too(self, client: StoreClient) -> None:
        client.waits(Get("k"), timeout_s=1)
        timed_out = client.later(1)
        client.send(Set("k", b""))
        assert client.store.apply("a", 1, Get("k"), 1, client.now_s) == timed_out

    def test_a_repeat_of_a_wait_does_not_put_off_its_deadline(self, client: StoreClient) -> None:
        waiting = client.waits(Get("k"), timeout_s=5)
        client.later(4)
        assert client.store.apply("a", waiting, Get("k"), 5, client.now_s) == []
        assert ids(client.later(1)) == [waiting]

    def test_a_repeat_of_a_wait_brings_its_deadline_forward(self, client: StoreClient) -> None:
        # The clock here has stood still for 3 s, as that of a suspended machine does.
        waiting = client.waits(Get("k"), timeout_s=5)
        assert client.store.apply("a", waiting, Get("k"), 2.0, client.now_s) == []
        assert client.store.next_deadline_s() == client.now_s + 2
        (ended,) = client.later(2)
        assert ended.request_id == waiting
        assert ended.result.message.startswith("after 5 s")  # type: ignore[union-attr]
        assert client.store.next_deadline_s() is None

    def test_repeats_with_less_and_less_time_cost_nothing(self, client: StoreClient) -> None:
        waiting = client.waits(Get("k"), timeout_s=1_000)
        for left_s in range(999, 0, -1):
            client.store.apply("a", waiting, Get("k"), float(left_s), client.now_s)
        assert len(client.store._waits._deadlines) < 100
        assert ids(client.later(1)) == [waiting]

    def test_a_long_read_is_answered_again_even_when_a_node_may_send_no_more(self) -> None:
        client = StoreClient(unacknowledged_calls_per_node_max=1)
        long = b"x" * (REMEMBERED_READ_BYTES_MAX + 1)
        client.send(Set("k", long), "b")
        first = client.send(Get("k"))
        assert [each.result for each in first] == [StoreValue(long)]
        assert client.store.apply("a", client.last_id, Get("k"), None, 0.0) == first

    def test_an_acknowledged_call_is_never_applied_again(self, client: StoreClient) -> None:
        client.send(Add("n", 1))
        client.store.acknowledge("a", 1)
        assert client.store.apply("a", 1, Add("n", 1), None, 0.0) == []
        assert client.store.apply("a", 0, Add("n", 1), None, 0.0) == []
        assert client.value(Get("n")) == b"1"

    def test_a_long_wait_stays_open_below_the_acknowledged_ids(self, client: StoreClient) -> None:
        waiting = client.waits(Get("k"))
        client.value(Add("n", 1))
        client.store.acknowledge("a", 2, still_open=[waiting])
        assert client.store.apply("a", 2, Add("n", 1), None, 0.0) == []
        (_, woken) = client.send(Set("k", b"1"))
        assert client.store.apply("a", waiting, Get("k"), None, 0.0) == [woken]
        client.store.acknowledge("a", 3)
        assert client.store.apply("a", waiting, Get("k"), None, 0.0) == []

    def test_an_open_id_that_never_came_can_come_once(self, client: StoreClient) -> None:
        client.store.acknowledge("a", 10, still_open=[4, 99])
        first = client.store.apply("a", 4, Add("n", 1), None, 0.0)
        assert client.store.apply("a", 4, Add("n", 1), None, 0.0) == first
        client.store.acknowledge("a", 10)
        assert client.store.apply("a", 4, Add("n", 1), None, 0.0) == []

    def test_an_open_id_that_never_came_can_be_closed(self, client: StoreClient) -> None:
        client.store.acknowledge("a", 10, still_open=[4])
        client.store.acknowledge("a", 10)
        assert client.store.apply("a", 4, Add("n", 1), None, 0.0) == []

    def test_reads_are_in_no_log_and_in_no_snapshot(self, client: StoreClient) -> None:
        client.store.note_settled()
        client.send(Set("k", b"v"))
        client.send(Get("k"))
        assert [each.request_id for each in client.store.take_settled()] == [1]
        items = client.store.snapshot(1_000)
        assert [each.request_id for each in items if isinstance(each, Settled)] == [1]

    def test_a_closed_id_cannot_be_opened_again(self, client: StoreClient) -> None:
        client.send(Add("n", 1))
        client.store.acknowledge("a", 1)
        client.store.acknowledge("a", 2, still_open=[1])
        assert client.store.apply("a", 1, Add("n", 1), None, 0.0) == []

    def test_a_late_acknowledgement_does_nothing(self, client: StoreClient) -> None:
        waiting = client.waits(Get("k"))
        client.store.acknowledge("a", 2, still_open=[waiting])
        client.store.acknowledge("a", 1)
        assert ids(client.send(Set("k", b""), "b")) == [2, waiting]

    def test_acknowledging_a_wait_withdraws_it(self, client: StoreClient) -> None:
        client.arrive(0)
        client.store.acknowledge("a", 1)
        assert client.store.freeze().barriers == ()

    def test_a_new_incarnation_begins_again(self, client: StoreClient) -> None:
        client.value(Add("n", 1))
        client.waits(Get("k"), timeout_s=1)
        client.arrive(0)
        client.store.forget_node("a")
        picture = client.store.freeze()
        assert (picture.waiting, picture.barriers) == ((), ())
        assert client.store.apply("a", 1, Add("n", 1), None, 0.0)[0].result == StoreValue(2)
        assert client.later(2) == []

    def test_a_node_outside_the_round_changes_nothing(self, client: StoreClient) -> None:
        client.value(Add("n", 1))
        before = client.store.freeze()
        client.store.acknowledge("outside", 5)
        client.store.forget_node("outside")
        assert client.store.freeze() == before


def test_r11_answers_of_another_coordinator_are_forgotten_once_acknowledged() -> None:
    """Also after a takeover: otherwise they would stay until the round ends."""
    before, after = StoreClient(), StoreClient()
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
