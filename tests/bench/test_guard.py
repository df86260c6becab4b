"""Counts that must not grow, which are exact, and one ratio of times. Never an absolute time.

A machine of CI may be slow or busy, so a number of milliseconds would fail for nothing or be so
large that it guards nothing. Messages and bytes are counted instead, on a network in memory with
the shipped coordinator and node machines; the one time is divided by what bare sockets take on the
same machine, in the same moments.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, get_args

import msgspec
import pytest

from rallypoint.bench import driver
from rallypoint.bench.counting import loop_name
from rallypoint.bench.meet import settings
from rallypoint.clock import StallProofClock
from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.store import Barrier, Get
from rallypoint.core.values import (
    NAMES_SHOWN_MAX,
    Address,
    Failure,
    FailureKind,
    Outcome,
    RunSettings,
)
from rallypoint.core.watching import SLICE
from rallypoint.wire import messages as wire
from tests.network import Network, Node

SMALL, LARGE = 8, 512
DIGITS_BYTES = 16
"""A number of nodes, a rank or a beat has more digits in a larger run: a few bytes, and no more."""
HEADER_TO_NODE_BYTES, HEADER_FROM_NODE_BYTES = 2, 6
"""What a WebSocket adds to a message of less than 126 bytes (RFC 6455, 5.2)."""
IDLE_BYTES_PER_S_MAX = 200.0


class CountingCoordinator(Coordinator):
    """A coordinator that keeps the effects of each step. It has no checks: they are O(N) a step."""

    steps: list[list[do.Effect]]

    def open_run(self, run_id: str) -> HostedRun:
        is_new = run_id not in self.runs
        run = super().open_run(run_id)
        if is_new:
            step = run.membership.step

            def noted(event: on.Event, now_s: float) -> list[do.Effect]:
                effects = step(event, now_s)
                self.steps.append(effects)
                return effects

            run.membership.step = noted  # type: ignore[method-assign]
        return run


class Counted(Network):
    """A network that keeps the kind and size of each message, both ways, and all effects."""

    def __init__(self) -> None:
        self.steps: list[list[do.Effect]] = []
        self.down: list[tuple[str, str, int]] = []
        self.up: list[tuple[str, str, int]] = []
        super().__init__(ledger_id="0123456789abcdef")  # as long as a real one

    def new_coordinator(self, config: CoordinatorConfig | None, ledger_id: str) -> Coordinator:
        coordinator = CountingCoordinator(
            config or CoordinatorConfig(),
            self.new_ownership(ledger_id),
            clock=StallProofClock(lambda: self.now_s),
        )
        coordinator.steps = self.steps
        return coordinator

    def count(self, node: Node, payload: bytes, *, is_up: bool) -> None:
        decode: Callable[[bytes], object] = (
            wire.decode_from_node if is_up else wire.decode_from_coordinator
        )
        kind = type(decode(payload)).__name__
        (self.up if is_up else self.down).append((node.name, kind, len(payload)))

    def met(self, count: int, settings: RunSettings, *, on_hosts: bool = False) -> list[Node]:
        """`on_hosts`: each on a host of its own with a known address, so that all are witnesses."""
        # All names have the same length, so that only their number makes a difference.
        nodes = [
            self.node(f"node-{index:04}", settings, at=_host(index) if on_hosts else None)
            for index in range(count)
        ]
        for node in nodes:
            node.ready()
        self.until(lambda: all(len(node.rounds) == 1 for node in nodes))
        return nodes


def _host(index: int) -> Address:
    return Address(f"10.0.{100 + index // 100}.{100 + index % 100}", 40_000)


def run_of(count: int, **more: object) -> RunSettings:
    return RunSettings(min_nodes=2, max_nodes=count, max_restarts=None, **more)  # type: ignore[arg-type]


# -- a run in which the coordinator sends every kind of message ------------------------------------


@cache
def story(count: int) -> Counted:
    """A run of so many nodes: a loss, its cause, standbys, a barrier, leavers, drains, the end."""
    network = Counted()
    first = network.node("node-0000", run_of(count))
    first.act(first.machine.ask_waiting()[1])
    network.settle()
    network.nodes.clear()
    first.act(first.machine.goodbye("not yet"))
    network.settle()

    nodes = network.met(count, run_of(count), on_hosts=True)
    one, another, victim, *others = nodes
    for index in range(count):
        stranger = network.node(f"spare-{index:04}", run_of(count), incarnation=2)
        stranger.ready()
    network.settle()  # as many on standby
    network.node("node-9998", RunSettings(min_nodes=1, max_nodes=1))  # refused: other settings
    one.act(one.machine.ask_members()[1])
    one.act(one.machine.ask_waiting()[1])
    one.call(Get("nobody sets it"), timeout_s=0.1)
    one.call(Barrier("nobody else comes", 0), timeout_s=0.1)
    network.advance(2.0)  # heartbeats, and the witnesses learn which hosts to watch
    network.run.stacks.ask(network.run.stamp, [one.name])
    network.settle()

    victim.is_frozen = True
    network.advance(6.0)  # witnesses are asked, and say nothing
    one.act(one.machine.failed(Failure(FailureKind.COMMUNICATION, "reset by peer", rank=0)))
    network.advance(2.0)  # probes, and the verdict
    one.ready()
    one.act(one.machine.ask_waiting()[1])  # all others are missing
    network.settle()
    for node in [another, *others]:
        node.ready()
    network.until(lambda: all(len(node.rounds) == 2 for node in [one, another, *others]))
    members = [node for node in network.nodes.values() if node.machine.has_workers]
    for node in members:
        node.act(node.machine.takes_part())
    one.act(one.machine.drains("maintenance", 30.0, network.now_s))
    network.settle()
    for node in members:
        node.act(node.machine.promise(7))
    network.settle()
    for node in others[: len(others) // 2]:
        node.act(node.machine.goodbye("all at once"))
    network.settle()
    network.run.post(on.DrainRequested(others[-1].machine.info.id, "operator ann", "kernel"))
    network.settle()
    one.act(one.machine.close(Outcome.SUCCEEDED, "trained"))
    network.advance(0.1)
    return network


def largest(traffic: list[tuple[str, str, int]]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for _, kind, size in traffic:
        sizes[kind] = max(size, sizes.get(kind, 0))
    return sizes


def test_the_scenario_has_every_message_that_a_coordinator_sends() -> None:
    kinds = {each.__name__ for each in get_args(wire.FromCoordinator)}
    assert set(largest(story(SMALL).down)) == set(largest(story(LARGE).down)) == kinds


def test_no_message_grows_with_the_number_of_nodes_but_the_table_on_request() -> None:
    small, large = largest(story(SMALL).down), largest(story(LARGE).down)
    grown = {kind for kind in small if large[kind] > small[kind] + DIGITS_BYTES}
    # Missing nodes are named, up to a bound that a run of eight does not always reach.
    names = NAMES_SHOWN_MAX * len("'node-0000', ")
    named = {kind for kind in grown if large[kind] <= small[kind] + DIGITS_BYTES + names}
    assert grown - named == {"Members"}
    assert named <= {"WaitingIs", "StoreAnswer", "Broken", "CauseFound"}
    assert len([1 for _, kind, _ in story(LARGE).down if kind == "Members"]) == 1


def test_no_message_of_a_node_grows_either() -> None:
    small, large = largest(story(SMALL).up), largest(story(LARGE).up)
    assert set(small) == set(large)
    assert {kind for kind in small if large[kind] > small[kind] + DIGITS_BYTES} == set()


def test_no_step_has_more_effects_in_a_larger_run() -> None:
    """Watchers of hosts are told some at a time."""

    def most(count: int, *, watches: bool) -> int:
        steps = story(count).steps
        return max(sum(isinstance(each, do.Watch) is watches for each in step) for step in steps)

    assert most(LARGE, watches=False) <= most(SMALL, watches=False)
    assert most(LARGE, watches=True) <= SLICE < LARGE


def test_no_effect_is_larger_in_a_larger_run_but_the_record_of_a_round() -> None:
    """A round's members are written to the ledger once, and published from there: O(N) a round."""
    with_record = (do.Commit, do.Publish)

    def sizes(count: int) -> dict[str, int]:
        found: dict[str, int] = {}
        for effect in (each for step in story(count).steps for each in step):
            if not isinstance(effect, with_record):
                size = len(msgspec.msgpack.encode(effect))
                name = type(effect).__name__
                found[name] = max(size, found.get(name, 0))
        return found

    small, large = sizes(SMALL), sizes(LARGE)
    names = NAMES_SHOWN_MAX * len("'node-0000', ")
    assert {k for k in small if large[k] > small[k] + DIGITS_BYTES + names} == set()


