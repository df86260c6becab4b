"""What a coordinator keeps for its runs: it is counted, bounded, shared fairly, and given back."""

from __future__ import annotations

import msgspec
import pytest

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.outgoing import UNREAD_S
from rallypoint.coordinator.session import BEFORE_ATTACH_BYTES_MAX, CLOSE_S
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.store import (
    LIMIT,
    Append,
    DeleteKey,
    Get,
    MultiGet,
    Set,
    StoreFailure,
    StoreResult,
    StoreValue,
    Wait,
)
from rallypoint.core.values import RunSettings
from rallypoint.wire import messages as wire
from tests.network import UNSENT_BYTES_MAX, Network, Node

MIB = 1024**2
LIMIT_BYTES = 64 * MIB
CONFIG = CoordinatorConfig(memory_bytes_max=LIMIT_BYTES)
ALONE = RunSettings(
    min_nodes=1, max_nodes=1, max_restarts=None, suspect_after_s=600, lost_after_s=900
)


def alone(network: Network, run_id: str) -> Node:
    """The only node of a run, in its round."""
    node = network.node(f"node-of-{run_id}", ALONE, run_id=run_id, silence_s=1000.0)
    node.ready()
    network.until(lambda: bool(node.rounds))
    return node


def answer(network: Network, node: Node, request: int) -> StoreResult:
    network.until(lambda: request in node.answers)
    return node.answers[request]


def fill(network: Network, node: Node, size: int = MIB) -> StoreFailure:
    """Set one key after another until there is no room; what the last was answered."""
    for number in range(10_000):
        result = answer(network, node, node.call(Set(f"key/{number}", bytes(size))))
        if isinstance(result, StoreFailure):
            return result
    raise AssertionError("there is no limit")


def check_sums(coordinator: Coordinator) -> None:
    """Each run's share is the sum of what is kept for it, and the budget that of the shares."""
    total = 0
    for run in coordinator.runs.values():
        sessions = [each for each in coordinator.sessions.values() if each._share is run.share]
        kept = sum(each._kept for each in sessions) + run.memory.bytes
        store = run.store.current.footprint() if run.store.current is not None else 0
        pinned = sum(len(value) for value, _ in run.pins._held.values())
        others = run.store._held.bytes
        assert run.share.used == kept + store + pinned + others
        total += run.share.used
    assert coordinator.budget.used == total + coordinator.unattached.used
    waiting = sum(each._kept for each in coordinator.sessions.values() if each.run is None)
    assert coordinator.unattached.used == waiting


def test_a_greedy_run_leaves_room_for_the_others() -> None:
    network = Network(CONFIG)
    greedy, other = alone(network, "greedy"), alone(network, "other")
    failure = fill(network, greedy)
    assert failure.code == LIMIT
    for part in ("run 'greedy' uses", "64 MiB", "--memory", "RALLYPOINT_MEMORY"):
        assert part in failure.message
    assert answer(network, other, other.call(Set("key", bytes(4 * MIB)))) == StoreValue(None)
    late = alone(network, "late")
    assert answer(network, late, late.call(Set("key", bytes(4 * MIB)))) == StoreValue(None)
    assert network.coordinator.budget.used < LIMIT_BYTES
    check_sums(network.coordinator)


def test_a_run_at_its_limit_can_read_and_delete() -> None:
    network = Network(CONFIG)
    node = alone(network, "run")
    fill(network, node)
    assert answer(network, node, node.call(Get("key/1"))) == StoreValue(bytes(MIB))
    assert answer(network, node, node.call(Set("key/1", b"\1" * MIB))) == StoreValue(None)
    assert answer(network, node, node.call(DeleteKey("key/0"))) == StoreValue(True)
    assert answer(network, node, node.call(Set("new", bytes(MIB)))) == StoreValue(None)
    refused = answer(network, node, node.call(Wait(("never",) * 10_000)))
    assert isinstance(refused, StoreFailure)
    assert refused.code == LIMIT
    check_sums(network.coordinator)


def test_a_refused_call_may_be_sent_again() -> None:
    """R11: no part of it was applied."""
    network = Network(CONFIG)
    node = alone(network, "run")
    fill(network, node)
    assert node.link is not None
    assert node.link.session is not None
    call = wire.StoreCall(node.machine.stamp, 9_999, Set("new", bytes(MIB)))
    told: list[wire.StoreAnswer] = []
    for room in (False, True, True):
        if room:
            answer(network, node, node.call(DeleteKey("key/0")))
        node.link.session.received(wire.encode(call))
        message = wire.decode_from_coordinator(node.link.down.pop())
        assert isinstance(message, wire.StoreAnswer)
        told.append(message)
    assert [isinstance(each.result, StoreValue) for each in told] == [False, True, True]


