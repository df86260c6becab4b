"""The events of a run: what a person reads of what happened, in order, bounded, and harmless."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from rallypoint.coordinator import event_log, observer, run_events
from rallypoint.coordinator.event_log import EventLog, Events
from rallypoint.coordinator.events_api import EventPage
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.observer import Observer
from rallypoint.coordinator.run_events import ABOUT, FIELDS, EventKind, RunEvent, position_of, shown
from rallypoint.coordinator.waits import Waits
from rallypoint.core import events as on
from rallypoint.core.suspension import SuspensionCause
from rallypoint.core.values import Address, ConnectionEnd, NodeId, Outcome, Phase
from rallypoint.ledger.memory import MemoryLedger
from rallypoint.wire import messages as wire
from tests.coordinator.one_coordinator import OneCoordinator, Peer
from tests.coordinator.one_run import NAMES, Case
from tests.loops import run_virtual

DOC = Path(__file__).parents[2] / "docs" / "events.md"
START = (0, 0)


def events_of(run: HostedRun, now_s: float = 1e9) -> list[RunEvent]:
    return run.events.after(START, 10_000, now_s)


def kinds(run: HostedRun) -> list[str]:
    return [event.kind.value for event in events_of(run)]


def lines(run: HostedRun) -> list[str]:
    return [str(event) for event in events_of(run)]


def test_the_life_of_a_run_is_told_in_order() -> None:
    async def main() -> None:
        case = await Case.begun(MemoryLedger(), 1, "machine-a")
        await case.lives_for_three_rounds()
        case.run.post(on.CloseRequested("a", Outcome.SUCCEEDED, "trained"))
        await case.is_in(Phase.CLOSED, 3)
        assert kinds(case.run) == [
            *("began", "attached", "attached", "ready", "ready", "formed"),
            *("worker_failed", "broken", "cause", "ready", "ready", "formed"),
            *("disconnected", "lost", "broken", "attached", "ready", "ready", "formed"),
            "closed",
        ]
        found = events_of(case.run)
        assert [event.seq for event in found] == list(range(1, len(found) + 1))
        assert {event.term for event in found} == {1}
        assert {event.on for event in found} == {"machine-a"}
        offsets = [event.offset_s for event in found]
        assert offsets == sorted(offsets)
        assert offsets[0] >= 0
        assert [event.round for event in found if event.kind is EventKind.FORMED] == [1, 2, 3]
        await case.aclose()

    run_virtual(main())


def test_the_sentences_name_the_node_the_cause_and_the_time() -> None:
    async def main() -> None:
        case = await Case.begun(MemoryLedger(), 1, "machine-a")
        case.come(*NAMES)
        case.ready("a")
        await asyncio.sleep(5.0)
        case.ready("b")
        await case.is_in(Phase.ACTIVE, 1)
        case.fail("a")
        await asyncio.sleep(0.1)  # until the verdict
        told = lines(case.run)
        assert "a attached: host" in told
        assert "waited 5.0 s for b: it was ready last" in told
        assert "round 1 formed with 2 nodes" in told
        assert "a worker failed on a: rank 0 failed (ValueError: no)" in told
        assert any(line.startswith("round 1 has ended: a worker failed on a") for line in told)
        cause = "round 1 has ended: the cause was: a worker failed on a"
        assert any(line.startswith(cause) for line in told)
        await case.aclose()

    run_virtual(main())


def waited(run: HostedRun) -> list[str]:
    return [str(event) for event in events_of(run) if event.kind is EventKind.WAITED]


@pytest.mark.parametrize("pause_s", [0.5, 5.0])
def test_a_wait_names_all_who_were_missing_and_not_the_first_who_came_back(pause_s: float) -> None:
    async def main() -> None:
        case = await Case.begun(MemoryLedger(), 1, "machine-a")
        case.come(*NAMES)
        case.ready(*NAMES)
        await case.is_in(Phase.ACTIVE, 1)
        case.fail("a")
        await asyncio.sleep(20.0)  # both stop their workers
        case.ready("a")
        await asyncio.sleep(pause_s)
        case.ready("b")
        await case.is_in(Phase.ACTIVE, 2)
        told = ["waited 20.0 s for a, b: no node was ready before"]
        told += ["waited 5.0 s for b: it was ready last"] if pause_s > 1 else []
        assert waited(case.run) == told
        await case.aclose()

    run_virtual(main())


def test_a_pause_between_rounds_is_no_wait_for_nodes() -> None:
    async def main() -> None:
        case = await Case.begun(MemoryLedger(), 1, "machine-a")
        case.come(*NAMES)
        case.ready("a")
        case.run.post(on.LedgerLost("no quorum", cause=SuspensionCause.COMMIT))
        await asyncio.sleep(9.0)
        case.run.post(on.LedgerRestored(SuspensionCause.COMMIT))
        case.ready("b")
        await case.is_in(Phase.ACTIVE, 1)
        assert waited(case.run) == []
        await case.aclose()

    run_virtual(main())


def test_a_round_without_a_lost_node_names_it() -> None:
    one = OneCoordinator()
    size: dict[str, Any] = {"min_nodes": 2, "max_nodes": 3, "last_call_s": 10.0}
    peers = [one.attach("r", name, **size) for name in ("a", "b", "c")]
    for peer in peers:
        ready(peer)
    one.commit()
    run = one.coordinator.runs["r"]
    peers[2].session.connection_lost(ConnectionEnd.PROCESS_ENDED)
    one.pass_time(1.0)
    assert run.membership.phase is Phase.GATHERING
    ready(peers[0], leaving=1)
    one.pass_time(3.0)
    ready(peers[1], leaving=1)
    one.pass_time(30.0)
    assert waited(run) == ["waited 3.0 s for b: it was ready last"]


def test_the_longest_waits_of_a_gathering_are_kept() -> None:
    waits = Waits(0.0)
    at_s = 0.0
    for number in range(1, 10):
        at_s += number
        waits.ready((f"n{number}",), 1, at_s)
    assert [each.seconds for each in waits.told()] == [6.0, 7.0, 8.0, 9.0]
    assert [each.names[0] for each in waits.told()] == ["n6", "n7", "n8", "n9"]
    assert [each.count for each in waits.told()] == [4, 3, 2, 1]
    waits.go_on(100.0)
    assert waits.told() == ()
    waits.ready((), 1, 100.5)
    assert waits.told() == ()


def test_an_outage_of_the_ledger_is_told_with_its_reason_and_length() -> None:
    async def main() -> None:
        case = await Case.begun(MemoryLedger(), 1, "machine-a")
        case.come(*NAMES)
        case.run.post(on.LedgerLost("no quorum", cause=SuspensionCause.COMMIT))
        await asyncio.sleep(2.0)
        case.run.post(on.LedgerRestored(SuspensionCause.COMMIT))
        suspended, restored = events_of(case.run)[-2:]
        assert (suspended.kind, suspended.cause) == (EventKind.SUSPENDED, "commit")
        assert suspended.detail == "no quorum"
        assert restored.kind is EventKind.RESTORED
        assert restored.seconds == pytest.approx(2.0, abs=0.1)
        await case.aclose()

    run_virtual(main())


def ready(peer: Peer, leaving: int = 0) -> None:
    peer.say(wire.Ready(peer.session.run.stamp, leaving, Address("127.0.0.1", 1), 1, None))  # type: ignore[union-attr]


def test_a_silent_node_is_suspect_heard_again_and_lost() -> None:
    one = OneCoordinator()
    slow: dict[str, Any] = {
        "min_nodes": 2,
        "max_nodes": 2,
        "suspect_after_s": 5.0,
        "lost_after_s": 30.0,
    }
    peers = [one.attach("r", name, **slow) for name in NAMES]
    for peer in peers:
        ready(peer)
    one.commit()
    run = one.coordinator.runs["r"]
    one.pass_time(7.0)
    assert kinds(run)[-2:] == ["suspect", "suspect"]
    peers[0].say(wire.Heartbeat(run.stamp))
    heard = events_of(run)[-1]
    assert (heard.kind, heard.node) == (EventKind.HEARD, "a")
    assert heard.seconds == pytest.approx(7.0, abs=0.5)
    for _ in range(8):
        one.pass_time(4.0)
        peers[0].say(wire.Heartbeat(run.stamp))
    lost = next(each for each in events_of(run) if each.kind is EventKind.LOST)
    assert (lost.node, lost.detail) == ("b", "it fell silent and did not answer")
    assert lost.seconds == pytest.approx(30.0, abs=1.0)


def test_a_refused_node_has_its_reason() -> None:
    one = OneCoordinator()
    one.attach("r", "a", min_nodes=2, max_nodes=2)
    one.attach("r", "b", min_nodes=3, max_nodes=3)
    refused = events_of(one.coordinator.runs["r"])[-1]
    assert (refused.kind, refused.node) == (EventKind.REFUSED, "b")
    assert "min_nodes" in refused.detail or refused.cause


def test_standby_and_let_in() -> None:
    one = OneCoordinator()
    wide: dict[str, Any] = {
        "min_nodes": 1,
        "max_nodes": 2,
        "last_call_s": 0.1,
        "scale_up_delay_s": 1.0,
    }
    first = one.attach("r", "a", **wide)
    ready(first)
    one.pass_time(1.0)
    second = one.attach("r", "b", **wide)
    ready(second)
    one.pass_time(2.0)
    assert kinds(one.coordinator.runs["r"])[-5:-1] == ["ready", "standby", "let_in", "broken"]


def test_above_a_hundred_nodes_single_nodes_are_summarised() -> None:
    one = OneCoordinator(new_runs_per_s=1e6)
    nodes = 300
    many: dict[str, Any] = {"min_nodes": nodes, "max_nodes": nodes}
    peers = [one.attach("r", f"n{number}", **many) for number in range(nodes)]
    for peer in peers:
        ready(peer)
    one.commit()
    run = one.coordinator.runs["r"]
    found = events_of(run)
    assert len(found) < 150
    attached = [event for event in found if event.kind is EventKind.ATTACHED]
    assert sum(event.count or 1 for event in attached) == nodes
    (were_ready,) = [event for event in found if event.kind is EventKind.READY]
    assert (were_ready.count, were_ready.nodes[0]) == (nodes, f"n{nodes - 1}")
    assert found[-1].kind is EventKind.FORMED
    assert found[-1].count == nodes


def test_a_large_run_tells_which_node_was_waited_for_and_how_long() -> None:
    one = OneCoordinator(new_runs_per_s=1e6)
    nodes = 120
    many: dict[str, Any] = {"min_nodes": nodes, "max_nodes": nodes}
    peers = [one.attach("r", f"n{number}", **many) for number in range(nodes)]
    run = one.coordinator.runs["r"]
    for leaving in (0, 1):
        for peer in peers:
            if peer is not peers[7]:
                ready(peer, leaving)
        one.pass_time(5.0)
        (partly,) = [each for each in events_of(run)[-2:] if each.kind is EventKind.READY]
        assert partly.count == nodes - 1
        ready(peers[7], leaving)
        one.commit()
        *_, waited, formed = events_of(run)
        assert (waited.kind, waited.node) == (EventKind.WAITED, "n7")
        assert waited.seconds == pytest.approx(5.0, abs=0.3)
        assert formed.kind is EventKind.FORMED
        assert formed.phases["ready_s"] == pytest.approx(5.0, abs=0.3)
        assert formed.phases["forming_s"] == pytest.approx(0.0, abs=0.3)


def test_one_node_of_a_large_run_is_still_named() -> None:
    one = OneCoordinator(new_runs_per_s=1e6)
    nodes = 120
    many: dict[str, Any] = {"min_nodes": nodes, "max_nodes": nodes}
    peers = [one.attach("r", f"n{number}", **many) for number in range(nodes)]
    for peer in peers:
        ready(peer)
    one.commit()
    peers[7].hang_up()
    run = one.coordinator.runs["r"]
    assert not [event for event in events_of(run, one.now_s) if event.kind.value == "disconnected"]
    shown_at_s = one.now_s + 2 * event_log.SHOWN_AFTER_S
    (gone,) = [each for each in events_of(run, shown_at_s) if each.kind.value == "disconnected"]
    assert (gone.node, gone.count) == ("n7", 0)
    assert str(gone) == "the connection of n7 closed: how is not known"


def test_nodes_that_are_lost_together_are_one_event() -> None:
    async def main() -> None:
        case = await Case.begun(MemoryLedger(), 1, "machine-a")
        case.come(*NAMES)
        case.ready(*NAMES)
        await case.is_in(Phase.ACTIVE, 1)
        for name in NAMES:
            case.ended(name)
        await asyncio.sleep(1.0)
        (lost,) = [event for event in events_of(case.run) if event.kind is EventKind.LOST]
        assert (lost.nodes, lost.count) == (NAMES, 2)
        await case.aclose()

    run_virtual(main())


# -- bounds ----------------------------------------------------------------------------------------


def log_of(events: Events) -> EventLog:
    return EventLog(events, "r", 1)


def test_a_run_keeps_a_bounded_number_of_events() -> None:
    events = Events("h")
    log = log_of(events)
    for number in range(event_log.EVENTS_MAX + 50):
        log.add(EventKind.READY, node=f"n{number}")
    assert len(log) == event_log.EVENTS_MAX
    assert log.dropped == 50
    assert log.first_position == (1, 51)
    log.close()
    assert events.bytes == 0


def test_a_run_keeps_a_bounded_number_of_bytes() -> None:
    events = Events("h")
    log = log_of(events)
    for _ in range(event_log.EVENTS_MAX):
        log.add(EventKind.WORKER_FAILED, detail="x" * 10_000, last_lines=("y" * 200,) * 20)
    assert events.bytes <= event_log.EVENTS_BYTES_MAX
    assert len(log) < event_log.EVENTS_MAX
    assert all(len(each.detail) <= run_events.TEXT_MAX for each in log.last(5))


def test_all_runs_together_keep_a_bounded_number_of_bytes() -> None:
    events = Events("h", bytes_max=1_000_000)
    logs = [EventLog(events, f"r{number}", 1) for number in range(40)]
    for _ in range(200):
        for log in logs:
            log.add(EventKind.READY, node="n")
    assert events.bytes <= 1_000_000 + len(logs) * event_log.KEPT_FEW * 1_000
    assert all(len(log) >= event_log.KEPT_FEW for log in logs)


def test_nodes_that_come_and_go_do_not_hide_the_rounds() -> None:
    events = Events("h")
    log = log_of(events)
    for number in range(1, 11):
        log.add(EventKind.FORMED, round=number)
        log.add(EventKind.BROKEN, round=number, detail="x" * 100)
    for number in range(10 * event_log.EVENTS_MAX):
        log.add(EventKind.READY, node=f"n{number}")
    assert len(log) == event_log.EVENTS_MAX
    found = log.after(START, 10_000, 0.0)
    assert len(found) == event_log.EVENTS_MAX
    assert [each.round for each in found[:20:2]] == list(range(1, 11))
    assert [each.seq for each in found] == sorted(each.seq for each in found)
    assert log.after((1, 18), 3, 0.0)[:2] == found[18:20]
    for number in range(2 * event_log.EVENTS_MAX):
        log.add(EventKind.LOST, node=f"n{number}")
    assert len(log) == event_log.EVENTS_MAX
    assert sum(each.bytes for each in log.after(START, 10_000, 0.0)) == events.bytes
    log.close()
    assert events.bytes == 0


def test_a_node_that_asks_again_and_again_is_told_once_a_minute() -> None:
    one = OneCoordinator(new_runs_per_s=1e6)
    one.attach("r", "a", min_nodes=2, max_nodes=2)
    run = one.coordinator.runs["r"]
    for _ in range(100):
        one.attach("r", "b", min_nodes=3, max_nodes=3)
    assert kinds(run).count("refused") == 1
    one.pass_time(61.0)
    one.attach("r", "b", min_nodes=3, max_nodes=3)
    again = events_of(run)[-1]
    assert (again.kind, again.node, again.count) == (EventKind.REFUSED, "b", 100)
    for number in range(500):
        one.attach("r", f"stranger-{number}", min_nodes=3, max_nodes=3)
    assert kinds(run).count("refused") <= observer.REFUSALS_KEPT + 2


def test_a_reader_gets_the_events_after_a_place_in_pages() -> None:
    log = log_of(Events("h"))
    for number in range(10):
        log.add(EventKind.READY, node=f"n{number}")
    first = log.after(START, 4, 0.0)
    assert [event.seq for event in first] == [1, 2, 3, 4]
    second = log.after(first[-1].position, 100, 0.0)
    assert [event.seq for event in second] == [5, 6, 7, 8, 9, 10]
    assert log.after(second[-1].position, 100, 0.0) == []


@pytest.mark.parametrize("text", ["x", "1.x", "1.2.3", "-1", "1." + "9" * 30, "٣"])
def test_a_place_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="since must be the id of an event"):
        position_of(text)


def test_a_place_is_a_term_and_a_number() -> None:
    assert position_of("2.17") == (2, 17)
    assert position_of("2") == (2, 0)


# -- no event ends a run ---------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["_before", "_see"])
def test_an_error_in_the_observer_ends_nothing(
    part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Observer, part, broken)
    one = OneCoordinator()
    with caplog.at_level(logging.ERROR):
        one.with_round("r")
    run = one.coordinator.runs["r"]
    assert run.membership.phase is Phase.ACTIVE
    assert not run.has_failed
    assert one.coordinator.events.failures
    assert caplog.text.count("an unexpected error while an event was recorded") == 1


def test_an_error_in_a_sink_or_a_listener_ends_nothing() -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("a bug")

    one = OneCoordinator()
    one.coordinator.events.sinks.append(broken)
    one.with_round("r")
    run = one.coordinator.runs["r"]
    one.coordinator.events.sinks.clear()
    run.events.listeners[broken] = None
    run.post(on.ConnectionLost(NodeId("n", 1), 1, ConnectionEnd.RESET))
    assert not run.has_failed


# -- what is documented ----------------------------------------------------------------------------


def test_every_kind_has_a_meaning_and_known_fields() -> None:
    assert set(ABOUT) == set(EventKind)
    for kind, about in ABOUT.items():
        assert set(about.fields) <= set(FIELDS), kind
        event = RunEvent(term=1, seq=1, kind=kind, at=0.0, offset_s=0.0, on="h", node="n")
        assert str(event)
        assert "{" not in str(event)


def test_json_has_every_field() -> None:
    event = RunEvent(term=2, seq=17, kind=EventKind.READY, at=1.0, offset_s=0.5, on="h", node="n")
    assert shown(event)["id"] == "2.17"
    assert shown(event)["text"] == "n ready"
    assert set(shown(event)) == {"id", "text", *RunEvent.__struct_fields__}


def test_the_page_has_every_field_and_the_table_of_the_code() -> None:
    page = DOC.read_text()
    for name in (*RunEvent.__struct_fields__, *EventPage.__struct_fields__, "id", "text"):
        assert f"`{name}`" in page, name
    assert run_events.table() in page, "run python -m rallypoint.coordinator.run_events"
