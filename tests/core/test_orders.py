"""What operators order, and that it holds under any coordinator and with any neighbours."""

from __future__ import annotations

import msgspec
import pytest

from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.orders import ORDERS_BYTES_MAX, Orders, Scale, order
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.values import NodeId, Phase, RunSettings
from tests.core.driver import Driver, node_id
from tests.core.test_properties import a_round_is_formed, heal
from tests.core.walks import EVICTED, NAMES, walk
from tests.kinds import seeds

A = NodeId("a", 1)


def kinds(driver: Driver, kind: type) -> list[do.Effect]:
    return [effect for _, effect in driver.take() if isinstance(effect, kind)]


def met(*, manual_marks: bool = True) -> Driver:
    driver = Driver(min=2, max=3, manual_marks=manual_marks)
    driver.join("a", "b", "c")
    driver.take()
    return driver


def test_r5_a_node_is_asked_when_the_ledger_has_the_drain() -> None:
    driver = met()
    driver.drain("a")
    assert not kinds(driver, do.AskToLeave)
    assert driver.run.orders_written.drain_of(A) is None
    driver.marks_written()
    assert kinds(driver, do.AskToLeave)
    assert driver.run.orders_written.drain_of(A) is not None


def test_r5_a_successor_asks_a_drained_node_again() -> None:
    driver = met()
    driver.drain("a")
    driver.marks_written()
    driver.fail_over()
    driver.take()
    driver.attach("b", "a")
    (asked,) = kinds(driver, do.AskToLeave)
    assert isinstance(asked, do.AskToLeave)
    assert (asked.order.node, asked.is_repeat) == (A, True)


def test_r5_a_successor_knows_nothing_of_a_drain_that_was_not_written() -> None:
    driver = met()
    driver.drain("a")
    driver.fail_over()
    driver.take()
    driver.attach("a")
    assert not kinds(driver, do.AskToLeave)


def test_a_drain_while_a_round_is_written_is_told_after_its_own_write() -> None:
    driver = Driver(min=2, max=2, manual_marks=True, manual_commit=True)
    driver.join("a", "b")
    driver.drain("a")
    driver.commit()
    assert driver.phase is Phase.ACTIVE
    assert not kinds(driver, do.AskToLeave)
    driver.marks_written()
    assert kinds(driver, do.AskToLeave)


def test_a_drain_before_the_first_round_is_written() -> None:
    driver = Driver(min=2, max=2, manual_marks=True)
    driver.attach("a")
    driver.drain("a")
    driver.marks_written()
    assert kinds(driver, do.AskToLeave)
    assert driver.register.orders.drain_of(A) is not None


def test_a_node_that_left_in_order_leaves_no_drain_behind() -> None:
    driver = met(manual_marks=False)
    driver.drain("a")
    driver.depart("a")
    driver.leave("a")
    assert driver.run.orders.drains == ()


def test_a_node_that_was_lost_while_it_was_drained_is_asked_when_it_is_back() -> None:
    driver = met(manual_marks=False)
    driver.drain("a")
    driver.die("a")
    driver.take()
    driver.attach("a")
    assert kinds(driver, do.AskToLeave)


@pytest.mark.parametrize("is_written", [True, False])
def test_r4_an_evicted_node_is_refused_by_a_successor_that_knows_of_it(is_written: bool) -> None:
    driver = met()
    driver.evict("a")
    if is_written:
        driver.marks_written()
    driver.fail_over()
    driver.take()
    driver.attach("a")
    refused = kinds(driver, do.Refuse)
    assert bool(refused) is is_written


def test_r4_an_eviction_counts_for_each_start_of_the_name() -> None:
    driver = met(manual_marks=False)
    driver.attach("a'")
    driver.evict("a")
    refused = kinds(driver, do.Refuse)
    assert [each.refusal.code for each in refused if isinstance(each, do.Refuse)] == [
        RefusalCode.EVICTED
    ]
    assert driver.run.roster.get("a") is None