def test_a_call_that_was_applied_is_answered_again_in_a_full_run() -> None:
    """R11: no room is needed for a repeat."""
    network = Network(CONFIG)
    node = alone(network, "run")
    fill(network, node)
    assert node.link is not None
    assert node.link.session is not None
    answer(network, node, node.call(DeleteKey("key/0")))
    call = wire.StoreCall(node.machine.stamp, 9_999, Append("new", bytes(MIB)))
    for request_id, is_refused in ((9_999, False), (9_998, True), (9_999, False)):
        again = msgspec.structs.replace(call, request_id=request_id)
        node.link.session.received(wire.encode(again))
        message = wire.decode_from_coordinator(node.link.down.pop())
        assert isinstance(message, wire.StoreAnswer)
        assert isinstance(message.result, StoreFailure) is is_refused


def test_one_node_too_many_gets_the_limit_and_how_to_raise_it() -> None:
    network = Network(CONFIG)
    settings = msgspec.structs.replace(ALONE, max_nodes=9, last_call_s=0.1)
    node = network.node("first", settings, run_id="run", silence_s=1000.0)
    node.ready()
    network.until(lambda: bool(node.rounds))
    fill(network, node, 16 * 1024)
    late = network.node("late", settings, run_id="run")
    network.until(lambda: late.refused is not None)
    assert late.refused is not None
    assert late.refused.code is RefusalCode.LIMIT
    assert "64 MiB" in late.refused.message
    assert "--memory" in late.refused.hint
    node.cut()
    network.until(lambda: node.link is not None and node.machine.is_attached)
    other = alone(network, "other")
    assert not other.refused


def test_unread_answers_take_no_more_than_the_values() -> None:
    network = Network(CONFIG)
    nodes = [alone(network, f"run{number}") for number in range(3)]
    for node in nodes:
        assert answer(network, node, node.call(Set("key", bytes(MIB)))) == StoreValue(None)
        node.is_deaf = True
        for _ in range(5):
            node.call(MultiGet(("key",) * 16), None)
    network.advance(1.0)
    links = [node.link for node in nodes]
    assert all(link is not None and link.is_open for link in links)
    assert all(link is not None and link.backlog_bytes() < 3 * UNSENT_BYTES_MAX for link in links)
    assert network.coordinator.budget.used < 3 * 3 * MIB
    check_sums(network.coordinator)
    for node in nodes:
        node.is_deaf = False
    network.advance(1.0)
    wanted = StoreValue((bytes(MIB),) * 16)
    assert all(node.answers[max(node.answers)] == wanted for node in nodes)
    assert all(len(node.answers) == 6 for node in nodes)
    assert not network.coordinator.unread
    check_sums(network.coordinator)


def test_waiting_messages_come_in_order_and_beats_do_not_pile_up() -> None:
    network = Network(CONFIG)
    node = alone(network, "run")
    answer(network, node, node.call(Set("large", bytes(MIB))))
    node.is_deaf = True
    requests = [node.call(Get("large")), node.call(Set("small", b"1")), node.call(Get("small"))]
    network.settle()
    assert node.link is not None
    assert node.link.session is not None
    before = network.run_of("run").share.used
    for _ in range(1_000):
        node.link.session.received(wire.encode(wire.Heartbeat(node.machine.stamp)))
    assert network.run_of("run").share.used == before
    network.traffic.clear()
    node.is_deaf = False
    network.settle()
    kinds = [kind for kind, _ in network.traffic[node.name]]
    assert kinds == ["StoreAnswer"] * 3 + ["Beat"]
    assert [request for request in node.answers if request in requests] == requests


def test_an_overwritten_value_counts_until_its_readers_have_it() -> None:
    network = Network(CONFIG)
    settings = msgspec.structs.replace(ALONE, min_nodes=4, max_nodes=4)
    nodes = [network.node(f"n{i}", settings, silence_s=1000.0) for i in range(4)]
    for node in nodes:
        node.ready()
    network.until(lambda: all(node.rounds for node in nodes))
    writer, readers = nodes[0], nodes[1:]
    answer(network, writer, writer.call(Set("key", bytes(4 * MIB))))
    for reader in readers:
        reader.is_deaf = True
        reader.call(Get("key"))
    network.advance(0.1)
    before = network.run.share.used
    assert before < 9 * MIB, "counted for each that has yet to read it"
    answer(network, writer, writer.call(Set("key", b"")))
    assert network.run.share.used > 4 * MIB
    check_sums(network.coordinator)
    for reader in readers:
        reader.cut()
    network.settle()
    assert network.run.share.used < MIB
    check_sums(network.coordinator)


