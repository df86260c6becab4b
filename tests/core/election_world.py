"""The processes of the simulated election, their clocks, and the network to the engine.

What must not be here: what the engine does with a request.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from rallypoint.checkers.election_checker import ElectionChecker
from rallypoint.core import election as e
from rallypoint.core.values import (
    Address,
    CloseRecord,
    Outcome,
    RoundHead,
    RoundMember,
    Stamp,
    table_digest,
)
from rallypoint.ledger import single_value
from rallypoint.ledger.contract import Conflict
from tests.core.election_engine import LEDGER, NODES, TIMING, Engine, Plan, Then


class Process:
    """One candidate: it executes the actions of its holder and its claims."""

    def __init__(self, world: World, index: int) -> None:
        self.world = world
        self.index = index
        self.life = 0
        self.is_dead = self.is_frozen = self.is_cut_off = self.is_leaving = False
        self.inbox: list[tuple[Then, Any]] = []
        self.claims: dict[str, e.Claim] = {}
        self.elsewhere: dict[str, e.OwnedElsewhere] = {}
        self.begin()

    def begin(self) -> None:
        """Start again: with another name and another clock, and without memory."""
        rng, wild = self.world.rng, self.world.plan.are_clocks_wild
        self.life += 1
        self.is_dead = self.is_frozen = self.is_leaving = False
        self.inbox.clear()
        self.rate = rng.uniform(0.5, 2.0) if wild else rng.uniform(0.92, 1.08)
        self.offset_s = rng.uniform(-1000.0, 1000.0)
        self.wakes_s = float("inf")
        self.start_again()

    def start_again(self) -> None:
        """A lease under a name that was never used."""
        self.world.names += 1
        name = f"p{self.index}.{self.world.names}"
        self.holder = e.LeaseHolder(name, (Address(name, 1),), TIMING)
        self.claims = {run: e.Claim(run, LEDGER, self.holder) for run in self.world.runs}
        self.elsewhere = {}

    def now_s(self) -> float:
        return self.offset_s + self.world.now_s * self.rate

    @property
    def is_awake(self) -> bool:
        return not (self.is_dead or self.is_frozen)

    # -- steps ---------------------------------------------------------------------------------

    def wake(self) -> None:
        """Tick everything that may be due."""
        now_s = self.now_s()
        self.do("", self.holder.tick(now_s))
        for run, claim in self.claims.items():
            if claim.state is e.ClaimState.IDLE and not self.is_leaving:
                self.do(run, claim.begin(now_s))
            self.do(run, claim.tick(now_s))
        if self.holder.is_lost:
            self.start_again()
            self.wake()
        if self.is_leaving and self.holder.has_moved:
            self.world.die(self)
            return
        # A tick leaves nothing due: a driver that asks for the next one would spin.
        due_s = self.next_tick_s()
        assert due_s is None or due_s > now_s, (due_s, now_s)

    def next_tick_s(self) -> float | None:
        ticks = [self.holder.next_tick_s(self.now_s())]
        ticks += [claim.next_tick_s() for claim in self.claims.values()]
        return min((tick for tick in ticks if tick is not None), default=None)

    def do(self, run: str, actions: list[e.Action]) -> None:
        for action in actions:
            match action:
                case e.ReadRun():
                    self.world.read(self, f"run/{run}", self._run_read(run, action))
                case e.ReadLease(process=process):
                    self.world.read(self, f"lease/{process}", self._lease_read(run, action))
                case e.ReadFloor():
                    self.world.read(self, "floor", self._floor_read(run, action))
                case e.SwapRun(expected=expected, value=value):
                    then = self._run_swapped(run, action)
                    self.world.swap(self, f"run/{run}", expected, value, then)
                case e.SwapLease(process=process, expected=expected, value=value):
                    then = self._lease_swapped(run, action)
                    self.world.swap(self, f"lease/{process}", expected, value, then)
                case e.Elected(register=register):
                    self._publish(run, register)
                case e.RegisterWritten(register=register):
                    head = register.round
                    number, term = (head.number, head.term) if head is not None else (0, 0)
                    self.world.checker.committed(run, term, number)
                    self._publish(run, register)
                case e.Deposed():
                    # No process gives up a run that it still owns.
                    owner, _ = self.world.checker.owner(run)
                    assert self.holder.is_lost or owner != self.holder.process
                case e.OwnedElsewhere():
                    self.elsewhere[run] = action

    def _publish(self, run: str, register: e.RunRegister) -> None:
        # A decision may be made now and leave late: the stamp alone protects the nodes (R5).
        if self.claims[run].may_decide(self.now_s()):
            self.world.tell_nodes(run, register.stamp)

    # An answer belongs to the lease manager that asked: its holder and its claims.

    def _run_read(self, run: str, asked: e.ReadRun) -> Then:
        claim = self.claims[run]
        return lambda found: self._go_on(run, claim, claim.run_read(asked, found, self.now_s()))

    def _lease_read(self, run: str, asked: e.ReadLease) -> Then:
        claim = self.claims[run]
        return lambda found: self._go_on(run, claim, claim.lease_read(asked, found, self.now_s()))

    def _floor_read(self, run: str, asked: e.ReadFloor) -> Then:
        claim = self.claims[run]
        return lambda found: self._go_on(run, claim, claim.floor_read(asked, found, self.now_s()))

    def _run_swapped(self, run: str, asked: e.SwapRun) -> Then:
        claim = self.claims[run]
        return lambda done: self._go_on(run, claim, claim.run_swapped(asked, done, self.now_s()))

    def _lease_swapped(self, run: str, asked: e.SwapLease) -> Then:
        if not run:
            holder = self.holder
            return lambda done: self._held(holder, holder.swapped(asked, done, self.now_s()))
        claim = self.claims[run]
        return lambda done: self._go_on(run, claim, claim.lease_swapped(asked, done, self.now_s()))

    def _go_on(self, run: str, claim: e.Claim, actions: list[e.Action]) -> None:
        if self.claims[run] is claim:
            self.do(run, actions)
        else:
            assert not any(isinstance(action, e.Elected) for action in actions)

    def _held(self, holder: e.LeaseHolder, actions: list[e.Action]) -> None:
        if self.holder is holder:
            self.do("", actions)
            self.wake()

    # -- what its program does -----------------------------------------------------------------

    def commit(self, rng: random.Random) -> None:
        """Form a round or close the run, for each run that this process owns."""
        now_s = self.now_s()
        for run, claim in self.claims.items():
            if not claim.may_decide(now_s) or claim.is_committing:
                continue
            register = claim.register
            assert register is not None
            if register.close is not None:
                continue
            if rng.random() < 0.03:
                close = CloseRecord(Outcome.SUCCEEDED, self.holder.process, term=register.term)
                following = msgspec.structs.replace(register, close=close)
            else:
                following = msgspec.structs.replace(register, round=_round(register))
            self.do(run, claim.commit(following, now_s))

    def resign(self, pause_s: float) -> None:
        for run, claim in self.claims.items():
            if claim.state is e.ClaimState.OWNED:
                self.do(run, claim.resign(self.now_s(), pause_s))

    def hand_over(self) -> None:
        self.is_leaving = True
        self.do("", self.holder.hand_over(self.now_s()))


def _round(register: e.RunRegister) -> RoundHead:
    """The next round of this owner. The member's name distinguishes two rounds with one number."""
    number, name = register.number + 1, f"{register.owner}/{register.sequence}"
    members = (RoundMember(name, number, "host", (), 1),)
    bootstrap = Address("host", 1)
    digest = table_digest(number, members, bootstrap)
    return RoundHead(number, register.term, 1, 1, bootstrap, digest)


