"""Whom a coordinator admits, and what it tells a node that it refuses or that comes too late."""

from __future__ import annotations

import pytest

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.store import Get, Set, StoreFailure
from rallypoint.core.values import (
    ChangeKind,
    ConnectionEnd,
    NodeInfo,
    Outcome,
    RunSettings,
)
from rallypoint.wire import messages as wire
from tests.coordinator.first_round import TWO, UP_TO_FOUR, met
from tests.network import RUN, Network, stamp

# -- refusals --------------------------------------------------------------------------------------


def test_conflicting_settings_show_both_values():
    network = Network()
    network.node("a", TWO)
    network.settle()
    b = network.node("b", UP_TO_FOUR)
    network.settle()
    assert b.refused is not None
    assert b.refused.code is RefusalCode.CONFLICT
    shown = {c.name: (c.run_value, c.node_value) for c in b.refused.conflicts}
    assert shown == {"max_nodes": ("2", "4"), "last_call_s": ("30.0", "1.0")}
    assert "max_nodes: the run has 2, this node 4" in b.refused.message
    assert "(--nnodes, --last-call)" in b.refused.hint


def test_r5_a_node_of_a_run_that_was_removed_learns_it():
    network = Network()
    node = NodeInfo("a", 1, "host")
    attach = wire.Attach(stamp(5), wire.VERSION, "gone", node, TWO)
    refused = network.coordinator.admission.refusal(attach)
    assert refused is not None
    assert refused.code is RefusalCode.RUN_LOST
    assert refused.message == "run 'gone' was removed: it had no nodes for too long"


def test_a_newer_process_is_refused_while_the_older_one_answers():
    network = Network()
    a, _ = met(network)
    newer = network.node("n0", TWO, incarnation=2)
    network.until(lambda: newer.refused is not None, 2.0)
    assert newer.refused is not None
    assert newer.refused.code is RefusalCode.NAME_TAKEN
    assert not a.changes


def test_a_newer_process_replaces_one_that_does_not_answer():
    network = Network()
    a, b = met(network)
    a.is_deaf = True
    newer = network.node("n0", TWO, incarnation=2)
    newer.ready()
    network.until(lambda: newer.machine.is_attached, 3.0)
    assert b.changes[-1].kind is ChangeKind.NODE_LOST
    a.is_deaf = False
    network.settle()
    assert a.refused is not None
    assert a.refused.code is RefusalCode.SUPERSEDED
    network.advance(3.0)
    assert a.link is None


@pytest.mark.parametrize("has_died", [True, False])
def test_a_newer_process_is_admitted_at_once_if_the_older_one_has_ended(has_died: bool):
    network = Network()
    a, b = met(network)
    a.is_deaf, a.reconnects = True, False
    newer = network.node("n0", TWO, incarnation=2)
    network.settle()
    assert not newer.machine.is_attached
    assert a.link is not None
    assert a.link.session is not None
    if has_died:
        a.link.session.connection_lost(ConnectionEnd.PROCESS_ENDED)
    a.cut()
    network.advance(0.1)
    assert newer.machine.is_attached == has_died
    if not has_died:
        network.advance(TWO.reconnect_grace_s - 0.5)
        assert not b.changes
        network.advance(1.0)
        assert newer.machine.is_attached


def test_r4_the_next_incarnation_has_no_rank_in_the_round_of_the_last():
    network = Network()
    settings = RunSettings(min_nodes=2, max_nodes=3, last_call_s=0.1)
    a, b = met(network, 2, settings)
    a.act(a.machine.done())  # so that its end breaks no round
    a.act(a.machine.goodbye("bye"))
    network.settle()
    again = network.node("n0", settings, incarnation=2)
    network.settle()
    forged = wire.StoreCall(stamp(1), 1, Set("k", b"late"), 1.0)
    assert again.link is not None
    again.link.up.append(wire.encode(forged))
    network.settle()
    request = b.call(Get("k"), 0.1)
    network.advance(1.0)
    assert isinstance(b.answers[request], StoreFailure)


