"""A client with a token can open runs and connections, but must leave room for others."""

from __future__ import annotations

import gc
import sys
import weakref
from typing import Any

import pytest

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.coordinator.memory_ownership import MemoryOwnership
from rallypoint.coordinator.outgoing import PIECE_BYTES, TURN_BYTES
from rallypoint.core import events as on
from rallypoint.core.quotas import EVICT_AFTER_S, RUNS_AT_ONCE, WAIT_MAX_S, Account
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.store import StoreValue
from rallypoint.core.values import (
    Address,
    NodeInfo,
    Outcome,
    RunSettings,
    Stamp,
)
from rallypoint.wire import messages as wire
from tests.coordinator.one_coordinator import HERE, THERE, OneCoordinator, Peer
from tests.loops import SteppedLoop


def test_abandoned_runs_take_no_room() -> None:
    here = OneCoordinator(runs_max=2_000, new_runs_per_s=1e8)
    for number in range(10_000):
        peer = here.attach(f"run-{number}", reconnect_grace_s=1e7)
        assert peer.is_welcome
        peer.hang_up()
    assert here.attach("honest").is_welcome
    assert len(here.coordinator.runs) <= 2_000
    here.pass_time(15.0)
    assert list(here.coordinator.runs) == ["honest"]
    assert not here.coordinator._timers, (
        "the time that these runs gave their nodes is over with them"
    )


def test_a_run_left_alone_has_the_event_loop_at_once() -> None:
    here = OneCoordinator()
    here.coordinator.turns.loop = SteppedLoop()
    one, other = here.with_round("one"), here.with_round("other")
    assert [peer.session.input_turns.slice_s() is None for peer in (one, other, one)] == [
        True,
        False,
        False,
    ]
    other.hang_up()
    assert one.session.input_turns.slice_s() is None
    other = here.with_round("other")
    one.session.input_turns.slice_s()
    assert other.session.input_turns.slice_s() is not None


def test_beside_another_run_messages_are_sent_in_turns() -> None:
    """Each was sent a quarter of a megabyte in one turn, and another run waited for them all."""
    here, loop = OneCoordinator(), SteppedLoop()
    here.coordinator.turns.loop = loop
    readers = [here.attach("one", f"reader-{number}") for number in range(4)]
    here.attach("other", "late").session.input_turns.slice_s()
    answer = wire.StoreAnswer(Stamp(), 1, StoreValue(bytes(1 << 20)))
    for peer in readers:
        peer.session.input_turns.slice_s()
        peer.session.paused()
        peer.session.answer(answer)
        peer.session.resumed()
    assert not any(peer.sent_in_parts for peer in readers)
    while loop.soon:
        before = [peer.sent_in_parts for peer in readers]
        loop.turn()
        sent = [peer.sent_in_parts - was for peer, was in zip(readers, before, strict=True)]
        assert sum(size > 0 for size in sent) <= 1, "one of them in each turn"
        assert sum(sent) <= TURN_BYTES + PIECE_BYTES
    assert all(answer in peer.told for peer in readers)


def test_a_node_whose_messages_wait_still_gets_beats() -> None:
    """It heard nothing, gave up, connected again, and repeated all of that for ever."""
    here = OneCoordinator()
    here.coordinator.turns.loop = SteppedLoop()
    peer, other = here.with_round("run"), here.with_round("other")
    peer.session.input_turns.later(lambda: True)
    here.pass_time(1.0)
    for each in (peer, other):
        each.told.clear()
    here.pass_time(5.0)
    assert sum(isinstance(each, wire.Beat) for each in peer.told) >= 5
    assert not other.told
    peer.session.input_turns.had_all()
    peer.told.clear()
    here.pass_time(5.0)
    assert not peer.told


def test_an_evicted_run_is_not_kept_until_its_time() -> None:
    """Each of these would have had ten minutes."""
    here = OneCoordinator(runs_max=200, new_runs_per_s=1e8)
    forgotten: list[weakref.ref[HostedRun]] = []
    for number in range(2_000):
        run_id = f"run-{number}"
        peers = [here.attach(run_id, name) for name in "ab"]
        forgotten.append(weakref.ref(here.coordinator.runs[run_id]))
        for peer in peers:
            peer.hang_up()
    del peer, peers
    gc.collect()
    assert sum(run() is not None for run in forgotten) == len(here.coordinator.runs) <= 200
    assert len(here.coordinator._idle._due) <= 2 * 200 + 64 + 1
    here.pass_time(here.coordinator.config.empty_run_keep_s + 1)
    assert not here.coordinator.runs, "the others are looked at when their time is over"


