"""Calls of a ledger by several processes, under faults: are its registers and logs linearizable?

The shipped ledger runs in each process, over a simulated engine that all of them share. Processes
are killed and frozen, hosts lose power, and the engine has its troubles. Each call and its outcome
is kept. At the end, one order of all calls must explain all outcomes, for each register and for
each log: what was acknowledged stays, what was read stays, and an unknown outcome took effect at
one moment or never.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from functools import partial
from typing import Any, Final

import msgspec

from rallypoint.errors import (
    LedgerCorruptError,
    LedgerError,
    LedgerForeignError,
    LedgerFormatError,
)
from rallypoint.ledger.contract import (
    Conflict,
    Created,
    Exists,
    Gap,
    Ledger,
    Swapped,
    Unknown,
    Versioned,
)
from rallypoint.simulation.ledgers import LEDGERS
from rallypoint.simulation.linearizability import Call, explained
from rallypoint.simulation.machine import SimulatedRuntime
from rallypoint.simulation.network import Network
from rallypoint.simulation.plan import Plan
from rallypoint.simulation.world import Process, World

KEYS: Final = ("runs/a", "runs/b", "floor")
LOGS: Final = ("stores/a/1.1.0.1", "stores/b/1.1.0.1")
STATES_MAX: Final = 300_000
"""How long to look for an order of one key's calls."""
UNDECIDED: Final = "the search for an order was too long (STATES_MAX)"
ENDS_S: Final = 60.0
"""How long after the last fault the calls may take."""


class Read(msgspec.Struct, frozen=True):
    """A register is read; the result is its value, or None in `Seen`."""


class Write(msgspec.Struct, frozen=True):
    """A swap. `expected`: the value that the register must have; None: it must not exist."""

    expected: bytes | None
    value: bytes


class Delete(msgspec.Struct, frozen=True):
    """A register is removed. `expected`: only if it has this value; None: whatever it has."""

    expected: bytes | None


class Append(msgspec.Struct, frozen=True):
    """A record is created."""

    index: int
    value: bytes


class Page(msgspec.Struct, frozen=True):
    """Records are read, from `start` on."""

    start: int
    limit: int


class Drop(msgspec.Struct, frozen=True):
    """A log is removed."""


class Seen(msgspec.Struct, frozen=True):
    """What a call said. `outcome`: its kind; `value`: what was there."""

    outcome: str
    value: Any = None


