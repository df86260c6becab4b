"""How soon a lost coordinator is succeeded: by the shipped election, in a small world.

In a fleet of any size the election is the work of a few processes. So it is played with a few: the
shipped `Node`, which becomes a candidate when it must, over the shipped etcd ledger on a simulated
etcd. The node that hosts the coordinator is lost, and the others find the next one. The times go
into the fleet, which adds what many nodes cost. A few worlds are played for each way to be lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Iterator
from typing import Final

import msgspec

from rallypoint.client import actions as act
from rallypoint.client.node import Node
from rallypoint.core.values import Address, RunSettings
from rallypoint.errors import RallypointError
from rallypoint.ledger.etcd.ledger import EtcdLedger
from rallypoint.ledger.etcd.options import EtcdOptions
from rallypoint.settings import NodeSettings, parse_endpoint
from rallypoint.simulation.etcd import Cluster
from rallypoint.simulation.machine import SimulatedRuntime
from rallypoint.simulation.network import Network
from rallypoint.simulation.world import Process, World

NODES: Final = 6
WORLDS: Final = 4
"""How many worlds are played for each way to be lost."""
START_WITHIN_S: Final = 120.0
TAKEOVER_WITHIN_S: Final = 600.0
CALM_S: Final = 7.0
"""About how long the first coordinator is left alone."""
ENDPOINT: Final = "etcd://10.9.0.1:2379/rallypoint"


class Takeover(msgspec.Struct, frozen=True):
    """One takeover, in seconds.

    `owned_s`: from the loss until the first node is attached to the next coordinator. `later_s`:
    how long after that each of the others is.
    """

    owned_s: float
    later_s: tuple[float, ...]


class Takeovers:
    """The takeovers of one job, drawn from its seed. Times in seconds."""

    def __init__(self, *, lease_ttl_s: float, silence_s: float, seed: int) -> None:
        self._lease_ttl_s = lease_ttl_s
        self._silence_s = silence_s
        self._seed = seed
        self._chance = random.Random(f"{seed}/takeovers")
        self._known: dict[str, list[Takeover]] = {}
        self._last: Takeover | None = None

    def takeover_s(self, how: str) -> float:
        """From the loss to the next owner.

        `how`: "handover", "crash" (its kernel closes its connections) or "silence" (its machine is
        gone, and says nothing).
        """
        known = self._known.get(how)
        if known is None:
            known = self._known[how] = [
                play(
                    how,
                    self._seed * WORLDS + index,
                    lease_ttl_s=self._lease_ttl_s,
                    silence_s=self._silence_s,
                )
                for index in range(WORLDS)
            ]
        self._last = self._chance.choice(known)
        return self._last.owned_s

    def look_s(self) -> float:
        """From the last of these takeovers until one node dials the next coordinator."""
        later_s = self._last.later_s if self._last is not None else ()
        return self._chance.choice(later_s) if later_s else 0.0


def play(how: str, seed: int, *, lease_ttl_s: float, silence_s: float) -> Takeover:
    """Play one takeover of the shipped code. Raises RuntimeError if there is none."""
    with _quiet():
        election = _Election(seed, lease_ttl_s, silence_s)
        try:
            return election.play(how)
        finally:
            election.world.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the small world logs is not about the user's processes."""
    log = logging.getLogger("rallypoint")
    before, log.disabled = log.disabled, True
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.disabled = before
        log.setLevel(level)


class _Node(Node):
    """A node that remembers to whom it attached."""

    term = 0
    """The term of the last coordinator that has attached it; 0 for none."""

    def _act(self, actions: list[act.Action]) -> None:
        super()._act(actions)
        if any(isinstance(action, act.Attached) for action in actions):
            self.term = self._machine.stamp.term


class _Voter(msgspec.Struct):
    """One node of the small world."""

    process: Process
    host: str
    node: _Node | None = None
    is_leaving: bool = False

    @property
    def term(self) -> int:
        """See _Node."""
        return self.node.term if self.node is not None else 0


class _Election:
    def __init__(self, seed: int, lease_ttl_s: float, silence_s: float) -> None:
        self.world = World(seed)
        self._network = Network(self.world)
        self._etcd = Cluster(self.world, 3)
        self._lease_ttl_s, self._silence_s = lease_ttl_s, silence_s
        self._voters = [self._start(index) for index in range(NODES)]

    def _start(self, index: int) -> _Voter:
        host = f"10.0.0.{index + 1}"
        process = self.world.process(f"node-{index}")
        self._network.attach(process, host)
        SimulatedRuntime(process, host, self._network)
        voter = _Voter(process, host)
        process.start(self._live(voter))
        return voter

    async def _live(self, voter: _Voter) -> None:
        hosts = tuple(url.removeprefix("http://") for url in self._etcd.urls)
        gateway = self._etcd.gateway(voter.process)
        ledger = EtcdLedger(EtcdOptions(endpoints=hosts), gateway=gateway)
        settings = NodeSettings(
            endpoint=parse_endpoint(ENDPOINT),
            run_id="run",
            lease_ttl_s=self._lease_ttl_s,
            coordinator_silence_s=self._silence_s,
            join_timeout_s=600.0,
            connect_timeout_s=600.0,
        )
        run = RunSettings(min_nodes=NODES, max_nodes=NODES, max_restarts=None)
        with contextlib.suppress(RallypointError):
            await ledger.open()
            node = voter.node = _Node(settings, run, ledger=ledger)
            await node.open()
            await node.next_round(Address(voter.host, 29_500))
            while not voter.is_leaving:  # noqa: ASYNC110 - it polls
                await asyncio.sleep(0.05)
            node.goodbye("it leaves")
            await node.aclose()
            await ledger.aclose()

    def play(self, how: str) -> Takeover:
        world = self.world
        if not world.run_until(START_WITHIN_S, self._has_met):
            raise RuntimeError("the small world of an election has no first round")
        world.run_until(world.now_s + CALM_S * (0.5 + world.random.random()))
        [host] = [each for each in self._voters if each.node and each.node.is_at_own]
        before, others = host.term, [each for each in self._voters if each is not host]
        lost_s = world.now_s
        if how == "handover":
            host.is_leaving = True
        elif how == "crash":
            host.process.kill()
        else:
            self._network.lose(host.host)
        times: dict[str, float] = {}

        def have_all_found() -> bool:
            for each in others:
                if each.host not in times and each.term > before:
                    times[each.host] = world.now_s
            return len(times) == len(others)

        if not world.run_until(lost_s + TAKEOVER_WITHIN_S, have_all_found):
            raise RuntimeError("the small world of an election has no successor")
        first_s = min(times.values())
        later = sorted(at_s - first_s for at_s in times.values())
        return Takeover(first_s - lost_s, tuple(later))

    def _has_met(self) -> bool:
        return all(each.node is not None and each.node.round is not None for each in self._voters)