def test_connections_during_a_claim_that_hangs_leave_nothing_behind() -> None:
    """While the ledger is away, the run must not collect all nodes that came for it."""
    here = OneCoordinator()
    here.coordinator.ownership = NeverClaims()
    stays = here.attach("run", "stays")
    for number in range(1_000):
        here.attach("run", f"n{number}").hang_up()
    run = here.coordinator.runs["run"]
    assert not run.is_claimed
    assert len(run._queue) <= 2 * 64 + 3
    links = {each.connection_id for each in run._queue if isinstance(each, on.NodeAttached)}
    assert stays.session.connection_id in links


class NeverClaims(MemoryOwnership):
    """Of a ledger that does not answer."""

    is_in_memory = False


def test_runs_of_one_address_leave_room_for_another() -> None:
    here = OneCoordinator(runs_max=80, new_runs_per_s=1e8)
    held = [here.attach(f"run-{number}") for number in range(100)]
    assert sum(each.is_welcome for each in held) == 70
    refusal = held[-1].refusal
    assert refusal.code is RefusalCode.LIMIT
    assert "at most 80 runs" in refusal.message
    assert "RALLYPOINT_RUNS_MAX" in refusal.hint
    held[0].hang_up()
    assert here.attach("in its place").is_welcome, "it has no more than it had"
    for number in range(10):
        other = here.attach(f"other-{number}", account=Account("another", "10.0.0.1"))
        assert other.is_welcome
    other.hang_up()
    assert not here.attach("one too many").is_welcome, "what another account leaves is not its own"
    assert here.attach("third", account=Account("third", "10.0.0.1")).is_welcome
    assert "other-9" not in here.coordinator.runs, "nobody is in it, and it never had a round"


def test_connections_leave_room_for_another_address() -> None:
    here = OneCoordinator(sessions_max=80)
    held = [here.attach("run", str(number)) for number in range(100)]
    assert sum(each.is_welcome for each in held) == 70
    assert "at most 80 connections" in held[-1].refusal.message
    assert "RALLYPOINT_SESSIONS_MAX" in held[-1].refusal.hint
    assert here.coordinator.admission.session_refusal(HERE) is not None
    assert here.coordinator.admission.session_refusal(Account("another")) is None
    here.coordinator.admission.limit_descriptors(70)
    assert here.coordinator.admission.session_refusal(Account("another")) is not None


def test_without_room_runs_are_evicted_in_order() -> None:
    here = OneCoordinator(runs_max=4, new_runs_per_s=1e8)
    empty = here.with_round("empty")
    closed = here.with_round("closed")
    closed.say(wire.CloseRun(Stamp(), Outcome.SUCCEEDED, "done"))
    here.commit()
    for peer in (empty, closed):
        peer.hang_up()
    connected = here.attach("connected")
    here.attach("unformed").hang_up()
    assert here.attach("one more").is_welcome
    assert set(here.coordinator.runs) == {"empty", "closed", "connected", "one more"}
    assert not here.attach("yet another").is_welcome, "what had a round is kept for a minute"
    here.pass_time(EVICT_AFTER_S + 1)
    assert here.attach("then").is_welcome
    assert set(here.coordinator.runs) == {"empty", "connected", "one more", "then"}
    assert here.attach("and then").is_welcome
    assert set(here.coordinator.runs) == {"connected", "one more", "then", "and then"}
    assert not here.attach("at last").is_welcome
    assert not connected.is_closed


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_run_without_a_round_is_kept_if_several_nodes_were_in_it(
    nodes: int,
) -> None:
    here = OneCoordinator()
    for number in range(nodes):
        here.attach("run", str(number), min_nodes=7, max_nodes=7).hang_up()
    here.pass_time(60.0)
    assert ("run" in here.coordinator.runs) == (nodes > 1)
    here.pass_time(600.0)
    assert "run" not in here.coordinator.runs