def test_a_refusal_by_a_closed_run_has_the_reason_and_the_time():
    network = Network()
    a, _ = met(network)
    a.act(a.machine.close(Outcome.SUCCEEDED, "trained"))
    network.advance(65.0)
    late = network.node("late", TWO)
    network.settle()
    assert late.refused is not None
    assert late.refused.code is RefusalCode.CLOSED
    assert late.refused.close is not None
    assert late.refused.close.reason == "trained"
    assert "closed 65 s ago: succeeded: trained (by node 'n0')" in late.refused.message


def test_a_run_closed_while_disconnected_is_closed_for_the_node_too():
    network = Network()
    a, b = met(network)
    b.reconnects = False
    b.cut()
    a.act(a.machine.close(Outcome.SUCCEEDED, "trained"))
    network.settle()
    b.connect()
    network.settle()
    assert (b.closed, b.refused) == (a.closed, None)
    assert b.changes[-1].kind is ChangeKind.CLOSED


def test_a_run_lost_with_its_coordinator_is_lost_to_its_nodes():
    network = Network()
    a, _ = met(network)
    network.replace_coordinator("another")
    network.until(lambda: a.refused is not None, 2.0)
    assert a.refused is not None
    assert a.refused.code is RefusalCode.RUN_LOST
    fresh = network.node("fresh", TWO)
    network.settle()
    assert fresh.machine.is_attached


def test_a_forgotten_run_is_lost_to_its_nodes():
    """R5: begun again under the same ledger, its rounds would look older than those they saw."""
    network = Network(CoordinatorConfig(empty_run_keep_s=1.0))
    a, b = met(network)
    for node in (a, b):
        node.reconnects = False
        node.cut()
    network.until(lambda: RUN not in network.coordinator.runs, 300.0)
    a.connect()
    network.settle()
    assert a.refused is not None
    assert a.refused.code is RefusalCode.RUN_LOST


def test_a_run_that_begins_again_has_higher_fencing_tokens():
    """R1, R13: the ledger_id is the same."""
    network = Network(CoordinatorConfig(empty_run_keep_s=1.0))
    a, b = met(network)
    before = network.run.membership
    for node in (a, b):
        node.reconnects = False
        node.cut()
    network.until(lambda: RUN not in network.coordinator.runs, 300.0)
    fresh = [network.node(name, TWO, incarnation=7) for name in ("c", "d")]
    for node in fresh:
        node.ready()
    network.settle()
    after = network.run.membership
    assert after.round is not None
    assert before.round is not None
    assert after.round.head.term > before.round.head.term
    assert after.round.head.number > before.round.head.number


def test_a_run_is_kept_while_its_members_may_resume():
    network = Network(CoordinatorConfig(empty_run_keep_s=0.0))
    nodes = met(network)
    network.advance(10.0)  # so that it is older than an empty run may be
    for node in nodes:
        node.reconnects = False
        node.cut()
    network.advance(0.6)  # a few looks, within reconnect_grace
    assert RUN in network.coordinator.runs
    for node in nodes:
        node.connect()
    network.settle()
    assert [node.machine.is_attached for node in nodes] == [True, True]


def test_a_hosted_coordinator_admits_its_own_run_only():
    network = Network(CoordinatorConfig(only_run="another"))
    a = network.node("a", TWO)
    network.settle()
    assert a.refused is not None
    assert a.refused.code is RefusalCode.OTHER_RUN
    assert "rallypoint serve" in a.refused.hint


@pytest.mark.parametrize(
    ("config", "code"),
    [
        (CoordinatorConfig(runs_max=0), RefusalCode.LIMIT),
        (CoordinatorConfig(members_max=0), RefusalCode.LIMIT),
        (CoordinatorConfig(sessions_max=0), RefusalCode.LIMIT),
    ],
)
def test_a_node_beyond_a_limit_is_refused(config: CoordinatorConfig, code: RefusalCode):
    network = Network(config)
    a = network.node("a", TWO)
    network.settle()
    assert a.refused is not None
    assert a.refused.code is code


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\nb", "a\0"])
def test_names_that_could_forge_a_log_are_refused(name: str):
    network = Network()
    a = network.node(name, TWO)
    network.settle()
    assert a.refused is not None
    assert a.refused.code is RefusalCode.MALFORMED