# -- messages of a round ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, SMALL, 64, LARGE])
def test_the_first_round_costs_each_node_two_messages_each_way(count: int) -> None:
    network = Counted()
    network.met(count, run_of(count))
    assert per_node(network.up, count) == {("Attach", "Ready"): count}
    assert per_node(network.down, count) == {("Welcome", "Formed"): count}


@pytest.mark.parametrize("count", [2, SMALL, 64, LARGE])
def test_a_next_round_costs_each_node_one_message_and_two_answers(count: int) -> None:
    network = Counted()
    nodes = network.met(count, run_of(count))
    network.up.clear()
    network.down.clear()
    for node in nodes:  # The first one's call ends the round for all.
        node.ready()
    network.until(lambda: all(len(node.rounds) == 2 for node in nodes))
    assert per_node(network.up, count) == {("Ready",): count}
    assert per_node(network.down, count) == {("Broken", "Formed"): count}


def per_node(traffic: list[tuple[str, str, int]], count: int) -> Counter[tuple[str, ...]]:
    """By sequence of messages, how many nodes had it."""
    each: dict[str, list[str]] = {}
    for name, kind, _ in traffic:
        each.setdefault(name, []).append(kind)
    assert len(each) == count
    return Counter(map(tuple, each.values()))


# -- an idle node ----------------------------------------------------------------------------------