def test_r11_the_first_eviction_of_a_name_counts() -> None:
    driver = met(manual_marks=False)
    driver.evict("a", reason="first")
    driver.evict("a", reason="second")
    assert [each.reason for each in driver.run.orders.evictions] == ["first"]
    assert [each.reason for each in driver.register.orders.evictions] == ["first"]


def test_r1_the_next_round_is_written_with_the_orders() -> None:
    driver = met(manual_marks=False)
    driver.evict("a")
    driver.scale(1, 2)
    driver.drain("b")
    driver.advance(1.0)  # The ledger is written once in each settle time.
    orders = driver.register.orders
    driver.ready("b", "c")
    driver.advance(1.0)
    assert driver.run.number == 2
    assert driver.register.orders == orders == driver.run.orders
    assert (len(orders.drains), len(orders.evictions)) == (1, 1)


def test_r11_a_repeated_scale_changes_nothing() -> None:
    driver = met(manual_marks=False)
    driver.scale(1, 2)
    driver.take()
    driver.scale(1, 2)
    assert driver.take() == []


def test_r12_an_eviction_without_room_is_not_taken() -> None:
    driver = met(manual_marks=False)
    for count in range(100):
        driver.evict(f"n{count}", reason="x" * 300)
    assert len(driver.run.orders.evictions) < 100
    assert len(msgspec.msgpack.encode(driver.run.orders)) <= ORDERS_BYTES_MAX


@pytest.mark.parametrize(("most", "is_begun"), [(1, False), (2, True), (3, True)])
def test_r3_only_a_round_that_is_too_large_is_not_begun(most: int, is_begun: bool) -> None:
    driver = Driver(min=1, max=2, manual_commit=True)
    driver.join("a", "b")
    driver.scale(1, most)
    driver.take()
    driver.commit()
    assert bool(kinds(driver, do.Publish)) is is_begun


def test_r5_a_deposed_coordinator_asks_nobody() -> None:
    driver = met(manual_marks=False)
    driver.drain("a")
    driver.refuse_commit()
    driver.take()
    driver.attach("a")
    assert not kinds(driver, do.AskToLeave)


def test_an_eviction_breaks_the_round_with_its_reason() -> None:
    driver = met(manual_marks=False)
    driver.evict("a", reason="ECC errors")
    (broken,) = kinds(driver, do.Break)
    assert isinstance(broken, do.Break)
    assert str(broken.change) == "a lost: evicted by operator ann: ECC errors"


def test_an_evicted_node_does_not_set_the_settings_of_its_run() -> None:
    driver = Driver(min=1, max=2)
    driver.join("a")
    driver.evict("a")
    driver.attach("a", settings=RunSettings(min_nodes=7, max_nodes=7))
    driver.join("b")
    assert driver.run.settings == driver.settings


def test_r3_after_a_scale_nodes_may_ask_for_any_number_of_nodes() -> None:
    driver = met(manual_marks=False)
    driver.scale(1, 6)
    driver.take()
    driver.attach("d")
    driver.attach("e", settings=msgspec.structs.replace(driver.settings, max_nodes=6))
    other = msgspec.structs.replace(driver.settings, settle_s=0.7)
    driver.attach("f", settings=other)
    welcome = [each.node.name for each in kinds(driver, do.Welcome) if isinstance(each, do.Welcome)]
    assert welcome == ["d", "e"]


def test_a_scale_holds_for_a_successor_and_is_no_change_of_what_nodes_ask_for() -> None:
    driver = met(manual_marks=False)
    driver.scale(2, 6)
    assert driver.register.orders.scale == Scale(2, 6, "operator ann")
    driver.fail_over()
    assert driver.run.settings is not None
    assert (driver.run.settings.min_nodes, driver.run.settings.max_nodes) == (2, 6)
    assert driver.run.asked_settings == driver.settings


