"""R11: a call that is sent again is answered again, and applied once."""

from rallypoint.core.store import (
    Add,
    Get,
    Set,
    StoreValue,
)
from tests.core.store_calls import Desk, ids


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

    def test_an_acknowledged_call_is_never_applied_again(self, desk: Desk) -> None:
        desk.send(Add("n", 1))
        desk.store.acknowledge("a", 1)
        assert desk.store.apply("a", 1, Add("n", 1), None, 0.0) == []
        assert desk.store.apply("a", 0, Add("n", 1), None, 0.0) == []
        assert desk.value(Get("n")) == b"1"

    def test_a_long_wait_stays_open_below_the_acknowledged_ids(self, desk: Desk) -> None:
        waiting = desk.waits(Get("k"))
        desk.value(Add("n", 1))
        desk.store.acknowledge("a", 2, still_open=[waiting])
        assert desk.store.apply("a", 2, Add("n", 1), None, 0.0) == []
        (_, woken) = desk.send(Set("k", b"1"))
        assert desk.store.apply("a", waiting, Get("k"), None, 0.0) == [woken]
        desk.store.acknowledge("a", 3)
        assert desk.store.apply("a", waiting, Get("k"), None, 0.0) == []

    def test_an_open_id_that_never_came_can_come_once(self, desk: Desk) -> None:
        desk.store.acknowledge("a", 10, still_open=[4, 99])
        first = desk.store.apply("a", 4, Add("n", 1), None, 0.0)
        assert desk.store.apply("a", 4, Add("n", 1), None, 0.0) == first
        desk.store.acknowledge("a", 10)
        assert desk.store.apply("a", 4, Add("n", 1), None, 0.0) == []

    def test_a_closed_id_cannot_be_opened_again(self, desk: Desk) -> None:
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

    def test_a_node_outside_the_round_changes_nothing(self, desk: Desk) -> None:
        desk.value(Add("n", 1))
        before = desk.store.freeze()
        desk.store.acknowledge("outside", 5)
        desk.store.forget_node("outside")
        assert desk.store.freeze() == before


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