@cache
def idle(count: int) -> tuple[float, float]:
    """Messages, and bytes with their WebSocket headers, per node and second."""
    network, seconds = Counted(), 50.0  # 30 heartbeats each
    network.met(count, run_of(count))
    network.advance(2.0)
    network.up.clear()
    network.down.clear()
    network.advance(seconds)
    messages = len(network.up) + len(network.down)
    assert {kind for _, kind, _ in network.up} == {"Heartbeat"}
    assert {kind for _, kind, _ in network.down} == {"Beat"}
    size = sum(size + HEADER_FROM_NODE_BYTES for _, _, size in network.up)
    size += sum(size + HEADER_TO_NODE_BYTES for _, _, size in network.down)
    return messages / count / seconds, size / count / seconds


def test_an_idle_node_costs_a_heartbeat_and_its_answer() -> None:
    each_s = RunSettings().suspect_after_s / CoordinatorConfig().heartbeats_per_suspicion
    messages, size = idle(SMALL)
    assert messages == pytest.approx(2 / each_s, rel=0.05)
    assert size <= IDLE_BYTES_PER_S_MAX


def test_an_idle_node_of_a_larger_run_costs_no_more() -> None:
    messages, size = idle(SMALL)
    messages_64, size_64 = idle(64)
    assert messages_64 == pytest.approx(messages, rel=0.05)
    assert size_64 <= size + 2 * messages  # the beat's digits


def test_no_timer_exists_for_each_healthy_node() -> None:
    """Each timer wakes the event loop: thousands of them cost as much as all heartbeats."""

    def timers(count: int) -> int:
        network = Counted()
        network.met(count, run_of(count))
        network.advance(RunSettings().settle_s)
        return len(network.coordinator._timers)

    assert timers(64) == timers(SMALL)


# -- time, as a ratio ------------------------------------------------------------------------------