class LedgerCalls:
    """One story. `run` plays it; `problems` then has what no order explains."""

    def __init__(
        self, seed: int, ledger: str, *, hosts: int = 3, faults: int = 8, calls: int = 12
    ) -> None:
        self.world = World(seed)
        self.engine = LEDGERS[ledger](self.world, Plan(nodes=hosts, min_nodes=1, ledger_members=3))
        self.problems: list[str] = []
        self.events: list[tuple[float, str, str]] = []
        self.counts: dict[str, int] = {}
        """How often each outcome was seen."""
        self._network = Network(self.world)
        self._random = random.Random(f"{seed}/calls")
        self._calls: dict[str, dict[int, Call]] = {}
        self._versions: dict[str, dict[int, bytes]] = {}
        self._living: dict[Process, str] = {}
        self._serial = itertools.count(1)
        self._hosts = [f"10.0.0.{index + 1}" for index in range(hosts)]
        self._faults, self._count = faults, calls
        self._is_over = False

    def run(self) -> LedgerCalls:
        """Play it, and check what was seen."""
        world, draw = self.world, self._random
        for host in self._hosts:
            world.after(0.2 * draw.random(), partial(self._start, host))
        at_s = 0.5
        for _ in range(self._faults):
            at_s += draw.expovariate(1.0 / draw.choice((0.05, 0.5, 2.0)))
            world.at(at_s, self._fault)
        world.run_until(at_s)
        self._is_over = True
        if not world.run_until(world.now_s + ENDS_S, lambda: not self._living):
            waiting = ", ".join(process.name for process in self._living)
            self.problems.append(f"{ENDS_S:g} s after the last fault, calls go on: {waiting}")
        for key, calls in self._calls.items():
            self._check(key, list(calls.values()))
        self.problems += world.troubles
        world.close()
        return self

    # -- processes -----------------------------------------------------------------------------

    def _start(self, host: str) -> None:
        name = f"{host}.{next(self._serial)}"
        process = self.world.process(name)
        SimulatedRuntime(process, host, self._network)
        self._living[process] = host
        process.start(self._program(process))

    async def _program(self, process: Process) -> None:
        ledger = self.engine.ledger(process)
        while True:
            try:
                await ledger.open()
                break
            except LedgerError as error:
                self._failed(process, "open", error)
                await asyncio.sleep(0.2)
        left = self._count
        while left > 0 or not self._is_over:
            left -= 1
            await asyncio.sleep(process.random.expovariate(1 / 0.03))
            if process.random.random() < 0.55:
                await self._use_register(process, ledger, process.random.choice(KEYS))
            else:
                await self._use_log(process, ledger, process.random.choice(LOGS))
            if left < -40:
                break
        await ledger.aclose()
        self._living.pop(process, None)

    async def _use_register(self, process: Process, ledger: Ledger, key: str) -> None:
        draw = process.random
        now = await self._read(process, ledger, key)
        if isinstance(now, LedgerError) or draw.random() < 0.3:
            return
        if draw.random() < 0.1:
            await self._delete(process, ledger, key, now)
            return
        expected = now.version if now is not None else None
        value = b"%d" % next(self._serial)
        for _ in range(draw.choice((1, 1, 3))):
            at = self._begin(process, key, Write(now.value if now is not None else None, value))
            outcome = await ledger.swap(key, expected, value)
            match outcome:
                case Swapped(version=version):
                    self._versioned(key, version, value)
                    self._end(key, at, Seen("swapped"))
                case Conflict(current=current):
                    if current is not None:
                        self._versioned(key, current.version, current.value)
                    self._end(key, at, Seen("conflict", current and current.value))
                case Unknown(error=told):
                    self._count_one("unknown")
                    self._failed(process, f"swap {key}", told)
                    continue  # the same bytes again, as callers of ours do
            break

    async def _read(
        self, process: Process, ledger: Ledger, key: str
    ) -> Versioned | LedgerError | None:
        at = self._begin(process, key, Read())
        try:
            now = await ledger.read(key)
        except LedgerError as error:
            self._failed(process, f"read {key}", error)
            return error
        if now is not None:
            self._versioned(key, now.version, now.value)
        self._end(key, at, Seen("read", now and now.value))
        return now

    async def _delete(
        self, process: Process, ledger: Ledger, key: str, now: Versioned | None
    ) -> None:
        # Whoever may write a register meanwhile removes it at a version: that leaves a tombstone.
        named = now
        at = self._begin(process, key, Delete(named.value if named is not None else None))
        try:
            is_gone = await ledger.delete(key, named.version if named is not None else None)
        except LedgerError as error:
            self._failed(process, f"delete {key}", error)
            return
        self._end(key, at, Seen("deleted" if is_gone else "kept"))

    async def _use_log(self, process: Process, ledger: Ledger, log: str) -> None:
        draw = process.random
        start, limit = draw.choice((0, 0, 3)), draw.choice((2, 50))
        at = self._begin(process, log, Page(start, limit))
        try:
            found = await ledger.records(log, start, limit)
        except LedgerError as error:
            self._failed(process, f"records of {log}", error)
            return
        self._end(log, at, Seen("page", tuple(found)))
        if draw.random() < 0.02 and found:
            at = self._begin(process, log, Drop())
            try:
                await ledger.drop_log(log)
            except LedgerError as error:
                self._failed(process, f"drop {log}", error)
                return
            self._end(log, at, Seen("dropped"))
            return
        index = max(0, start + len(found) + draw.choice((0, 0, 0, 0, -1, 1)))
        value = b"%d" % next(self._serial)
        at = self._begin(process, log, Append(index, value))
        outcome = await ledger.append(log, index, value)
        match outcome:
            case Created():
                self._end(log, at, Seen("created"))
            case Exists(value=there):
                self._end(log, at, Seen("exists", there))
            case Gap():
                self._end(log, at, Seen("gap"))
            case Unknown(error=told):
                self._count_one("unknown")
                self._failed(process, f"append {log}", told)

    # -- what was seen -------------------------------------------------------------------------

    def _begin(self, process: Process, key: str, operation: Any) -> int:
        at = next(self._serial)
        call = Call(process.name, self.world.now_s, math.inf, operation, None)
        self._calls.setdefault(key, {})[at] = call
        return at

    def _end(self, key: str, at: int, seen: Seen) -> None:
        self._count_one(seen.outcome)
        asked = self._calls[key][at]
        ended = Call(asked.caller, asked.began_s, self.world.now_s, asked.operation, seen)
        self._calls[key][at] = ended

    def _count_one(self, outcome: str) -> None:
        self.counts[outcome] = self.counts.get(outcome, 0) + 1

    def _failed(self, process: Process, what: str, error: object) -> None:
        """A call failed. That is fine, but nothing here damages a ledger or replaces it."""
        self._count_one(type(error).__name__)
        if isinstance(error, LedgerCorruptError | LedgerForeignError | LedgerFormatError):
            self.problems.append(f"{process.name}: {what}: {type(error).__name__}: {error}")
        self.events.append((self.world.now_s, process.name, f"{what}: {error}"))

    def _versioned(self, key: str, version: int, value: bytes) -> None:
        """A version is given once: no two values have it, not even after a delete."""
        known = self._versions.setdefault(key, {}).setdefault(version, value)
        if known != value:
            self.problems.append(f"{key}: version {version} has {known!r} and {value!r}")

    def _check(self, key: str, calls: list[Call]) -> None:
        step, initial = (_log_step, ()) if key in LOGS else (_register_step, None)
        state: Any = initial
        found = explained(calls, state, step, states_max=STATES_MAX)
        if not found:
            why = "no order explains" if found is False else UNDECIDED
            told = "\n    ".join(
                f"{c.caller} {c.began_s:.4f}-{c.ended_s:.4f} {c.operation} = {c.result}"
                for c in calls
            )
            self.problems.append(f"{key}: {why}\n    {told}")

    # -- faults --------------------------------------------------------------------------------

    def _fault(self) -> None:
        draw, world = self._random, self.world
        living = list(self._living)
        if not living:
            return
        victim = draw.choice(living)
        kind = draw.choice(("kill", "power", "freeze", "freeze", "trouble", "trouble", "outage"))
        self.events.append((world.now_s, victim.name, f"FAULT {kind}"))
        lasts_s = draw.expovariate(1 / draw.choice((0.05, 0.5, 3.0)))
        match kind:
            case "kill":
                self._kill(victim)
            case "power":
                host = self._living[victim]
                for each in living:
                    if self._living[each] == host or self.engine.is_on_one_machine:
                        self._kill(each)
                self.engine.lost_power(host)
            case "freeze":
                victim.freeze()
                world.after(lasts_s, victim.thaw)
            case "trouble":
                world.after(lasts_s, self.engine.trouble(victim, draw))
            case "outage":
                world.after(lasts_s, self.engine.outage(victim, draw))

    def _kill(self, victim: Process) -> None:
        host = self._living.pop(victim)
        victim.kill()
        if not self._is_over:
            self.world.after(0.2 * self._random.random(), partial(self._start, host))