class World:
    """Everything of one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.plan = plan = Plan.draw(self.rng)
        self.now_s = 0.0
        self.checker = ElectionChecker()
        self.engine = Engine(plan, self.checker)
        self.runs = tuple(f"run-{number}" for number in range(plan.runs))
        self.names = 0
        self.removed = 0
        """How many closed runs were removed. Each may begin again."""
        self.is_healed = False
        self.steps = 0
        self.seen: dict[tuple[str, str], Stamp] = {}
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self.processes = [Process(self, index) for index in range(plan.candidates)]

    # -- time ----------------------------------------------------------------------------------

    def at(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        self._order += 1
        heapq.heappush(self._queue, (self.now_s + delay_s, self._order, call, args))

    def run_until(self, until_s: float) -> None:
        while self._queue and self._queue[0][0] <= until_s:
            self.now_s, _, call, args = heapq.heappop(self._queue)
            self.steps += 1
            call(*args)
        self.now_s = until_s

    def _after(self, process: Process) -> None:
        """After each step of a process: check what it believes, and when it has to tick."""
        if not process.is_awake:
            return
        due_s = process.next_tick_s()
        if due_s is None:
            return
        at_s = max(self.now_s, (due_s - process.offset_s) / process.rate + 1e-6)
        if at_s < process.wakes_s:
            process.wakes_s = at_s
            self.at(at_s - self.now_s, self._wake, process, process.life, at_s)

    def _wake(self, process: Process, life: int, at_s: float) -> None:
        if process.life != life or process.wakes_s != at_s:
            return
        process.wakes_s = float("inf")
        if process.is_awake:
            process.wake()
            self._after(process)

    def check(self) -> None:
        """After each write, every process that may decide must be the owner by the ledger."""
        if self.plan.are_clocks_wild:
            return
        for process in self.processes:
            now_s = process.now_s()
            # Of the frozen, too: their next instruction might be a decision.
            if process.is_dead or not process.holder.may_decide(now_s):
                continue
            for run, claim in process.claims.items():
                if claim.may_decide(now_s):
                    assert claim.register is not None
                    self.checker.may_decide(run, process.holder.process, claim.register.term)

    # -- the network ---------------------------------------------------------------------------

    def _delay_s(self) -> float:
        if self.is_healed:
            return self.rng.uniform(0.001, 0.02)
        if self.plan.slow and self.rng.random() < self.plan.slow:
            return self.rng.uniform(0.0, 8.0)
        return self.rng.expovariate(1.0 / self.plan.delay_s)

    def _copies(self, process: Process) -> int:
        if self.is_healed:
            return 1
        if process.is_cut_off or self.rng.random() < self.plan.loss:
            return 0
        return 2 if self.rng.random() < self.plan.repeat else 1

    def _ask(self, process: Process, request: Callable[[], Any], then: Then) -> None:
        for _ in range(self._copies(process)):
            self.at(self._delay_s(), self._arrive, process, process.life, request, then)

    def _arrive(self, process: Process, life: int, request: Callable[[], Any], then: Then) -> None:
        answer = request()
        self.check()
        for _ in range(self._copies(process)):
            self.at(self._delay_s(), self._deliver, process, life, then, answer)

    def _deliver(self, process: Process, life: int, then: Then, answer: Any) -> None:
        if process.life != life or process.is_dead:
            return
        if process.is_frozen:
            process.inbox.append((then, answer))
            return
        then(answer)
        self._after(process)

    def read(self, process: Process, key: str, then: Then) -> None:
        if self.plan.has_one_register:
            self._ask_map(process, lambda register_map, _: then(_found(register_map.read(key))))
        else:
            self._ask(process, lambda: self.engine.read(key), then)

    def swap(
        self, process: Process, key: str, expected: int | None, value: bytes, then: Then
    ) -> None:
        if self.plan.has_one_register:
            swap = _MapSwap(self, process, key, expected, value, then)
            self._ask_map(process, swap.map_read)
        else:
            self._ask(process, lambda: self.engine.swap(key, expected, value), then)
        if not self.is_healed and self.rng.random() < 0.3:
            # A timeout. The answer may come after it, or have come before it.
            self.at(1.0, self._deliver, process, process.life, then, e.Unknown("no answer"))

    def _ask_map(
        self, process: Process, then: Callable[[single_value.RegisterMap, int], None]
    ) -> None:
        def unpack(found: e.Versioned) -> None:
            then(single_value.decode(found.value, "map"), found.version)

        self._ask(process, lambda: self.engine.read("map"), unpack)

    def tell_nodes(self, run: str, stamp: Stamp) -> None:
        for node in NODES:
            for _ in range(2 if self.rng.random() < self.plan.repeat else 1):
                self.at(self._delay_s(), self._told, node, run, stamp)

    def _told(self, node: str, run: str, stamp: Stamp) -> None:
        seen = self.seen.get((node, run), Stamp())
        if not stamp.is_older_than(seen):
            self.seen[node, run] = stamp
            self.checker.accepted(node, run, stamp)

    # -- trouble -------------------------------------------------------------------------------

    def _work(self) -> None:
        if self.is_healed:
            return
        process = self.rng.choice(self.processes)
        if process.is_awake:
            process.commit(self.rng)
            self._after(process)
        self.at(self.rng.expovariate(1 / 0.1), self._work)

    def _trouble(self) -> None:
        if self.is_healed:
            return
        process = self.rng.choice(self._favoured())
        draw = self.rng.random()
        if draw < 0.3:
            self._freeze(process, self.rng.uniform(0.05, 8.0))
        elif draw < 0.45:
            self.die(process)
        elif draw < 0.65:
            self._cut_off(process, self.rng.uniform(0.1, 8.0))
        elif draw < 0.75 and process.is_awake:
            process.hand_over()
            self.at(3.0, self._leave, process, process.life)
        elif draw < 0.9 and process.is_awake:
            process.resign(self.rng.uniform(0.0, 1.0))
        else:
            self._sweep()
        self._after(process)
        self.at(self.rng.expovariate(1 / self.plan.trouble_s), self._trouble)

    def _favoured(self) -> list[Process]:
        """Owners have faults more often than other processes."""
        owners = {self.checker.owner(run)[0] for run in self.runs}
        named = [each for each in self.processes if each.holder.process in owners]
        return named if named and self.rng.random() < 0.6 else self.processes

    def _freeze(self, process: Process, for_s: float) -> None:
        if process.is_awake:
            process.is_frozen = True
            self.at(for_s, self.thaw, process, process.life)

    def thaw(self, process: Process, life: int) -> None:
        """Wake, with all that has arrived meanwhile: in any order, before or after a tick."""
        if process.life != life or not process.is_frozen:
            return
        process.is_frozen = False
        process.wakes_s = float("inf")
        if self.rng.random() < 0.5:
            process.wake()
        waiting, process.inbox = process.inbox, []
        if self.rng.random() < 0.5:
            self.rng.shuffle(waiting)
        for then, answer in waiting:
            if not process.is_dead:
                then(answer)
        self._after(process)

    def die(self, process: Process) -> None:
        """A process ends, and starts again later. What it has sent still arrives."""
        if process.is_dead:
            return
        process.is_dead = True
        self.at(self.rng.uniform(0.0, 4.0), self.start, process, process.life)

    def start(self, process: Process, life: int) -> None:
        if process.life == life and process.is_dead:
            process.begin()
            process.wake()
            self._after(process)

    def _leave(self, process: Process, life: int) -> None:
        if process.life == life and process.is_leaving:
            self.die(process)

    def _cut_off(self, process: Process, for_s: float) -> None:
        process.is_cut_off = True
        self.at(for_s, setattr, process, "is_cut_off", False)

    def _sweep(self) -> None:
        """Only a lease that is final may be removed."""
        for key, lease in self.engine.leases().items():
            if lease.state is not e.LeaseState.SERVING:
                self.engine.sweep(key)
        for run in self.runs:
            owner, _ = self.checker.owner(run)
            owners = self.engine.leases().get(f"lease/{owner}")
            is_gone = owners is None or owners.state is not e.LeaseState.SERVING
            if self.checker.is_closed(run) and is_gone:
                self.engine.remove_run(f"run/{run}")
                self.removed += 1
                return

    # -- the two phases ------------------------------------------------------------------------

    def chaos(self) -> None:
        """The first phase: faults of all kinds, and no rule may be broken."""
        for process in self.processes:
            self.at(self.rng.uniform(0.0, 0.5), self._begin, process)
        self._work()
        self.at(self.rng.expovariate(1 / self.plan.trouble_s), self._trouble)
        self.run_until(self.plan.chaos_s)

    def _begin(self, process: Process) -> None:
        process.wake()
        self._after(process)

    def heal(self) -> None:
        """The second phase: no faults. What was sent arrives within half a second."""
        self.is_healed = True
        under_way, self._queue = self._queue, []
        for due_s, order, call, args in under_way:
            is_message = call in (self._arrive, self._deliver, self._told)
            soon_s = min(due_s, self.now_s + self.rng.uniform(0.0, 0.5)) if is_message else due_s
            if call not in (self.start, self._leave, self.thaw):
                heapq.heappush(self._queue, (soon_s, order, call, args))
        for process in self.processes:
            process.is_cut_off = False
            if process.is_frozen:
                self.thaw(process, process.life)
        if all(process.is_dead or process.is_leaving for process in self.processes):
            for process in self.processes:
                self.die(process)
                self.start(process, process.life)

    def why_not_settled(self) -> list[str]:
        """Why the processes have not settled yet, in words."""
        return [problem for run in self.runs for problem in self._why_not_settled(run)]

    def _why_not_settled(self, run: str) -> Iterator[str]:
        owner, term = self.checker.owner(run)
        live = [each for each in self.processes if each.is_awake and not each.is_leaving]
        if owner not in [each.holder.process for each in live]:
            yield f"{run} is owned by {owner or 'nobody'}, who does not live"
        for process in live:
            name, claim = process.holder.process, process.claims[run]
            told = process.elsewhere.get(run)
            if name == owner:
                if not claim.may_decide(process.now_s()):
                    yield f"{name} owns {run}, and is {claim.state}"
                elif claim.register is None or claim.register.term != term:
                    yield f"{name} owns {run} in another term than {term}"
            elif claim.state is e.ClaimState.OWNED:
                yield f"{name} believes to own {run}"
            elif told is None or (told.process, told.addresses) != (owner, (Address(owner, 1),)):
                yield f"{name} is {claim.state} and believes {run} at {told}"


class _MapSwap:
    """One swap of a register, where the engine has all registers in one value."""

    def __init__(
        self,
        world: World,
        process: Process,
        key: str,
        expected: int | None,
        value: bytes,
        then: Then,
    ) -> None:
        self._world, self._process = world, process
        self._key, self._expected, self._value = key, expected, value
        self._then = then

    def map_read(self, register_map: single_value.RegisterMap, map_version: int) -> None:
        after = register_map.swap(self._key, self._expected, self._value)
        if isinstance(after, Conflict):
            self._then(e.Conflict(_found(after.current)))
            return
        value, version = single_value.encode(after.register_map), after.version

        def swapped(outcome: e.SwapOutcome) -> None:
            if isinstance(outcome, e.Swapped):
                self._then(e.Swapped(version))
            else:
                assert isinstance(outcome, e.Conflict)
                assert outcome.current is not None
                current = outcome.current
                self.map_read(single_value.decode(current.value, "map"), current.version)

        engine = self._world.engine
        self._world._ask(self._process, lambda: engine.swap("map", map_version, value), swapped)


def _found(versioned: Any) -> e.Versioned | None:
    return None if versioned is None else e.Versioned(versioned.value, versioned.version)
