"""Whether a round's workers start warm, and what becomes of the preloader. Pure.

    learn (no list) ──▶ import ──▶ ready ──▶ (a round starts warm)
                          ▲  │        │
                          │  ▼        ▼
              the rest of the list   it died: pause, and import again
              refused (a list of the user): off

This is a part of the agent's machine, and has the same form: what happened goes in, actions come
out, and `due_s` is when to ask again. preloader.py executes the actions. A start is never delayed
for a preloader, except the first one of a job whose modules the user has named: the workers would
import the same modules in that time.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from rallypoint.core.backoff import Backoff
from rallypoint.launch import agent_actions as do
from rallypoint.launch import agent_events as on
from rallypoint.launch import warm_messages

READS: Final = 4
"""How often the modules are read in the time after which they are learned. If they have changed
since the last time, the worker still imports.
"""
TRIES_MAX: Final = 8
"""How many lists a preloader may refuse before the workers start cold for good."""
PAUSE_S: Final = 1.0
PAUSE_S_MAX: Final = 60.0
"""The pauses before another preloader if one has ended by itself."""


class Preload(msgspec.Struct, frozen=True, kw_only=True):
    """What `--preload` asks for.

    `modules`: those that the user has named; none: they are learned. `learn_after_s`: how long a
    worker of the first round imports modules before they are learned, in seconds, if its round does
    not end before. `problem`: why workers cannot start warm here; "" if they can.
    """

    modules: tuple[str, ...] = ()
    learn_after_s: float = 60.0
    problem: str = ""


class Warmth(enum.StrEnum):
    """What is known of the preloader."""

    OFF = "off"
    """No worker starts warm any more, or `--preload` was not given."""
    UNLEARNED = "unlearned"
    """The next round's first worker tells what it imports."""
    WATCHING = "watching"
    """It does."""
    READING = "reading"
    """What it has told is read."""
    IMPORTING = "importing"
    READY = "ready"
    PAUSED = "paused"
    """A preloader has ended by itself; another one follows."""


class WarmStarts:
    """See above. All `now_s` are from one monotonic clock, in seconds."""

    def __init__(self, preload: Preload | None) -> None:
        self.state = Warmth.OFF
        self.due_s: float | None = None
        """When to call `decide` again if nothing happens; None: never."""
        self._preload = preload
        self._modules: tuple[str, ...] = preload.modules if preload is not None else ()
        self._tries = 0
        self._is_first_start = True
        self._learn_from_s = 0.0
        self._is_round_over = False
        self._backoff = Backoff(PAUSE_S, PAUSE_S_MAX)

    def freeze(self) -> tuple[object, ...]:
        """The state on which decisions depend, without times."""
        return (self.state, self._modules, self._tries, self._is_first_start)

    @property
    def _is_named(self) -> bool:
        return self._preload is not None and bool(self._preload.modules)

    def prepare(self) -> list[do.Action]:
        """The agent starts."""
        if self._preload is None:
            return []
        if self._preload.problem:
            return [do.Say(warm_messages.of_cold(self._preload.problem))]
        if self._is_named:
            return self._import()
        self.state = Warmth.UNLEARNED
        return []

    def how_to_start(self, now_s: float) -> do.Start:
        """How the workers of a round are to start, which begins now."""
        is_first, self._is_first_start = self._is_first_start, False
        match self.state:
            case Warmth.READY:
                return do.Start.WARM
            case Warmth.IMPORTING if is_first:
                return do.Start.WHEN_READY
            case Warmth.UNLEARNED:
                assert self._preload is not None
                self.state = Warmth.WATCHING
                self._learn_from_s = now_s + self._preload.learn_after_s
                self.due_s = self._learn_from_s - self._preload.learn_after_s / READS
                return do.Start.WATCHED
        return do.Start.COLD

    def decide(self, now_s: float, *, is_round_over: bool) -> list[do.Action]:
        """What follows from the time, and from the end of the round."""
        is_due = self.due_s is not None and now_s >= self.due_s
        if self.state is Warmth.WATCHING and (is_due or is_round_over):
            self.state, self.due_s, self._is_round_over = Warmth.READING, None, is_round_over
            return [do.ReadModules()]
        if self.state is Warmth.PAUSED and is_due:
            return self._import()
        return []

    def step(self, event: on.PreloadEvent, now_s: float) -> list[do.Action]:
        """What the preloader, or the worker that was watched, has told."""
        match event:
            case on.ModulesRead(modules=modules) if self.state is Warmth.READING:
                return self._learned(modules, now_s)
            case on.PreloadReady() if self.state is Warmth.IMPORTING:
                self.state = Warmth.READY
                return [do.Say(warm_messages.of_ready(event))]
            case on.PreloadRefused(problems=problems) if self.state is Warmth.IMPORTING:
                return self._refused(problems)
            case on.PreloaderEnded(why=why) if self.state in (Warmth.IMPORTING, Warmth.READY):
                pause_s = self._backoff.next_s(now_s)
                self.state, self.due_s = Warmth.PAUSED, now_s + pause_s
                return [do.Say(warm_messages.of_ended(why, pause_s))]
        return []

    def _learned(self, modules: tuple[str, ...], now_s: float) -> list[do.Action]:
        """Preload these, unless the worker may still be importing others."""
        assert self._preload is not None
        is_same, self._modules = modules == self._modules, modules
        if self._is_round_over and not modules:
            self.state = Warmth.UNLEARNED
            return []
        if self._is_round_over or (modules and is_same and now_s >= self._learn_from_s):
            return [do.Say(warm_messages.of_learned(len(modules))), *self._import()]
        self.state = Warmth.WATCHING
        self.due_s = now_s + self._preload.learn_after_s / READS
        return []

    def _import(self) -> list[do.Action]:
        self.state, self.due_s = Warmth.IMPORTING, None
        return [do.StartPreloader(self._modules)]

    def _refused(self, problems: tuple[on.Problem, ...]) -> list[do.Action]:
        """A user's list is not changed silently. One that was learned goes on without these."""
        self._tries += 1
        said: list[do.Action] = [
            do.Say(text) for text in warm_messages.of_problems(problems, is_named=self._is_named)
        ]
        left_out = {name for problem in problems for name in problem.modules}
        modules = tuple(name for name in self._modules if name not in left_out)
        is_hopeless = self._tries >= TRIES_MAX or not modules or modules == self._modules
        if self._is_named or is_hopeless:
            self.state = Warmth.OFF
            return [*said, do.Say(warm_messages.of_cold("these modules cannot be preloaded"))]
        self._modules = modules
        return [*said, *self._import()]