def _register_step(state: bytes | None, operation: Any, seen: Any) -> tuple[bool, bytes | None]:
    """One register: (whether the outcome can be, its value after it)."""
    match operation:
        case Read():
            return seen is None or seen.value == state, state
        case Write(expected=expected, value=value):
            if state == expected:
                return seen is None or seen.outcome == "swapped", value
            return seen is None or (seen.outcome == "conflict" and seen.value == state), state
        case Delete(expected=expected):
            if expected is None or state in (None, expected):
                return seen is None or seen.outcome == "deleted", None
            return seen is None or seen.outcome == "kept", state
    raise AssertionError(operation)


def _log_step(
    state: tuple[bytes, ...], operation: Any, seen: Any
) -> tuple[bool, tuple[bytes, ...]]:
    """One log: (whether the outcome can be, its records after it)."""
    match operation:
        case Page(start=start, limit=limit):
            there = tuple(enumerate(state))[start : start + limit]
            can_be = seen is None or (
                seen.value == there[: len(seen.value)] and bool(seen.value) == bool(there)
            )
            return can_be, state
        case Drop():
            return True, ()
        case Append(index=index, value=value):
            if index < len(state):
                return seen is None or (
                    seen.outcome == "exists" and seen.value == state[index]
                ), state
            if index == len(state):
                return seen is None or seen.outcome == "created", (*state, value)
            return seen is None or seen.outcome == "gap", state
    raise AssertionError(operation)
