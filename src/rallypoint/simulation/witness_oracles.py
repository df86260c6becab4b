"""What must hold of witnesses: who is lost by their evidence, and whom they connect to (R8)."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from rallypoint.client.node import Node
from rallypoint.client.sightings import DIALS_PER_MINUTE
from rallypoint.coordinator.hosted_run import HostedRun
from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.addresses import plain
from rallypoint.core.reasons import HOST_GONE
from rallypoint.core.values import Address, HostReport, NodeId, Phase
from rallypoint.core.witnesses import ANSWER_S, LOOK_S
from rallypoint.simulation.machine import SimulatedFront
from rallypoint.simulation.network import Quality
from rallypoint.simulation.scene import Oracle, Scene, StartedNode
from rallypoint.simulation.world import Process
from rallypoint.wire import messages as wire

WHOLE_S: Final = 4.0
"""A way that was whole for so long has carried a connection and its answer."""
ALONE_S: Final = 2.2
"""A witness whose network is cut for so long was answered by others in one second at most."""
LATE_S: Final = 4.0
"""How much later than it may be the loss of a host is noticed: clocks, turns, packets."""


class _Ways:
    """Since when packets have gone from each host to each other one and back."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._broken_s: dict[tuple[str, str], float] = {}
        self._whole_s: dict[tuple[str, str], float] = {}

    def look(self) -> None:
        """Remember which ways are broken now."""
        network, now_s = self._scene.network, self._scene.world.now_s
        hosts = {each.host for each in self._scene.nodes}
        for one in hosts:
            is_off = not network.host(one).is_on or one in network.walls
            for other in hosts - {one}:
                ways = ((one, other), (other, one))
                is_poor = network.quality != Quality() or any(
                    way in network.qualities for way in ways
                )
                if is_off or is_poor or any(way in network.blocked for way in ways):
                    self._broken_s[one, other] = self._broken_s[other, one] = now_s
                if not any(way in network.blocked for way in ways):
                    self._whole_s[one, other] = now_s

    def whole_s(self, one: str, other: str) -> float:
        """For how long the way between two hosts has been whole, in seconds."""
        return self._scene.world.now_s - self._broken_s.get((one, other), -WHOLE_S)

    def alone_s(self, host: str) -> float:
        """For how long every way of the host has been cut, in one direction or in both."""
        whole_s = (at_s for (one, _), at_s in self._whole_s.items() if one == host)
        return self._scene.world.now_s - max(whole_s, default=self._scene.world.now_s)


class WitnessesAreRight(Oracle):
    """R8: who says that a host does not answer is not answered; and no living host is lost so.

    A node whose own network is cut does not say so. A host lives as long as at most one other host,
    besides the coordinator's, does not reach it.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._ways = _Ways(scene)

    def looked(self) -> None:
        """See Oracle."""
        if self.scene.plan.has_witnesses:
            self._ways.look()

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle."""
        if not self.scene.plan.has_witnesses:
            return
        self._ways.look()
        if isinstance(event, on.HostReported) and event.report is HostReport.NOT_ANSWERED:
            self._must_be_true(run, event)
        for effect in effects:
            if isinstance(effect, do.Forget) and HOST_GONE in effect.reason:
                self._must_be_gone(front, effect)

    def joins(self, here: StartedNode, node: Node) -> None:
        """See Oracle."""
        machine: Any = node._machine
        testify = machine.testify

        def testifies(question: int, report: HostReport) -> Any:
            self._ways.look()
            alone_s = self._ways.alone_s(here.host)
            if report is HostReport.NOT_ANSWERED and alone_s > ALONE_S:
                what = f"{here.name} says that a host does not answer"
                self.scene.broke("R8", f"{what}, and its own network is cut for {alone_s:.1f} s")
            return testify(question, report)

        machine.testify = testifies

    def _must_be_true(self, run: HostedRun, event: on.HostReported) -> None:
        asked = [
            host
            for host, each in run.membership.witnesses._open.items()
            if each.number == event.question
        ]
        witness = self._started(event.node)
        if witness is None or not asked or witness.process.is_frozen:
            return
        whole_s = self._ways.whole_s(witness.host, asked[0])
        # A report may have been on its way for long, if the coordinator's host was cut off.
        if whole_s > WHOLE_S + LOOK_S + ANSWER_S:
            what = f"{witness.name} says that {asked[0]} does not answer"
            self.scene.broke("R8", f"{what}, and the way there is whole for {whole_s:.1f} s")

    def _must_be_gone(self, front: SimulatedFront, effect: do.Forget) -> None:
        lost = self._started(effect.node)
        here = front._host
        if lost is None or not lost.process.is_alive:
            return
        others = {each.host for each in self.scene.living} - {lost.host, here}
        reached = [each for each in others if self._ways.whole_s(lost.host, each) > WHOLE_S + 1.0]
        if len(reached) >= max(2, len(others) - 1):
            what = f"{front.process.name} has lost {lost.name} by witnesses"
            self.scene.broke("R8", f"{what}, and it is reached from {', '.join(sorted(reached))}")

    def _started(self, node: NodeId) -> StartedNode | None:
        return next((each for each in self.scene.nodes if each.node_id == node), None)


