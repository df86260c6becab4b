"""Each kind of fault has an effect in some of the seeds that draw it, and is not only planned."""

from __future__ import annotations

import errno
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rallypoint.core.values import Change
from rallypoint.simulation import disk, faults, machine, racks, variants
from rallypoint.simulation.job import Job
from rallypoint.simulation.plan import Plan
from rallypoint.simulation.scene import Oracle, Scene, StartedNode, Token
from rallypoint.simulation.situations import situated

SEEDS = 150
"""In one of the first so many seeds that have the kind, it has its effect."""
DRAWN = 3_000
"""Of so many seeds."""


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("CRITICAL", "rallypoint"):
        yield


def plays_until(
    has_effect: Callable[[Job], bool],
    is_of_kind: Callable[[Plan], bool],
    *oracles: Callable[[Scene], Oracle],
) -> bool:
    """Play seeds whose plan has something, until it has its effect. No rule may be broken."""
    plays = 0
    for seed in range(DRAWN):
        job = Job(seed)
        if not is_of_kind(job.plan):
            continue
        job.scene.oracles.extend(oracle(job.scene) for oracle in oracles)
        assert job.run().problems == []
        plays += 1
        if has_effect(job):
            return True
        if plays == SEEDS:
            return False
    raise AssertionError(f"only {plays} of {DRAWN} seeds have it")


def has(kind: str) -> Callable[[Plan], bool]:
    """Whether a plan has faults of this kind."""
    return lambda plan: any(fault.kind == kind for fault in plan.faults)


def over_files(plan: Plan) -> bool:
    """Whether the ledger is on a file server or on the only machine's disk."""
    return plan.ledger != "etcd"


@pytest.mark.parametrize("status", [404, 429, 502])
def test_nodes_meet_a_proxy_that_has_no_coordinator(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, met = machine._answered_by_a_proxy, set()

    def noted(address: object, status: int) -> Exception:
        met.add(status)
        return answered(address, status)  # type: ignore[arg-type]

    monkeypatch.setattr(machine, "_answered_by_a_proxy", noted)
    assert plays_until(lambda job: status in met, has("proxy"))


def test_a_proxy_ends_connections_that_are_idle() -> None:
    assert plays_until(
        lambda job: job.scene.network.ended_idle > 3, lambda plan: plan.proxy_idle_s > 0
    )


def alike(job: Job) -> int:
    """How many nodes that took part in rounds had made one and the same start of a name."""
    starts: Counter[str] = Counter()
    for each in job.scene.nodes:
        own = each.process.loop.runtime
        made = f"{own.host_name}-{own.pid}-"
        if each.tokens and each.node is not None and each.node.info.name.startswith(made):
            starts[made] += 1
    return max(starts.values(), default=0)


def test_nodes_of_one_host_name_and_one_pid_make_names() -> None:
    assert plays_until(lambda job: alike(job) > 1, lambda plan: plan.is_container)


def test_the_next_process_of_a_host_has_the_pid_of_the_last() -> None:
    def is_so(plan: Plan) -> bool:
        return plan.has_unnamed and plan.same_pids and not plan.is_container

    assert plays_until(lambda job: alike(job) > 1, is_so)


def test_names_that_nodes_make_are_the_same_in_each_play() -> None:
    seed = next(seed for seed in range(DRAWN) if Job(seed).plan.has_unnamed)
    first, second = (
        [each.node.info.name for each in Job(seed).run().scene.nodes if each.node is not None]
        for _ in range(2)
    )
    assert first == second


class Changes(Oracle):
    """How often the registers of each kind were written, and removed."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.of: Counter[tuple[str, bool]] = Counter()

    def written(self, name: str, value: bytes | None) -> None:
        """See Oracle."""
        self.of[name.partition("/")[0], value is None] += 1


@pytest.mark.verify
def test_hours_pass_and_what_is_kept_for_them_is_removed() -> None:
    """A mistake is kept for ten minutes, and a closed run and a lease for an hour."""
    removed: Counter[tuple[str, bool]] = Counter()
    plain = Plan(nodes=3, min_nodes=2)
    seeds = (seed for seed in itertools.count() if situated(seed, plain).situation == "hours")
    wanted = {("mistake", True), ("runs", True), ("coordinators", True)}
    for seed in itertools.islice(seeds, 30):
        job = Job(seed)
        if job.plan.situation != "hours":
            continue  # It is about its stores.
        changes = Changes(job.scene)
        job.scene.oracles.append(changes)
        assert job.run().problems == []
        assert job.world.now_s > 3_600
        removed.update(changes.of)
        if wanted <= set(removed):
            return
    raise AssertionError(f"in none of them was all of it removed: {removed}")


def test_a_rack_takes_a_range_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[list[int | None]] = []

    def noted(*about: Any) -> list[StartedNode]:
        found = racks.neighbours(*about)
        met.append([racks.rank_of(each) for each in found])
        return found

    def was_range(job: Job) -> bool:
        ranges = [each for each in met if len(each) > 2 and None not in each]
        return any(each == list(range(each[0] or 0, (each[0] or 0) + len(each))) for each in ranges)

    monkeypatch.setattr(faults, "neighbours", noted)
    assert plays_until(was_range, has("rack"))


class Left(Oracle):
    """The nodes for which rounds ended."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.names: set[str] = set()

    def round_ended(self, here: StartedNode, change: Change) -> None:
        """See Oracle."""
        self.names.update(change.nodes)


def test_rounds_end_because_nodes_are_preempted() -> None:
    def has_ended(job: Job) -> bool:
        (left,) = [each for each in job.scene.oracles if isinstance(each, Left)]
        told = [each for each in job.scene.nodes if each.is_preempted and each.node is not None]
        return any(each.node.info.name in left.names for each in told if each.node is not None)

    assert plays_until(has_ended, has("rack"), Left)


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ESTALE, errno.ENOSPC])
def test_ledgers_in_files_meet_errors(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    error, met = disk._error, set()

    def noted(number: int, *where: Any) -> OSError:
        met.add(number)
        return error(number, *where)

    monkeypatch.setattr(disk, "_error", noted)
    assert plays_until(lambda job: number in met, over_files)


def test_ledgers_in_files_meet_changes_that_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    is_repeated, met = disk.SimulatedFileSystem._is_repeated, set()

    def noted(system: disk.SimulatedFileSystem) -> bool:
        met.add(is_it := is_repeated(system))
        return is_it

    monkeypatch.setattr(disk.SimulatedFileSystem, "_is_repeated", noted)
    assert plays_until(lambda job: True in met, over_files)


def test_one_world_of_seven_is_over_files_and_most_have_a_fault_of_the_disk() -> None:
    plans = [Job(seed).plan for seed in range(600)]
    over = [plan for plan in plans if over_files(plan)]
    assert 60 < len(over) < 120
    assert sum(map(has("disk"), over)) > len(over) / 2


def test_nodes_have_troubles_while_their_run_is_suspended() -> None:
    blips = {f"FAULT {kind} at SUSPENDED" for kind in variants.BLIPS}

    def meets(job: Job) -> bool:
        return any(event.what in blips for event in job.events)

    assert plays_until(meets, has("owner cut off"))


def test_nodes_of_two_releases_are_in_one_round() -> None:
    def are_mixed(job: Job) -> bool:
        releases: dict[tuple[str, Token], set[bool]] = {}
        for each in job.scene.nodes:
            for token in each.tokens:
                releases.setdefault((each.run_id, token), set()).add(each.process.sees is None)
        return any(len(each) == 2 for each in releases.values())

    assert plays_until(are_mixed, lambda plan: plan.has_older)