def test_a_scale_keeps_an_expected_number_only_if_it_fits() -> None:
    asked = RunSettings(min_nodes=2, max_nodes=8, expected_nodes=4)
    assert Orders(scale=Scale(2, 6, "")).settings_of(asked).expected_nodes == 4
    assert Orders(scale=Scale(2, 3, "")).settings_of(asked).expected_nodes is None


def test_a_round_of_which_a_node_has_finished_is_not_made_smaller() -> None:
    driver = met(manual_marks=False)
    driver.done("a")
    driver.scale(1, 1)
    assert driver.phase is Phase.ACTIVE


def test_r3_a_newcomer_that_is_not_enough_for_the_minimum_ends_no_round() -> None:
    driver = met(manual_marks=False)
    driver.scale(5, 6)
    driver.join("d")
    driver.advance(10.0)
    assert not kinds(driver, do.Break)
    driver.join("e")
    driver.advance(10.0)
    assert kinds(driver, do.Break)


def test_r12_orders_are_bounded_and_old_drains_make_room() -> None:
    orders, count = Orders(), 0
    for count in range(1_000):
        orders = orders.with_drain(order(NodeId(f"drained{count}", 1), "ann", "x" * 1_000))
    assert 10 < len(orders.drains) < 100
    assert orders.drains[-1].node.name == f"drained{count}"
    count = 0
    while orders.has_room_for(eviction=order(NodeId(f"n{count}", 1), "ann", "x" * 1_000)):
        orders = orders.with_eviction(order(NodeId(f"n{count}", 1), "ann", "x" * 1_000))
        count += 1
    assert 10 < count < 100
    assert len(msgspec.msgpack.encode(orders)) <= ORDERS_BYTES_MAX


def test_r12_without_room_for_an_order_nothing_changes() -> None:
    driver = met(manual_marks=False)
    for count in range(100):
        driver.evict(f"n{count}", reason="x" * 150)
    driver.take()
    before = driver.run.orders
    driver.drain("a", reason="x" * 200)
    driver.step(on.ScaleRequested(Scale(1, 2, "operator ann", "\U0001f600" * 200)))
    assert (driver.run.orders, driver.take()) == (before, [])
    driver.drain("a", reason="")
    assert driver.run.orders.drain_of(node_id("a")) is not None
    assert len(msgspec.msgpack.encode(driver.run.orders)) <= ORDERS_BYTES_MAX


@pytest.mark.parametrize("tens", seeds(5, verify=15, long=150))
def test_r7_a_round_is_formed_though_an_operator_has_acted(tens: int) -> None:
    """R7, for the numbers of nodes that the operator wants, with nodes that are not evicted."""
    for seed in range(10 * tens, 10 * tens + 10):
        driver = walk(seed, steps=80, has_operator=True)
        heal(driver)  # A scale that was kept counts from here on.
        settings = driver.run.settings or driver.settings
        good = [name for name in NAMES if name not in EVICTED]
        a_round_is_formed(driver, good[: max(settings.min_nodes, 1 + seed % 4)])


def test_a_drain_of_another_start_of_a_node_changes_nothing() -> None:
    driver = met(manual_marks=False)
    driver.step(on.DrainRequested(node_id("a'"), "operator ann", ""))
    assert driver.run.orders.drains == ()


def test_r4_a_lifted_eviction_holds_until_the_ledger_has_its_end() -> None:
    """Else a successor, which still reads the eviction, would take the node out again."""
    driver = met()
    driver.evict("a")
    driver.marks_written()
    driver.admit("a")
    driver.take()
    driver.attach("a'")
    assert kinds(driver, do.Refuse)
    driver.advance(1.0)  # The ledger is written once in each settle time.
    driver.marks_written()
    driver.attach("a'")
    assert kinds(driver, do.Welcome)
    driver.fail_over()
    driver.take()
    driver.attach("a'")
    assert kinds(driver, do.Welcome)