def test_a_peer_that_does_not_read_is_closed_with_the_reason_and_resumes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = Network(CONFIG)
    node = alone(network, "run")
    answer(network, node, node.call(Set("key", bytes(MIB))))
    node.is_deaf = True
    node.call(MultiGet(("key",) * 16))
    network.advance(UNREAD_S - 1.0)
    slow = node.link
    assert slow is not None
    assert slow.is_open
    network.advance(1.0 + CLOSE_S + 1.0)
    assert not slow.is_open
    assert "it has read nothing for 60 s" in caplog.text
    node.is_deaf = False
    network.until(lambda: len(node.answers) == 2)
    assert not node.refused
    check_sums(network.coordinator)


def test_a_peer_that_reads_slowly_is_not_closed() -> None:
    network = Network(CONFIG)
    node = alone(network, "run")
    answer(network, node, node.call(Set("key", bytes(4 * MIB))))
    node.is_deaf = True
    request = node.call(MultiGet(("key",) * 8))
    slow = node.link
    assert slow is not None
    for _ in range(int(3 * UNREAD_S / 30)):
        network.advance(30.0)
        node.is_deaf = False
        slow.deliver()
        node.is_deaf = True
    assert slow.is_open
    node.is_deaf = False
    network.until(lambda: request in node.answers)


def test_a_refusal_follows_the_message_being_sent() -> None:
    """In the midst of it, it would be a part of it."""
    network = Network(CONFIG)
    node = alone(network, "run")
    answer(network, node, node.call(Set("key", bytes(4 * MIB))))
    node.is_deaf = True
    requests = [node.call(MultiGet(("key",) * 4)), node.call(Get("key"))]
    network.settle()
    assert node.link is not None
    assert node.link.session is not None
    node.reconnects = False
    session = node.link.session
    session.close("enough")
    node.is_deaf = False
    network.settle()
    assert requests[0] in node.answers
    network.advance(2 * CLOSE_S)
    assert node.link is None
    assert not network.coordinator.unread
    check_sums(network.coordinator)


def test_unread_small_answers_are_bounded_per_connection() -> None:
    network = Network(CoordinatorConfig(backlog_bytes_max=MIB))
    node = alone(network, "run")
    node.reconnects = False
    node.is_deaf = True
    slow = node.link
    assert slow is not None
    assert slow.session is not None
    asked = wire.encode(wire.AskWaiting(node.machine.stamp, 1))
    for number in range(20_000):
        slow.session.received(asked)
        assert network.run_of("run").share.used < 2 * MIB, number
    network.advance(CLOSE_S + 0.1)
    assert not slow.is_open


def test_incomplete_messages_count_and_are_small_before_an_attach() -> None:
    network = Network(CONFIG)
    node = alone(network, "run")
    assert node.link is not None
    session = node.link.session
    assert session is not None
    before = network.run_of("run").share.used
    assert session.announced(8 * MIB)
    assert network.run_of("run").share.used == before + 8 * MIB
    fill(network, node)
    assert not session.announced(8 * MIB)
    call = wire.StoreCall(node.machine.stamp, 7_777, Set("new", bytes(8 * MIB)), None, 7_776)
    session.skipped(wire.encode(call)[:1024], 8 * MIB)
    message = wire.decode_from_coordinator(node.link.down.pop())
    assert isinstance(message, wire.StoreAnswer)
    assert message.request_id == 7_777
    assert isinstance(message.result, StoreFailure)
    assert message.result.code == LIMIT
    assert "8 MiB more" in message.result.message
    session.arrived(8 * MIB)
    check_sums(network.coordinator)
    stranger = network.node("stranger", ALONE, run_id="other")
    assert stranger.link is not None
    fresh = stranger.link.session
    assert fresh is not None
    assert fresh.announced(BEFORE_ATTACH_BYTES_MAX)
    assert network.coordinator.unattached.used > BEFORE_ATTACH_BYTES_MAX
    fresh.arrived(BEFORE_ATTACH_BYTES_MAX)
    assert not fresh.announced(BEFORE_ATTACH_BYTES_MAX + 1)
    fresh.skipped(b"", BEFORE_ATTACH_BYTES_MAX + 1)
    network.until(lambda: stranger.refused is not None)
    assert stranger.refused is not None
    assert "at most 256 KiB are allowed" in stranger.refused.message


def test_all_memory_is_released_when_runs_and_connections_end() -> None:
    config = msgspec.structs.replace(CONFIG, closed_run_keep_s=5.0, empty_run_keep_s=5.0)
    network = Network(config)
    nodes = [alone(network, f"run{number}") for number in range(3)]
    for node in nodes:
        node.call(Set("key", bytes(MIB)))
        node.call(Wait(("never", "ever")), None)
        node.is_deaf = True
        node.call(MultiGet(("key",) * 3))
    network.advance(1.0)
    assert network.coordinator.budget.used > 3 * MIB
    for node in nodes:
        node.reconnects = False
        node.cut()
    network.settle()
    check_sums(network.coordinator)
    network.advance(30.0)
    network.until(lambda: not network.coordinator.runs, 2_000.0)
    assert network.coordinator.budget.used == 0
    assert not network.coordinator.unread