MEETING = 256
OVER_THE_FLOOR_MAX = 2.4
"""Measured: 1.4 to 1.5 on two quiet cores; beside two or three other busy processes single attempts
of up to 2.7, and the best of six 1.9 at most. The goal is 2. What this is to catch costs more: with
a table that is encoded for every event it is 2.9 to 3.5."""
CPU_OVER_THE_FLOOR_MAX = 2.7
"""The same of the CPU time of both processes. Beside five to eight busy processes, where it is 1.9
to 2.1, it is 3.5 with that table. It says nothing of time in which nobody computes, so it counts
only where the machine is too busy for the other."""
BUSY = 0.3
"""The machine is busy if processes wait for a CPU for this part of the time that they have one."""
ATTEMPTS = 6
"""How many attempts are judged. For LONGEST_S, those on a busy machine do not count."""
LONGEST_S = 45.0
ROUNDS = 15


class Used(NamedTuple):
    """CPU time of some processes, and how long they were ready to run and had no CPU, in seconds.

    Zeros where the system does not say it: then the machine is taken for a quiet one.
    """

    cpu_s: float
    waited_s: float

    @classmethod
    def by(cls, *pids: int) -> Used:
        threads = [path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
        cpu_ns, waited_ns = 0, 0
        for path in threads:
            cpu, waited, _ = path.read_text().split()
            cpu_ns, waited_ns = cpu_ns + int(cpu), waited_ns + int(waited)
        return cls(cpu_ns / 1e9, waited_ns / 1e9)

    def since(self, before: Used) -> Used:
        return Used(self.cpu_s - before.cpu_s, self.waited_s - before.waited_s)


class Side:
    """One side of the comparison: a way to meet, and its processes."""

    def __init__(self, meet: Callable[[], list[dict[str, Any]]], *pids: int) -> None:
        self._meet, self._pids = meet, pids
        self.spans_s: list[float] = []
        self.used: list[Used] = []

    def meet(self) -> None:
        before = Used.by(*self._pids)
        self.spans_s.append(driver.span(self._meet(), "formed_s"))
        self.used.append(Used.by(*self._pids).since(before))

    def span_s(self) -> float:
        """The median of the last attempt."""
        return median(self.spans_s[-ROUNDS:])

    def cpu_s(self) -> float:
        """The median of all attempts."""
        return median(each.cpu_s for each in self.used)

    def is_busy(self) -> bool:
        """Whether the machine was busy with other work during the last attempt."""
        last = self.used[-ROUNDS:]
        return sum(each.waited_s for each in last) > BUSY * sum(each.cpu_s for each in last)


@pytest.mark.processes
def test_a_warm_meeting_takes_a_few_times_what_bare_sockets_take(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The sides take turns, so that other load slows both. It may still slow only one of them, so
    one attempt of several must pass, each with a median of 15 rounds."""
    assert loop_name().startswith("uvloop"), "asyncio's own loop is a floor that is too easy"
    ratios: list[float] = []
    judged = 0
    with (
        driver.served() as at,
        driver.fleets(1) as fleets,
        driver.floor(MEETING) as (server, bare, _told),
    ):
        fleets.connect(at, run_id="guard", nodes=MEETING, settings=settings(MEETING), ready=True)
        fleets.ask("settle")
        bare.ask("settle")
        assert at.process is not None
        pids = (at.process.pid, fleets.each[0].process.pid)
        warm = Side(lambda: fleets.ask("meet"), *pids)
        floor = Side(lambda: [bare.ask("floor_meet")], server.pid, bare.process.pid)
        ends_s = time.monotonic() + LONGEST_S
        while judged < ATTEMPTS and (not ratios or time.monotonic() < ends_s):
            for _ in range(ROUNDS):
                fleets.end_round()
                warm.meet()
                floor.meet()
            ratios.append(warm.span_s() / floor.span_s())
            if ratios[-1] <= OVER_THE_FLOOR_MAX:
                return
            judged += not warm.is_busy()
    if judged == ATTEMPTS:
        pytest.fail(f"{min(ratios):.1f} times the floor at best, in {len(ratios)} attempts")
    cpu_ratio = warm.cpu_s() / floor.cpu_s()
    with capsys.disabled():
        print(f"\nthe machine is busy: {cpu_ratio:.1f} times the floor's CPU time is judged")
    assert cpu_ratio <= CPU_OVER_THE_FLOOR_MAX, ratios