def test_r4_an_eviction_that_is_lifted_while_it_is_written_holds_until_its_end_is_written() -> None:
    """The ledger may have it by now, or any moment: a successor would take the node out again."""
    driver = met()
    driver.evict("a")
    driver.admit("a")
    driver.take()
    driver.attach("a'")
    assert kinds(driver, do.Refuse)
    driver.marks_written()
    driver.take()
    driver.attach("a'")
    assert kinds(driver, do.Refuse)
    driver.advance(1.0)
    driver.marks_written()
    driver.attach("a'")
    assert kinds(driver, do.Welcome)
    assert all(each.evictions == () for each in driver.run.orders_possible)


def test_r4_an_eviction_in_a_record_that_is_written_holds_too() -> None:
    driver = Driver(min=2, max=2, manual_marks=True, manual_commit=True)
    driver.attach("a", "b", "c", "d")
    driver.evict("c", "d")
    driver.ready("a", "b")
    driver.advance(1.0)
    assert driver.phase is Phase.COMMITTING
    driver.admit("d")
    driver.marks_written()  # They were formed before the record, and have only the first order.
    driver.take()
    driver.attach("d'")
    assert kinds(driver, do.Refuse)
    driver.commit()
    driver.advance(1.0)
    driver.marks_written()
    driver.take()
    driver.attach("d'")
    assert kinds(driver, do.Welcome)


def test_r11_an_order_is_in_the_ledger_only_if_no_older_one_can_replace_it_there() -> None:
    driver = met()
    driver.scale(1, 2)
    driver.marks_written()
    driver.advance(1.0)
    driver.scale(1, 3)
    driver.scale(1, 2)
    # The second one is being written, and the first one is in the ledger until then.
    known = [each.scale and each.scale.max_nodes for each in driver.run.orders_possible]
    assert known == [2, 3]
    driver.marks_written()
    driver.advance(1.0)
    driver.marks_written()
    known = [each.scale and each.scale.max_nodes for each in driver.run.orders_possible]
    assert known == [2]


def test_r4_a_successor_keeps_an_eviction_whose_end_was_not_written() -> None:
    driver = met()
    driver.evict("a")
    driver.marks_written()
    driver.admit("a")
    driver.fail_over()
    driver.take()
    driver.attach("a'")
    assert kinds(driver, do.Refuse)


def test_a_node_may_be_evicted_again_after_it_was_admitted() -> None:
    driver = met(manual_marks=False)
    driver.evict("a", reason="first")
    driver.admit("a")
    driver.evict("a", reason="second")
    driver.advance(1.0)
    assert [each.reason for each in driver.register.orders.evictions] == ["second"]
    driver.take()
    driver.attach("a'")
    assert kinds(driver, do.Refuse)


def test_a_newcomer_that_waits_for_its_name_is_refused_until_the_end_is_written() -> None:
    driver = met()
    driver.attach("a'")
    driver.evict("a")
    driver.admit("a")
    assert [type(each) for each in kinds(driver, do.Refuse)] == [do.Refuse]


def test_r11_a_node_that_was_not_evicted_is_not_admitted_again() -> None:
    driver = met(manual_marks=False)
    driver.admit("a")
    assert driver.take() == []
    assert driver.run.orders == Orders()


def test_a_lifted_eviction_makes_room_for_others() -> None:
    driver = met(manual_marks=False)
    for count in range(100):
        driver.evict(f"n{count}", reason="x" * 300)
    kept = len(driver.run.orders.evictions)
    driver.admit("n0")
    driver.evict("m0", reason="x" * 300)
    assert len(driver.run.orders.evictions) == kept


@pytest.mark.parametrize("last", ["evict", "admit"])
def test_r4_the_last_order_counts_that_came_while_the_run_was_suspended(last: str) -> None:
    driver = met(manual_marks=False)
    driver.lose_ledger()
    for _ in range(2):
        driver.evict("a")
        driver.admit("a")
    if last == "evict":
        driver.evict("a")
    driver.admit("b")  # Another node's does not replace it.
    driver.restore_ledger()
    driver.advance(1.0)
    assert [each.node.name for each in driver.register.orders.evictions] == (
        ["a"] if last == "evict" else []
    )
