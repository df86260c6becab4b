"""The simulation of a fleet: what becomes of a job's time, and that the shipped core decides it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from rallypoint.checkers.invariants import check
from rallypoint.core.suspicion import HOST_GRACE_S
from rallypoint.core.values import RunSettings
from rallypoint.errors import UsageError
from rallypoint.simulation.fleet import failures as fail
from rallypoint.simulation.fleet import takeovers
from rallypoint.simulation.fleet.accounts import Accounts, Cause, Distribution
from rallypoint.simulation.fleet.failures import Failure
from rallypoint.simulation.fleet.fleet import Fleet
from rallypoint.simulation.fleet.play import Result, drawn, play
from rallypoint.simulation.fleet.settings import full_name, settings_of
from rallypoint.simulation.fleet.takeovers import Takeovers
from rallypoint.simulation.fleet.workload import HOUR_S, Burst, Workload

DEFAULTS = RunSettings()


def job(*failures: Failure, texts: dict[str, str] | None = None, **workload: Any) -> Result:
    """A job of an hour with 16 nodes that meets just these failures."""
    given: dict[str, Any] = {
        "nodes": 16,
        "seconds": HOUR_S,
        "coordinator": "apart",
        "mtbf_s": math.inf,
    }
    return play(Workload(**(given | workload)), texts or {}, list(failures), seed=1)


def lost(result: Result, cause: Cause) -> float:
    return next(each.seconds for each in result.lost if each.cause == cause)


# -- failures of each kind -------------------------------------------------------------------------


def test_without_failures_only_the_start_and_checkpoints_take_time() -> None:
    result = job()
    taken = {each.cause for each in result.lost if each.seconds > 0}
    assert taken == {"meet", "start", "checkpoint"}
    assert lost(result, Cause.START) == pytest.approx(30.0)
    assert result.rounds == 1
    assert not result.breaks


def test_the_end_of_a_process_is_known_at_once() -> None:
    result = job(Failure(1_800.0, "process", (3,), 600.0))
    assert result.breaks == {"node_lost": 1, "nodes_joined": 1}
    assert lost(result, Cause.DETECT) < 0.1
    assert result.own.max_s is not None
    assert result.own.max_s < 0.2


@pytest.mark.parametrize("lost_after", [10.0, 30.0])
def test_a_silent_machine_is_lost_after_the_setting(lost_after: float) -> None:
    failure = Failure(1_800.0, "host", (3,), 600.0)
    result = job(failure, texts={"lost_after_s": f"{lost_after}"})
    heartbeat_s = DEFAULTS.suspect_after_s / 3
    assert lost_after - heartbeat_s <= lost(result, Cause.DETECT) <= lost_after + 0.1


def test_a_short_freeze_ends_no_round() -> None:
    result = job(Failure(1_800.0, "freeze", (3,), 20.0))
    assert not result.breaks
    assert lost(result, Cause.STALL) == pytest.approx(20.0, abs=0.1)
    assert result.regroups.count == 0


def test_a_long_freeze_does_and_the_node_comes_back() -> None:
    result = job(Failure(1_800.0, "freeze", (3,), 120.0))
    assert result.breaks == {"node_lost": 1, "nodes_joined": 1}
    assert lost(result, Cause.STALL) == 0


def test_a_worker_failure_is_charged() -> None:
    failure = Failure(1_800.0, "worker", (3,), 0.0)
    ended = job(failure)
    assert ended.ended
    assert lost(ended, Cause.ENDED) == pytest.approx(1_800.0, abs=1.0)
    goes_on = job(failure, texts={"max_restarts": "1"})
    assert not goes_on.ended
    assert goes_on.breaks == {"worker_failed": 1}


@pytest.mark.parametrize("notice_s", [0.0, 30.0])
def test_preempted_nodes_end_the_round_once(notice_s: float) -> None:
    result = job(Failure(1_800.0, "preempt", (3, 4, 5, 9), 600.0), notice_s=notice_s)
    why = "node_left" if notice_s else "node_lost"
    assert result.breaks == {why: 1, "nodes_joined": 1}


def test_too_few_nodes_wait_for_others() -> None:
    result = job(Failure(1_800.0, "preempt", (3, 4), 600.0), min_nodes=16, notice_s=0.0)
    assert lost(result, Cause.BELOW_MINIMUM) == pytest.approx(600.0, abs=5.0)
    assert result.own.max_s is not None
    assert result.own.max_s < 5.0


def test_a_spare_takes_the_place_and_the_node_that_returns_ends_no_round() -> None:
    result = job(Failure(1_800.0, "process", (3,), 600.0), spares=1)
    assert result.breaks == {"node_lost": 1}


def test_many_silent_machines_raise_the_mass_guard() -> None:
    result = job(Failure(1_800.0, "host", tuple(range(9)), 600.0), min_nodes=2)
    assert lost(result, Cause.DETECT) > DEFAULTS.mass_grace_s


# -- coordinators and ledgers ----------------------------------------------------------------------


def test_the_loss_of_the_coordinator_ends_no_round() -> None:
    result = job(coordinator_mtbf_s=600.0)
    assert result.takeovers.count >= 2
    assert not result.breaks
    assert lost(result, Cause.COORDINATOR) == 0


def test_its_loss_together_with_its_node_ends_one() -> None:
    result = job(Failure(1_800.0, "process", (0,), 600.0), coordinator="node")
    assert result.takeovers.count == 1
    assert result.breaks == {"node_lost": 1, "nodes_joined": 1}
    # The next coordinator waits for the node of the last one.
    assert result.regroups.max_s is not None
    assert HOST_GRACE_S < result.regroups.max_s - 30.0 < 10.0


@pytest.mark.parametrize(
    ("how", "least_s", "most_s"),
    [("handover", 0.0, 2.0), ("crash", 0.0, 7.0), ("silence", 8.0, 15.0)],
)
def test_the_shipped_election_finds_the_next_coordinator(
    how: str, least_s: float, most_s: float
) -> None:
    found = takeovers.play(how, 1, lease_ttl_s=5.0, silence_s=6.0)
    assert least_s < found.owned_s < most_s
    assert len(found.later_s) == takeovers.NODES - 1
    assert found == takeovers.play(how, 1, lease_ttl_s=5.0, silence_s=6.0)


def test_a_longer_lease_delays_the_takeover_from_a_silent_machine() -> None:
    short, long = (takeovers.play("silence", 1, lease_ttl_s=s, silence_s=6.0) for s in (3.0, 30.0))
    assert long.owned_s > short.owned_s + 4.0


def test_a_run_in_memory_ends_with_its_coordinator() -> None:
    result = job(coordinator_mtbf_s=600.0, ledger="memory")
    assert "memory" in result.ended


def test_an_outage_of_the_ledger_ends_no_round() -> None:
    result = job(outages=(Burst(120.0, 1_800.0),))
    assert not result.breaks
    assert lost(result, Cause.LEDGER) == 0


def test_no_round_is_formed_while_the_ledger_is_away() -> None:
    result = job(Failure(1_860.0, "process", (3,), 600.0), outages=(Burst(300.0, 1_800.0),))
    assert lost(result, Cause.LEDGER) == pytest.approx(240.0, abs=10.0)


# -- the whole -------------------------------------------------------------------------------------


def workload_of(seed: int) -> Workload:
    """A small job in which everything fails."""
    draw = random.Random(seed).choice
    return Workload(
        nodes=draw((1, 2, 5, 12, 24)),
        spares=draw((0, 0, 3)),
        seconds=4 * HOUR_S,
        mtbf_s=draw((5 * HOUR_S, 50 * HOUR_S)),
        shares={"process": 0.25, "host": 0.25, "freeze": 0.25, "worker": 0.25},
        mttr_s=draw((5.0, 600.0, 7_200.0)),
        restart_s=draw((0.0, 30.0)),
        freeze_s=draw((3.0, 60.0)),
        preemptions=draw(((), (Burst(0.3, 600.0, 3_600.0),), (Burst(1.0, 3_600.0),))),
        notice_s=draw((0.0, 30.0)),
        rack=draw((0, 4)),
        rack_mtbf_s=40 * HOUR_S,
        checkpoint_every_s=draw((60.0, 900.0, math.inf)),
        saves_on_change=draw((True, False)),
        peers_fail=draw((True, False)),
        coordinator=draw(("node", "apart")),
        coordinator_mtbf_s=draw((2 * HOUR_S, math.inf)),
        outages=draw(((), (Burst(120.0, 1_000.0, 2_000.0),))),
    )


@pytest.mark.parametrize("seed", range(24))
def test_all_seconds_are_counted_once_and_no_rule_is_broken(seed: int) -> None:
    workload = workload_of(seed)
    chosen = settings_of({"max_restarts": "any"}, nodes=workload.nodes, min_nodes=workload.least)
    elections = Takeovers(lease_ttl_s=5.0, silence_s=6.0, seed=seed)
    fleet = Fleet(workload, chosen, drawn(workload, seed), elections, seed)

    def holds() -> bool:
        if fleet.coordinator is not None:
            check(fleet.coordinator.membership)
        return True

    assert fleet.run(holds)
    accounts = fleet.rounds.accounts
    total_s = accounts.useful_s + sum(accounts.lost_s.values())
    assert total_s == pytest.approx(workload.seconds, abs=1e-3)
    assert min(accounts.lost_s.values()) >= 0
    assert fleet.rounds.count


def _mean(of: Callable[[int], Result]) -> float:
    results = [of(seed).useful for seed in range(6)]
    return sum(results) / len(results)


def test_fewer_failures_are_not_worse() -> None:
    def useful(mtbf_hours: float) -> float:
        workload = Workload(nodes=16, seconds=48 * HOUR_S, mtbf_s=mtbf_hours * HOUR_S)
        return _mean(lambda seed: play(workload, {}, drawn(workload, seed), seed))

    found = [useful(hours) for hours in (50, 200, 1_000)]
    assert found == sorted(found)


def test_a_longer_mean_gives_the_same_failures_later() -> None:
    def times(mtbf_hours: float) -> list[float]:
        workload = Workload(
            nodes=1, seconds=1e9, mtbf_s=mtbf_hours * HOUR_S, mttr_s=0.0, restart_s=0
        )
        return [each.at_s for each in fail.draw(workload, 3)][:5]

    assert times(200) == pytest.approx([2 * each for each in times(100)], rel=1e-3)


def test_failures_do_not_depend_on_settings_that_are_no_failures() -> None:
    ways = [Workload(mtbf_s=9e5, start_s=s, min_nodes=m) for s, m in ((1.0, 1), (99.0, 60))]
    assert fail.draw(ways[0], 5) == fail.draw(ways[1], 5) != fail.draw(ways[0], 6)


def test_an_end_before_its_time_is_told() -> None:
    asked: list[float] = []

    def go_on(at_s: float, rounds: int) -> bool:
        asked.append(at_s)
        return len(asked) < 3

    workload = Workload(mtbf_s=HOUR_S)
    result = play(workload, {}, drawn(workload, 1), 1, go_on)
    assert not result.is_whole
    assert result.seconds == pytest.approx(asked[-1], abs=1.0)
    assert result.useful_s + sum(each.seconds for each in result.lost) == pytest.approx(
        result.seconds
    )


def test_ten_thousand_nodes_regroup() -> None:
    result = job(Failure(900.0, "process", (77,), 600.0), nodes=10_000, seconds=1_800.0)
    assert result.breaks == {"node_lost": 1, "nodes_joined": 1}
    assert result.own.max_s is not None
    assert 0.2 < result.own.max_s < 1.0


# -- parts -----------------------------------------------------------------------------------------


def test_what_was_not_saved_is_lost() -> None:
    accounts = Accounts(checkpoint_every_s=100.0, checkpoint_s=10.0)
    accounts.began(4, 5.0)
    accounts.finished(5.0 + 2 * 110 + 60, saves=False)
    assert accounts.useful_s == 200
    assert accounts.lost_s[Cause.REWORK] == 60
    assert accounts.lost_s[Cause.CHECKPOINT] == 20
    assert accounts.node_s == 800


def test_a_checkpoint_that_was_not_finished_saves_nothing() -> None:
    accounts = Accounts(checkpoint_every_s=100.0, checkpoint_s=10.0)
    accounts.began(4, 0.0)
    accounts.finished(105.0, saves=False)
    assert accounts.useful_s == 0
    assert (accounts.lost_s[Cause.REWORK], accounts.lost_s[Cause.CHECKPOINT]) == (100, 5)


def test_a_distribution_has_times_that_occurred() -> None:
    found = Distribution.of([float(each) for each in range(1, 101)])
    assert (found.p50_s, found.p90_s, found.p99_s, found.max_s) == (50, 90, 99, 100)
    assert Distribution.of([]).p50_s is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("lost_aftr", "lost_after"),
        ("nnodes", "--min-nodes"),
        ("orphan", "these do"),
        ("zzzz", "rallypoint env"),
    ],
)
def test_a_setting_that_does_not_exist(name: str, says: str) -> None:
    with pytest.raises(UsageError) as found:
        full_name(name)
    assert says in found.value.hint


def test_settings_are_found_by_short_names() -> None:
    assert [full_name(each) for each in ("lost-after", "LOST_AFTER_S", "probe")] == [
        "lost_after_s",
        "lost_after_s",
        "probe_s",
    ]
