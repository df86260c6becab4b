"""The world: its time, its chance, and the processes that have turns in it.

A world has one queue of events, ordered by time and then by serial. An event is a turn of one
process's event loop, or something that happens outside of processes: a packet arrives, a fault
begins. Nothing in it depends on real time, on addresses of objects or on hash seeds.

What travels between processes is not decided here: see `network`, `disk` and `etcd`.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import random
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar

from rallypoint.simulation.clocks import MachineClock
from rallypoint.simulation.loop import RESOLUTION_S, ProcessLoop
from rallypoint.simulation.threads import Threads

T = TypeVar("T")

STEPS_MAX_PER_S: Final = 20_000
"""More events in a second of the world, on average, and a process spins. Busy jobs have 2,000."""
TURNS_MAX: Final = 50
"""How many turns of a process, one after the other at the same time, are one event at most."""
UNNOTICED_S: Final = 0.35
"""So much of a freeze may not be noticed by the process."""


@contextlib.contextmanager
def _left_to_the_world() -> Iterator[None]:
    """Asynchronous generators that begin meanwhile are not closed by Python's garbage collector.

    It would run their code at some time, outside of any process.
    """
    before = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(finalizer=lambda generator: None)
    try:
        yield
    finally:
        sys.set_asyncgen_hooks(*before)


class Event:
    """Something that will happen. `cancel` prevents it."""

    __slots__ = ("callback", "time_s")

    def __init__(self, time_s: float, callback: Callable[[], None]) -> None:
        self.time_s = time_s
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """It will not happen. Idempotent."""
        self.callback = None


class World:
    """One world from one seed. `steps` counts the events that have happened."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now_s = 0.0
        """The time, in seconds since the world began. No process sees it."""
        self.random = random.Random(seed)
        self.steps = 0
        self._steps_then, self._then_s = 0, 0.0
        self.processes: list[Process] = []
        self.troubles: list[str] = []
        """Errors for which nobody waited, with the process in which each happened."""
        self.threads = Threads(self)
        self._queue: list[tuple[float, int, Event]] = []
        """(time, serial, event): tuples of numbers are compared fast."""
        self._serial = 0

    def at(self, time_s: float, callback: Callable[[], None]) -> Event:
        """Call it at a time of the world; of two at the same time, the one added first."""
        self._serial += 1
        if time_s < self.now_s:
            time_s = self.now_s
        event = Event(time_s, callback)
        heapq.heappush(self._queue, (time_s, self._serial, event))
        return event

    def after(self, delay_s: float, callback: Callable[[], None]) -> Event:
        """Call it in so many seconds of the world."""
        return self.at(self.now_s + delay_s, callback)

    def process(
        self, name: str, clock: MachineClock | None = None, turn_cost_s: float = 0.0
    ) -> Process:
        """Start a process with an event loop in which nothing runs yet."""
        made = Process(self, name, clock or MachineClock(), turn_cost_s)
        self.processes.append(made)
        return made

    def step(self) -> bool:
        """Let the next event happen. False if there is none."""
        return self._step_until(math.inf)

    def _step_until(self, time_s: float) -> bool:
        """Let the next event happen, unless it is after this time. False if there is none."""
        queue = self._queue
        while queue:
            due_s, _, event = queue[0]
            if event.callback is not None and due_s > time_s:
                return False
            heapq.heappop(queue)
            callback = event.callback
            if callback is not None:
                event.callback = None
                self.now_s = due_s
                self.steps += 1
                callback()
                return True
        return False

    def has_event_now(self) -> bool:
        """Whether something else happens at this time."""
        queue = self._queue
        while queue and queue[0][2].callback is None:
            heapq.heappop(queue)
        return bool(queue) and queue[0][0] <= self.now_s

    def run_until(self, time_s: float, is_over: Callable[[], bool] = lambda: False) -> bool:
        """Let events happen until a time of the world. True once `is_over`, which ends it early.

        A world in which something spins ends here, too: that is a trouble.
        """
        with _left_to_the_world():
            return self._run_until(time_s, is_over)

    def _run_until(self, time_s: float, is_over: Callable[[], bool]) -> bool:
        while not is_over():
            if self.steps - self._steps_then > STEPS_MAX_PER_S * (1.0 + self.now_s - self._then_s):
                self._spins(time_s)
                return False
            if not self._step_until(time_s):
                self.now_s = max(self.now_s, time_s)
                return False
        return True

    def _spins(self, time_s: float) -> None:
        """So many turns in so little time: a process waits for nothing, and never stops."""
        turns = [f"{each.name} {each.turns}" for each in self.processes if each.is_alive]
        self.troubles.append(f"a process spins; their turns: {', '.join(turns)}")
        self.now_s, self._steps_then, self._then_s = max(self.now_s, time_s), self.steps, time_s
        self._queue.clear()

    def unread(self) -> list[str]:
        """All errors for which nobody waited: `troubles`, and those of tasks that have ended."""
        tasks = [
            f"{process.name}: {task.get_name()} ended with {task.exception()!r}, and nobody read it"
            for process in self.processes
            for task in process.loop.unread
        ]
        return self.troubles + tasks

    def close(self) -> None:
        """End all processes, and release what they have. The world cannot go on after this."""
        for process in self.processes:
            process.is_alive = False
        self.threads.close()
        for process in self.processes:
            process.loop.close()
        hook, sys.unraisablehook = sys.unraisablehook, lambda problem: None
        try:
            for process in self.processes:
                process.loop.bury()
            self.processes.clear()
            self._queue.clear()
        finally:
            sys.unraisablehook = hook