def test_a_forgotten_run_without_a_round_may_begin_again() -> None:
    """It waited for others, and lost its connection for longer than such a run is kept."""
    here = OneCoordinator()
    waiting = here.attach("run", min_nodes=2, max_nodes=2)
    (welcome,) = [each for each in waiting.told if isinstance(each, wire.Welcome)]
    waiting.hang_up()
    here.pass_time(60.0)
    assert "run" not in here.coordinator.runs
    peer = Peer(here, HERE)
    settings = RunSettings(min_nodes=2, max_nodes=2)
    peer.say(wire.Attach(welcome.stamp, wire.VERSION, "run", NodeInfo("n", 1, "h"), settings))
    assert peer.is_welcome
    assert peer.told[0].stamp.term > welcome.stamp.term, "R5: newer than what the node has seen"


def test_a_closing_run_is_kept_like_a_closed_one() -> None:
    """Also where that is shorter than what an empty one is kept."""
    here = OneCoordinator(closed_run_keep_s=5.0)
    here.with_round("run").hang_up()
    here.pass_time(1.0)
    here.coordinator.runs["run"].post(on.CloseRequested("operator", Outcome.STOPPED, "enough"))
    here.commit()
    here.pass_time(4.0)
    assert "run" in here.coordinator.runs
    here.pass_time(10.0)
    assert "run" not in here.coordinator.runs


# -- how fast runs are begun -----------------------------------------------------------------------


def busy() -> OneCoordinator:
    """A coordinator on which this address has begun many runs just now."""
    here = OneCoordinator()
    for number in range(RUNS_AT_ONCE):
        here.attach(f"run-{number}").hang_up()
    return here


def test_an_account_that_begins_many_runs_waits() -> None:
    here = busy()
    waiting = [here.attach(f"new-{number}") for number in range(50)]
    elsewhere = here.attach("elsewhere", account=THERE)
    assert elsewhere.is_welcome
    assert not any(each.told for each in waiting)
    here.pass_time(0.3)
    assert 20 <= sum(each.is_welcome for each in waiting) < 50
    here.pass_time(0.5)
    assert all(each.is_welcome for each in waiting)


def test_all_nodes_of_one_run_wait_for_the_same_turn() -> None:
    here = busy()
    first = here.attach("new", "0", min_nodes=90, max_nodes=100)
    others = [here.attach("new", str(n), min_nodes=90, max_nodes=100) for n in range(1, 100)]
    here.pass_time(0.2)
    assert first.is_welcome
    assert all(each.is_welcome for each in others)


def test_a_waiting_connection_may_close_or_send() -> None:
    here = busy()
    gone, talks = here.attach("gone"), here.attach("talks")
    gone.hang_up()
    talks.say(wire.Ready(Stamp(), 0, Address("127.0.0.1", 1), 1, None))
    talks.say(wire.Goodbye(Stamp(), "changed its mind"))
    assert not talks.told
    here.pass_time(1.0)
    assert "gone" not in here.coordinator.runs
    assert talks.is_welcome


def test_a_wait_that_would_be_too_long_is_refused_with_the_limit() -> None:
    here = busy()
    waiting = [here.attach(f"new-{number}") for number in range(int(WAIT_MAX_S * 100) + 10)]
    refusal = waiting[-1].refusal
    assert refusal.code is RefusalCode.LIMIT
    assert "100 a second" in refusal.message
    assert "RALLYPOINT_NEW_RUN_RATE" in refusal.hint
    assert here.attach("run-1", "another").is_welcome, "that run is begun already"


def test_members_that_attach_to_the_next_coordinator_do_not_wait() -> None:
    """All at once, behind one address: they have the attach grace, and begin no run."""
    here = busy()
    assert here.coordinator.admission.wait_s("new", HERE) != 0.0
    for number in range(5_000):
        assert (
            here.coordinator.admission.wait_s(f"taken-over-{number}", HERE, was_in_it=True) == 0.0
        )
    for number in range(10_000):
        here.coordinator.admission.wait_s(f"made-up-{number}", HERE, was_in_it=True)
    assert here.coordinator.admission.wait_s("made-up", HERE, was_in_it=True) is None


def test_a_run_may_find_no_room_at_its_turn() -> None:
    here = busy()
    waiting = here.attach("new")
    here.coordinator.config = CoordinatorConfig(runs_max=0)
    here.pass_time(1.0)
    assert waiting.refusal.code is RefusalCode.LIMIT


# -- what idle runs cost ---------------------------------------------------------------------------


