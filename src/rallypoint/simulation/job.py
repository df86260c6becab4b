"""A job in a simulated world: its nodes, the faults that meet them, and what must hold.

Each node is a process with the shipped `Node`, which becomes a candidate when it must, over the
shipped etcd ledger on a simulated cluster. A small program stands in for the agent and its workers:
it takes rounds, calls the round's store, fails or finishes. Everything is drawn from the seed.

Checked: each node's tokens grow (R13), all nodes agree on a round (R2, R3), the calls of each
round's store are linearizable across coordinators (R10, R11), no error is left unread, and after
the faults have healed the job goes on or ends (R7).
"""

from __future__ import annotations

import asyncio
import itertools
import math
from functools import partial
from typing import Any, Final

import msgspec

from rallypoint.client.node import Node
from rallypoint.core.store import Add, CompareSet, Get, Set, StoreValue
from rallypoint.core.values import Address, Failure, FailureKind, RunSettings
from rallypoint.errors import CoordinatorError, JoinTimeoutError, LedgerError, RefusedError
from rallypoint.ledger.etcd.ledger import EtcdLedger
from rallypoint.ledger.etcd.options import EtcdOptions
from rallypoint.settings import NodeSettings, parse_endpoint
from rallypoint.simulation.clocks import MachineClock
from rallypoint.simulation.etcd import Cluster, Trouble
from rallypoint.simulation.linearizability import Call, explained
from rallypoint.simulation.machine import SimulatedRuntime
from rallypoint.simulation.network import Network, Quality
from rallypoint.simulation.world import Process, World

HEALED_WITHIN_S: Final = 240.0
"""How long after the last fault the job may take until it goes on or has ended."""
BOOTSTRAP: Final = Address("10.0.0.1", 29_500)
ENDPOINT: Final = "etcd://10.9.0.1:2379/rallypoint"


class Plan(msgspec.Struct):
    """What a seed draws before the job begins. Times in seconds."""

    nodes: int
    min_nodes: int
    etcd_members: int
    faults: int
    calm_s: float
    """The mean time between two faults."""
    lease_ttl_s: float
    wild_clocks: bool
    ends: bool
    """Whether workers finish."""

    @classmethod
    def draw(cls, world: World) -> Plan:
        """Draw it from the world's seed."""
        draw = world.random
        nodes = draw.choice((2, 3, 3, 4, 5))
        return cls(
            nodes=nodes,
            min_nodes=draw.choice((1, max(1, nodes - 1), nodes)),
            etcd_members=draw.choice((1, 3)),
            faults=draw.randrange(4, 24),
            calm_s=draw.choice((0.3, 1.0, 4.0)),
            lease_ttl_s=draw.choice((2.0, 5.0, 10.0)),
            wild_clocks=draw.random() < 0.2,
            ends=draw.random() < 0.5,
        )


class SimulatedNode(msgspec.Struct):
    """One start of a node: its process, and what its program has seen."""

    name: str
    process: Process
    host: str
    node: Node | None = None
    tokens: list[tuple[int, int]] = msgspec.field(default_factory=list)
    is_over: bool = False
    end: str = ""
    is_working: bool = False