class Process:
    """One simulated process: an event loop, a clock, and how much CPU a turn costs.

    `turn_cost_s`: seconds of the world for each turn of its loop; the next turn comes after that.
    A process that is frozen has no turns, and its clock goes on. One that is killed never has one
    again, and nothing that its coroutines do when they are closed leaves it.
    """

    def __init__(self, world: World, name: str, clock: MachineClock, turn_cost_s: float) -> None:
        self.world = world
        self.name = name
        self.clock = clock
        self.turn_cost_s = turn_cost_s
        self.random = random.Random(f"{world.seed}/{name}")
        self.is_alive = True
        self.sees: Callable[[bytes], bytes] | None = None
        """What its release makes of a message that it sends or gets; None: the same."""
        self.has_right_clock = True
        """Whether its monotonic clock has always run as the world's time does."""
        self.ended_s: float | None = None
        """When it was killed; None if it was not."""
        self.on_end: list[Callable[[], None]] = []
        """Called when the process ends: its kernel closes what it had open."""
        self.on_thaw: list[Callable[[], None]] = []
        """Called once when the process goes on: its threads wait for that."""
        self._freezes = 0
        self._frozen_s = 0.0
        self._slept_s = 0.0
        self._free_s = 0.0
        self.turns = 0
        """How many turns its loop had."""
        self._least_s = -math.inf
        """What the clock shows at least: rounding must not keep a timer from being due."""
        self._turn: Event | None = None
        self._has_turn = False
        """Whether its loop runs now: what it adds is looked at once, at the end."""
        self.loop = ProcessLoop(self, name)  # type: ignore[abstract]

    # -- what runs in it -------------------------------------------------------------------------

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine in the process, from its next turn on. An error in it is a trouble."""
        task: asyncio.Task[T] = self.loop.create_task(work)
        return task

    def soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Something reaches the process from outside: its loop calls this in its next turn."""
        if self.is_alive:
            self.loop.call_soon(callback, *args)

    # -- faults ----------------------------------------------------------------------------------

    @property
    def is_frozen(self) -> bool:
        """Whether it has no turns now."""
        return self._freezes > 0

    def freeze(self) -> None:
        """Stop it, as SIGSTOP does. Freezes are counted."""
        if not self._freezes:
            self._frozen_s = self.world.now_s
        self._freezes += 1

    def thaw(self) -> None:
        """Undo one freeze. Does nothing if it is not frozen."""
        if self._freezes:
            self._freezes -= 1
            if not self._freezes:
                self._slept_s += max(0.0, self.world.now_s - self._frozen_s - UNNOTICED_S)
                self._schedule()
                waiting, self.on_thaw = self.on_thaw, []
                for go_on in waiting:
                    go_on()

    def awake_s(self) -> float:
        """The world's time without that in which this process was frozen, as it can know it."""
        now_s = self._frozen_s if self._freezes else self.world.now_s
        return now_s - self._slept_s

    def suspend(self) -> None:
        """Its machine sleeps: it has no turns, and its monotonic clock stands still."""
        self.has_right_clock = False
        self.clock.suspend(self.world.now_s)
        self.freeze()

    def resume(self) -> None:
        """Its machine wakes."""
        self.clock.resume(self.world.now_s)
        self.thaw()

    def set_rate(self, rate: float) -> None:
        """From now on its clock runs at this rate."""
        self.has_right_clock = False
        self.clock.set_rate(self.world.now_s, rate)
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        self._schedule()

    def kill(self) -> None:
        """End it at once, as SIGKILL does. Idempotent."""
        if not self.is_alive:
            return
        self.is_alive = False
        self.ended_s = self.world.now_s
        if self._turn is not None:
            self._turn.cancel()
        for closed in self.on_end:
            closed()
        self.loop.close()

    # -- for its loop ----------------------------------------------------------------------------

    def clock_s(self) -> float:
        """What its monotonic clock shows, in seconds. Never goes back."""
        clock, world_s = self.clock, self.world.now_s
        if clock._is_suspended:
            shown_s = clock.offset_s + clock._shown_s
        else:
            shown_s = clock.offset_s + clock._shown_s + (world_s - clock._since_s) * clock.rate
        return shown_s if shown_s > self._least_s else self._least_s

    def wake(self) -> None:
        """Its loop has something to run."""
        self._schedule()

    def wake_at(self, clock_s: float) -> None:
        """Its loop has a timer that comes before all others."""
        self._schedule()

    def reported(self, context: dict[str, Any]) -> None:
        """An error for which nobody waits."""
        error = context.get("exception")
        if self.is_alive:
            said = f"{type(error).__name__}: {error}" if error is not None else ""
            self.world.troubles.append(f"{self.name}: {context.get('message')} {said}".rstrip())

    def _schedule(self) -> None:
        """Have a turn when there is something to run, the process may run, and its CPU is free."""
        if self._has_turn or not self.is_alive or self._freezes:
            return
        world, loop = self.world, self.loop
        due_s = world.now_s
        if not loop._ready:
            next_due_s = loop.next_due_s
            if next_due_s is None:
                return
            due_s = max(due_s, self.clock.world_s(next_due_s))
        if due_s < self._free_s:
            due_s = self._free_s
        turn = self._turn
        if turn is not None:
            if turn.callback is not None and turn.time_s <= due_s:
                return
            turn.callback = None
        self._turn = world.at(due_s, self._have_turn)

    def _have_turn(self) -> None:
        """Have a turn; and the next ones, if they cost nothing and nobody else has one between."""
        self._turn = None
        if not self.is_alive or self._freezes:
            return
        world, loop = self.world, self.loop
        due_s = loop.next_due_s
        if due_s is not None and 0.0 < due_s - self.clock_s() < RESOLUTION_S:
            self._least_s = due_s
        self._free_s = world.now_s + self.turn_cost_s
        before = self.turns
        self._has_turn = True
        try:
            while True:
                self.turns += 1
                loop.turn()
                is_next = loop._ready and self._free_s <= world.now_s and self._may_run
                if not is_next or self.turns - before >= TURNS_MAX or world.has_event_now():
                    break
        finally:
            self._has_turn = False
        self._schedule()

    @property
    def _may_run(self) -> bool:
        return self.is_alive and not self._freezes