class GoneHostsAreLost(Oracle):
    """R8: a host that answers no witness any more is lost soon after its nodes are suspect."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._asked: dict[HostedRun, dict[str, float]] = {}
        """By run: when witnesses were first asked about each host that has no power."""
        self._fronts: dict[HostedRun, SimulatedFront] = {}
        self._ways = _Ways(scene)

    def stepped(
        self, front: SimulatedFront, run: HostedRun, event: on.Event, effects: list[do.Effect]
    ) -> None:
        """See Oracle."""
        nodes = self.scene.nodes
        for effect in effects:
            if isinstance(effect, do.AskWitness) and not self._is_on(effect.host):
                if any(e.node_id == effect.node and e.host == front._host for e in nodes):
                    continue  # What it says does not count alone.
                self._fronts[run] = front
                asked = self._asked.setdefault(run, {})
                asked.setdefault(effect.host, front.process.awake_s())

    def _is_on(self, host: str) -> bool:
        return self.scene.network.host(host).is_on

    def looked(self) -> None:
        """See Oracle."""
        if not self.scene.plan.has_witnesses:
            return
        self._ways.look()
        for run, asked in self._asked.items():
            front, membership = self._fronts[run], run.membership
            is_well = front.process.is_alive and run.is_claimed and not run.is_forgotten
            is_judging = membership.phase is not Phase.SUSPENDED and not front.process.is_frozen
            is_calm = is_judging and not membership._suspicion.guarding and self._is_whole(front)
            if not (is_well and is_calm):
                asked.clear()
                continue
            for host, since_s in list(asked.items()):
                members = membership.witnesses.watching.members_at(host)
                is_there = any(each.is_troubled for each in members)
                if self._is_on(host) or not is_there:
                    del asked[host]
                elif front.process.awake_s() - since_s > LOOK_S + ANSWER_S + LATE_S:
                    late_s = front.process.awake_s() - since_s
                    what = f"{host} has no power, witnesses were asked {late_s:.1f} s ago"
                    self.scene.broke("R8", f"{what}, and its node is a member")

    def _is_whole(self, front: SimulatedFront) -> bool:
        """Whether all other hosts have reached each other for some time, and their nodes run."""
        here = front._host
        living = [each for each in self.scene.living if self._is_on(each.host)]
        hosts = sorted({each.host for each in living} | {here})
        is_awake = not any(each.process.is_frozen for each in living)
        is_quick = all(each.process.turn_cost_s < 0.005 for each in living)
        pairs = ((a, b) for a in hosts for b in hosts if a < b)
        are_whole = all(self._ways.whole_s(a, b) > 2 * WHOLE_S for a, b in pairs)
        # Two witnesses at least, of which one is not on the coordinator's machine; and most heard.
        return len(hosts) >= 4 and is_awake and is_quick and are_whole


class MembersScanNoPorts(Oracle):
    """R8: a node connects to what has answered it, or what its coordinator has named, and rarely.

    What the coordinator names are addresses from which members of the run connect.
    """

    TRIES_MAX: Final = 2

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._named: dict[Process, dict[Address, int]] = {}
        self._answered: dict[Process, dict[Address, None]] = {}
        self._dialled_s: dict[Process, deque[float]] = {}
        scene.network.on_look, scene.network.on_looked = self._looks, self._looked

    def joins(self, here: StartedNode, node: Node) -> None:
        """See Oracle."""
        machine: Any = node._machine
        received = machine.received
        process = here.process

        def receives(message: Any, now_s: float) -> Any:
            actions = received(message, now_s)
            if isinstance(message, wire.WatchHosts) and actions:
                named = self._named.setdefault(process, {})
                for each in message.addresses:
                    named.setdefault(each, 0)
                    self._must_be_a_member(here, each)
            connection = node._connector.connection
            if connection is not None:
                self._answered.setdefault(process, {})[connection.address] = None
            return actions

        machine.received = receives

    def _must_be_a_member(self, here: StartedNode, address: Address) -> None:
        if not any(each.host == plain(address.host) for each in self.scene.nodes if each.run_id):
            self.scene.broke("R8", f"{here.name} is to connect to {address}, where no node runs")

    def _looks(self, process: Process, address: Address) -> None:
        now_s = process.clock_s()
        dialled = self._dialled_s.setdefault(process, deque())
        dialled.append(now_s)
        while dialled[0] <= now_s - 60.0:
            dialled.popleft()
        if len(dialled) > DIALS_PER_MINUTE:
            self.scene.broke("R8", f"{process.name} connects {len(dialled)} times a minute")
        if address in self._answered.get(process, {}):
            return
        named = self._named.setdefault(process, {})
        named[address] = named.get(address, self.TRIES_MAX) + 1
        if named[address] > self.TRIES_MAX:
            self.scene.broke("R8", f"{process.name} connects to {address}, which never answered")

    def _looked(self, process: Process, address: Address, has_answered: bool) -> None:
        if has_answered:
            self._answered.setdefault(process, {})[address] = None


WITNESS_ORACLES: Final[tuple[type[Oracle], ...]] = (
    WitnessesAreRight,
    GoneHostsAreLost,
    MembersScanNoPorts,
)