class Job:
    """One job. `run` plays it; `problems` then has what did not hold."""

    def __init__(self, seed: int, *, plan: Plan | None = None) -> None:
        self.world = World(seed)
        self.plan = plan or Plan.draw(self.world)
        self.network = Network(self.world)
        self.etcd = Cluster(self.world, self.plan.etcd_members)
        self.run_settings = RunSettings(
            min_nodes=self.plan.min_nodes,
            max_nodes=self.plan.nodes,
            max_restarts=None,
            last_call_s=3.0,
            mass_grace_s=20.0,
        )
        self.nodes: list[SimulatedNode] = []
        self.problems: list[str] = []
        self.events: list[tuple[float, str, str]] = []
        """(time, process, what happened), in order."""
        self.history: dict[tuple[int, str], list[Call]] = {}
        self.digests: dict[int, tuple[str, str]] = {}
        self.is_chaotic = True
        self.settled_s: float | None = None
        self._starts = itertools.count(1)
        self._values = itertools.count(1)

    # -- the whole ---------------------------------------------------------------------------------

    def run(self) -> Job:
        """Play it: faults for a while, then peace, and then the checks."""
        world, plan, draw = self.world, self.plan, self.world.random
        for index in range(plan.nodes):
            world.after(draw.random() * 2.0, partial(self._start, index))
        at_s = 2.0
        for _ in range(plan.faults):
            at_s += draw.expovariate(1.0 / plan.calm_s)
            world.at(at_s, self._fault)
        world.run_until(at_s + 0.001)
        self._heal()
        healed_s = world.now_s
        if world.run_until(healed_s + HEALED_WITHIN_S, self._is_settled):
            self.settled_s = world.now_s - healed_s
        else:
            self.problems.append(f"R7: {HEALED_WITHIN_S:g} s after the last fault: {self._state()}")
        self._check_history()
        self.problems += self.world.troubles
        world.close()
        return self

    def say(self, who: str, what: str) -> None:
        """Note an event."""
        self.events.append((self.world.now_s, who, what))

    def _is_settled(self) -> bool:
        living = [each for each in self.nodes if each.process.is_alive and not each.is_over]
        if not living:
            return True
        if not all(each.is_working for each in living):
            return False
        return len({each.tokens[-1] for each in living}) == 1

    def _state(self) -> str:
        return "; ".join(
            f"{each.name} {'works in ' + str(each.tokens[-1]) if each.is_working else 'waits'}"
            + (f" ({each.node.looking})" if each.node is not None and each.node.looking else "")
            for each in self.nodes
            if each.process.is_alive and not each.is_over
        )

    # -- nodes -------------------------------------------------------------------------------------

    def _start(self, index: int) -> None:
        draw, world = self.world.random, self.world
        host = f"10.0.0.{index + 1}"
        name = f"node-{index}.{next(self._starts)}"
        clock = MachineClock(offset_s=draw.random() * 1e5)
        if self.plan.wild_clocks:
            clock.rate = draw.uniform(0.95, 1.05)
        process = world.process(name, clock, turn_cost_s=draw.choice((0.0, 0.0, 1e-5, 1e-3)))
        self.network.restart(host)
        self.network.attach(process, host)
        SimulatedRuntime(process, host, self.network)
        started = SimulatedNode(name, process, host)
        self.nodes.append(started)
        self.say(name, "starts")
        process.start(self._program(started))

    async def _program(self, here: SimulatedNode) -> None:
        try:
            await self._live(here)
        except (CoordinatorError, LedgerError) as error:
            here.end = f"{type(error).__name__}: {error.message}"
            self.say(here.name, here.end)
            is_fine = isinstance(error, JoinTimeoutError | RefusedError) or self.is_chaotic
            if not is_fine:
                self.problems.append(f"{here.name} gave up in peace: {here.end}")
        finally:
            here.is_over, here.is_working = True, False

    async def _live(self, here: SimulatedNode) -> None:
        hosts = tuple(url.removeprefix("http://") for url in self.etcd.urls)
        ledger = EtcdLedger(EtcdOptions(endpoints=hosts), gateway=self.etcd.gateway(here.process))
        settings = NodeSettings(
            endpoint=parse_endpoint(ENDPOINT),
            run_id="run",
            node_name=here.name,
            connect_timeout_s=600.0,
            join_timeout_s=600.0,
            lease_ttl_s=self.plan.lease_ttl_s,
        )
        while True:
            try:
                await ledger.open()
                break
            except LedgerError:
                await asyncio.sleep(1.0)
        node = here.node = Node(settings, self.run_settings, ledger=ledger)
        await node.open()
        try:
            while True:
                found = await node.next_round(BOOTSTRAP)
                if found is None:
                    break
                token = (found.head.term, found.head.number)
                self.say(here.name, f"is rank {found.seat.node_rank} in {token}")
                self._check_round(here, token, found.head.digest)
                here.is_working = True
                has_finished = await self._work(here, node, found.head.number)
                here.is_working = False
                if has_finished:
                    node.done()
                    here.is_working = True
                    await self._until_over(node)
                    break
            here.end = str(node.closed)
            self.say(here.name, f"ends: {here.end}")
        finally:
            node.goodbye("its program has ended")
            await node.aclose()
            await ledger.aclose()

    async def _until_over(self, node: Node) -> None:
        while node.closed is None and node.gone is None:  # noqa: ASYNC110 - it polls
            await asyncio.sleep(0.5)

    async def _work(self, here: SimulatedNode, node: Node, number: int) -> bool:
        """Call the store until the round ends. True if the workers have finished."""
        draw = here.process.random
        while node.change is None and node.closed is None and node.gone is None:
            await asyncio.sleep(draw.expovariate(2.0))
            wants = draw.random()
            if self.is_chaotic and wants < 0.02:
                self.say(here.name, "its worker fails")
                node.failed(Failure(FailureKind.EXCEPTION, "boom"))
            elif not self.is_chaotic and self.plan.ends and wants < 0.1:
                self.say(here.name, "its workers have finished")
                return True
            else:
                await self._call(here, node, number)
        if node.gone is not None:
            raise node.gone
        return False

    async def _call(self, here: SimulatedNode, node: Node, number: int) -> None:
        draw, key = here.process.random, here.process.random.choice(("a", "b"))
        value = b"%d" % next(self._values)
        operation: Add | Set | CompareSet | Get = draw.choice(
            (Add("n" + key, 1), Add("n" + key, 1), Set(key, value), CompareSet(key, b"", value))
        )
        if draw.random() < 0.2 and self.history.get((number, key)):
            operation = Get(key)
        began_s = self.world.now_s
        calls = self.history.setdefault((number, operation.key), [])
        # Noted at once, because the process may be killed before there is an answer.
        at = len(calls)
        calls.append(Call(here.name, began_s, math.inf, operation, None))
        answer = await node.call(operation, draw.choice((None, 2.0, 30.0)))
        if isinstance(answer, StoreValue):
            calls[at] = Call(here.name, began_s, self.world.now_s, operation, answer.value)

    # -- faults ------------------------------------------------------------------------------------

    def _fault(self) -> None:
        draw = self.world.random
        living = [each for each in self.nodes if each.process.is_alive and not each.is_over]
        if not living:
            return
        victim = draw.choice(living)
        kind = draw.choice(tuple(_FAULTS))
        self.say(victim.name, f"FAULT {kind}")
        _FAULTS[kind](self, victim)

    def _fault_kill(self, victim: SimulatedNode) -> None:
        victim.process.kill()
        self._start_again(victim)

    def _fault_lose(self, victim: SimulatedNode) -> None:
        self.network.lose(victim.host)
        self._start_again(victim)

    def _start_again(self, victim: SimulatedNode) -> None:
        index = int(victim.host.rpartition(".")[2]) - 1
        self.world.after(self.world.random.expovariate(0.3), lambda: self._start(index))

    def _fault_freeze(self, victim: SimulatedNode) -> None:
        victim.process.freeze()
        self.world.after(self._some_s(), victim.process.thaw)

    def _fault_suspend(self, victim: SimulatedNode) -> None:
        if not victim.process.is_frozen:
            victim.process.suspend()
            self.world.after(self._some_s(), victim.process.resume)

    def _fault_cut(self, victim: SimulatedNode) -> None:
        self.network.cut_one(victim.process, self.world.random)

    def _fault_block(self, victim: SimulatedNode) -> None:
        draw = self.world.random
        other = draw.choice([each.host for each in self.nodes])
        pairs = draw.choice(
            (
                [(victim.host, other)],
                [(other, victim.host)],
                [(victim.host, other), (other, victim.host)],
            )
        )
        for pair in pairs:
            self.network.block(*pair)

        def unblock() -> None:
            for pair in pairs:
                if pair in self.network.blocked:
                    self.network.unblock(*pair)

        self.world.after(self._some_s(), unblock)

    def _fault_etcd(self, victim: SimulatedNode) -> None:
        draw, members = self.world.random, self.etcd.members
        index = draw.randrange(len(members))
        trouble = draw.choice(
            (
                Trouble(delay_s=(0.1, 3.0)),
                Trouble(loses_answer=0.5),
                Trouble(loses_request=0.5, late=0.3),
                Trouble(is_gone=True),
                Trouble(is_frozen=True),
            )
        )
        if draw.random() < 0.5:
            self.etcd.ways[victim.process, index] = trouble
            self.world.after(self._some_s(), lambda: self._mend_way(victim.process, index))
        else:
            members[index] = trouble
            self.world.after(self._some_s(), lambda: self._mend_member(index))

    def _mend_way(self, process: Process, index: int) -> None:
        self.etcd.ways.pop((process, index), None)
        self.etcd.go_on()

    def _mend_member(self, index: int) -> None:
        self.etcd.members[index] = Trouble()
        self.etcd.go_on()

    def _fault_quorum(self, victim: SimulatedNode) -> None:
        self.etcd.has_quorum = False

        def found() -> None:
            self.etcd.has_quorum = True
            self.etcd.go_on()

        self.world.after(self._some_s(), found)

    def _fault_slow(self, victim: SimulatedNode) -> None:
        self.network.quality = Quality(
            delay_s=(0.0, self.world.random.choice((0.1, 1.0))), loss=0.05
        )
        self.world.after(self._some_s(), self._quick)

    def _quick(self) -> None:
        self.network.quality = Quality()

    def _some_s(self) -> float:
        """How long a fault takes: mostly seconds, at times longer than any lease."""
        draw = self.world.random
        return draw.expovariate(1.0 / draw.choice((0.3, 2.0, 8.0, 30.0)))

    def _heal(self) -> None:
        self.is_chaotic = False
        self.say("world", "PEACE")
        self.network.blocked.clear()
        self._quick()
        self.etcd.mend()
        for each in self.nodes:
            if each.process.is_alive:
                while each.process.is_frozen:
                    each.process.clock.resume(self.world.now_s)
                    each.process.thaw()

    # -- what must hold ----------------------------------------------------------------------------

    def _check_round(self, here: SimulatedNode, token: tuple[int, int], digest: str) -> None:
        if here.tokens and token <= here.tokens[-1]:
            self.problems.append(f"R13: {here.name} has {token} after {here.tokens[-1]}")
        here.tokens.append(token)
        known, by = self.digests.setdefault(token[1], (digest, here.name))
        if known != digest:
            self.problems.append(f"R2: round {token[1]} differs at {here.name} and {by}")

    def _check_history(self) -> None:
        for (number, key), calls in self.history.items():
            if explained(calls, None, _step, states_max=200_000) is False:
                told = "; ".join(map(_shown, calls))
                self.problems.append(
                    f"R10/R11: round {number}, key {key}: no order explains {told}"
                )


def _step(state: bytes | None, operation: Any, result: Any) -> tuple[bool, bytes | None]:
    """One key of a store: (whether the answer can be, the value after it)."""
    match operation:
        case Add(amount=amount):
            total = int(state or b"0") + amount
            return result in (None, total), b"%d" % total
        case Set(value=value):
            return True, value
        case CompareSet(expected=expected, desired=desired):
            matches = state == expected if expected else state is None or state == expected
            after = desired if matches else state
            return result is None or result == (after if after is not None else expected), after
        case Get():
            return result in (None, state), state
    raise AssertionError(operation)


def _shown(call: Call) -> str:
    ended = "?" if call.is_unknown else f"{call.ended_s:.3f}"
    return f"{call.caller} {call.began_s:.3f}-{ended} {call.operation} = {call.result}"


_FAULTS = {
    "kill": Job._fault_kill,
    "lose": Job._fault_lose,
    "freeze": Job._fault_freeze,
    "suspend": Job._fault_suspend,
    "cut": Job._fault_cut,
    "block": Job._fault_block,
    "etcd": Job._fault_etcd,
    "quorum": Job._fault_quorum,
    "slow": Job._fault_slow,
}
