"""A run id was used before its job began: the job learns by which node, and how to get it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rallypoint.core import events as on
from rallypoint.core.admission import BEGIN_AGAIN_AFTER_S, is_reusable
from rallypoint.core.reasons import RefusalCode
from rallypoint.core.values import CloseRecord, NodeInfo, Outcome, RunSettings, Stamp
from rallypoint.wire import messages as wire
from tests.coordinator.one_coordinator import HERE, OneCoordinator, Peer

SQUATTERS: dict[str, Any] = {"min_nodes": 7, "max_nodes": 7}
JOBS: dict[str, Any] = {"min_nodes": 2, "max_nodes": 4}


def closed_by_node(here: OneCoordinator, **settings: Any) -> Peer:
    squatter = here.attach("job", "x", **settings)
    squatter.say(wire.CloseRun(Stamp(), Outcome.SUCCEEDED, "squatted"))
    here.commit()
    assert here.coordinator.runs["job"].is_closed
    return squatter


def test_a_conflict_names_the_node_that_set_the_settings_and_what_to_do() -> None:
    here = OneCoordinator()
    here.attach("job", "x", **SQUATTERS)
    here.pass_time(12.0)
    refusal = here.attach("job", "n0", **JOBS).refusal
    assert refusal.code is RefusalCode.CONFLICT
    assert "min_nodes: the run has 7, this node 2" in refusal.message
    assert "node 'x' on host 'h' set the run's settings 12 s ago" in refusal.message
    assert "rallypoint close" in refusal.hint


def test_an_operator_can_close_a_run_in_the_jobs_way() -> None:
    here = OneCoordinator()
    squatter = here.attach("job", "x", **SQUATTERS)
    here.coordinator.runs["job"].post(
        on.CloseRequested("operator at ::1", Outcome.STOPPED, "not ours", by_operator=True)
    )
    here.commit()
    assert here.attach("job", "n0", **JOBS).is_welcome
    assert squatter.is_closed
    assert here.coordinator.runs["job"].membership.settings.min_nodes == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("stays", [True, False])
def test_a_run_that_was_closed_without_a_round_begins_again_for_another_job(stays: bool) -> None:
    here = OneCoordinator()
    squatter = closed_by_node(here, **SQUATTERS)
    before = here.coordinator.runs["job"].membership
    if not stays:
        squatter.hang_up()
    node = here.attach("job", "n0", **JOBS)
    assert node.is_welcome
    run = here.coordinator.runs["job"]
    assert run.membership.term > before.term
    squatter.say(wire.CloseRun(Stamp(), Outcome.FAILED, "and again"))
    here.commit()
    assert not run.is_closed, "what the squatter still says counts for its own run"


def test_late_nodes_of_the_same_job_learn_that_it_is_closed() -> None:
    here = OneCoordinator()
    closed_by_node(here, **JOBS).hang_up()
    late = here.attach("job", "late", **JOBS)
    assert late.refusal.code is RefusalCode.CLOSED
    assert "squatted (by node 'x')" in late.refusal.message
    assert "in 30 s under this one" in late.refusal.hint
    here.pass_time(BEGIN_AGAIN_AFTER_S + 1)
    assert here.attach("job", "n0", **JOBS).is_welcome


def test_a_run_closed_by_an_operator_stays_closed_for_its_job() -> None:
    here = OneCoordinator()
    here.attach("job", "x", **JOBS)
    here.coordinator.runs["job"].post(
        on.CloseRequested("operator at ::1", Outcome.STOPPED, "enough", by_operator=True)
    )
    here.commit()
    here.pass_time(2 * BEGIN_AGAIN_AFTER_S)
    refusal = here.attach("job", "n0", **JOBS).refusal
    assert refusal.code is RefusalCode.CLOSED
    assert refusal.hint == "start again under another run id"


def test_a_node_whose_name_is_like_an_operator_is_a_node() -> None:
    here, name = OneCoordinator(), "operator at 10.0.0.7"
    node = here.attach("job", name, **JOBS)
    node.say(wire.CloseRun(Stamp(), Outcome.STOPPED, "maintenance"))
    here.commit()
    node.hang_up()
    close = here.coordinator.runs["job"].membership.close
    assert str(close) == f"stopped: maintenance (by node {name!r})"
    here.pass_time(BEGIN_AGAIN_AFTER_S + 1)
    assert here.attach("job", "n0", **JOBS).is_welcome


@pytest.mark.parametrize(("by", "is_so"), [("operator at ::1", False), ("x", True), ("", True)])
def test_a_record_of_an_older_release_tells_by_its_text_who_closed_the_run(
    by: str, is_so: bool
) -> None:
    older = msgspec.msgpack.encode(("stopped", "enough", by, 3, 0, None))
    close = msgspec.msgpack.decode(older, type=CloseRecord)
    assert is_reusable(close) is is_so
    assert str(close) == (f"stopped: enough (by {by})" if by else "stopped: enough")


def test_a_run_that_had_a_round_stays_closed() -> None:
    """R6."""
    here = OneCoordinator()
    member = here.with_round("job")
    member.say(wire.CloseRun(Stamp(), Outcome.SUCCEEDED, "done"))
    here.commit()
    member.hang_up()
    here.pass_time(2 * BEGIN_AGAIN_AFTER_S)
    for settings in (JOBS, {}):
        assert here.attach("job", "n0", **settings).refusal.code is RefusalCode.CLOSED


def test_a_closed_run_stays_closed_for_its_members() -> None:
    """R6. A node that lost its connection before the news comes with the stamp of the run."""
    here = OneCoordinator()
    away = here.attach("job", "away", **SQUATTERS)
    stamp = away.told[0].stamp
    away.hang_up()
    closed_by_node(here, **SQUATTERS)
    here.pass_time(2 * BEGIN_AGAIN_AFTER_S)
    peer = Peer(here, HERE)
    settings = RunSettings(**SQUATTERS)
    peer.say(wire.Attach(stamp, wire.VERSION, "job", NodeInfo("away", 1, "h"), settings))
    assert peer.refusal.code is RefusalCode.CLOSED


def test_a_loop_of_closing_and_beginning_again_is_slowed() -> None:
    here = OneCoordinator()
    begun = 0
    for number in range(5_000):
        peer = here.attach("job", "x", min_nodes=7 + number % 2, max_nodes=9)
        begun += peer.is_welcome
        if peer.is_welcome:
            peer.say(wire.CloseRun(Stamp(), Outcome.FAILED, "again"))
            here.commit()
        else:
            peer.hang_up()
    assert begun <= 1_000