def calls_in_a_tick(runs: int) -> int:
    here = OneCoordinator(new_runs_per_s=1e8)
    held = [here.attach(f"run-{number}") for number in range(runs)]
    for number in range(runs):
        here.with_round(f"closed-{number}").hang_up()
    here.pass_time(1.0)
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    here.now_s += 0.2
    sys.setprofile(count)
    try:
        here.coordinator.tick()
    finally:
        sys.setprofile(None)
    assert len(held) == runs
    return calls


def test_a_tick_costs_nothing_for_idle_runs() -> None:
    assert calls_in_a_tick(400) == calls_in_a_tick(10)


def test_remains_of_a_connection_are_removed_soon() -> None:
    """However long the run's settings let its nodes be silent, away or without an answer."""
    here = OneCoordinator()
    forever: dict[str, Any] = {
        "reconnect_grace_s": 1e7,
        "probe_s": 1e7,
        "mass_grace_s": 1e7,
        "last_call_s": 1e7,
    }
    stays = here.attach("run", "stays", min_nodes=2, max_nodes=9, **forever)
    for number in range(500):
        peer = here.attach("run", "comes", min_nodes=2, max_nodes=9, **forever)
        if number % 2:
            peer.say(wire.Ready(Stamp(), 0, Address("127.0.0.1", 1), 1, None))
            stays.say(wire.Ready(Stamp(), 0, Address("127.0.0.1", 1), 1, None))
        if number % 3:
            peer.hang_up()
            here.attach("run", "comes", min_nodes=2, max_nodes=9, **forever)
        peer = here.attach("run", "comes", min_nodes=2, max_nodes=9, **forever)
        peer.say(wire.Goodbye(Stamp(), "bye"))
        here.pass_time(0.2)
    assert len(here.coordinator._timers) < 10
    here.pass_time(61.0)
    assert len(here.coordinator._listening) < 10


# -- limits of one token ---------------------------------------------------------------------------

OTHER = Account("other", "10.0.0.9")


def test_a_token_has_only_so_many_runs_at_all_its_addresses() -> None:
    here = OneCoordinator(token_runs_max=2)
    here.attach("one", account=HERE)
    gone = here.attach("two", account=THERE)
    refusal = here.attach("three", account=HERE).refusal
    assert refusal.code is RefusalCode.LIMIT
    assert refusal.message == "this token has 2 runs here, and may have no more"
    assert "RALLYPOINT_TOKEN_RUNS_MAX" in refusal.hint
    assert here.attach("another", account=OTHER).is_welcome
    assert here.attach("one", "b", account=THERE).is_welcome
    gone.hang_up()
    assert here.attach("three", account=HERE).is_welcome, "a run that never formed makes room"
    assert set(here.coordinator.runs) == {"one", "another", "three"}


def test_a_token_has_only_so_many_connections() -> None:
    admission = OneCoordinator(token_sessions_max=2).coordinator.admission
    for number, account in enumerate((HERE, THERE)):
        assert admission.session_refusal(account) is None
        admission.connected(number, account)
    refusal = admission.session_refusal(HERE)
    assert refusal is not None
    assert refusal.message == "this token has 2 connections here, and may have no more"
    assert admission.session_refusal(OTHER) is None
    assert admission.session_refusal(Account("", "10.0.0.1")) is None
    admission.disconnected(0, HERE)
    assert admission.session_refusal(THERE) is None


def test_the_runs_of_a_token_have_only_so_much_memory_together() -> None:
    limit = 16 * 1024**2
    here = OneCoordinator(token_bytes_max=limit)
    for run_id, account in (("one", HERE), ("two", THERE), ("other", OTHER)):
        here.attach(run_id, account=account)
    one, two, other = (here.coordinator.runs[each].share for each in ("one", "two", "other"))
    group = two.group
    assert group is not None
    assert one.group is group is not other.group
    assert group.used == one.used + two.used
    one.add(limit - group.used - 1_000)
    assert two.excess(1_000) is None
    excess = two.excess(1_001)
    assert excess is not None
    assert "the runs of its token use" in str(excess)
    assert "16 MiB (RALLYPOINT_TOKEN_MEMORY)" in str(excess)
    assert other.excess(1_001) is None
    here.coordinator.forget_run(here.coordinator.runs["one"])
    assert group.used == two.used
    assert two.excess(1_000_000) is None
