"""Breadth first through the states of a world, in memory, until there are no more or a limit.

    python -m rallypoint.simulation.explore --list
    python -m rallypoint.simulation.explore --world crash
    python -m rallypoint.simulation.explore --world whole --states 5000000 --state .model-whole

It ends with 0 if all rules held: the last line says so, and what was covered. It ends with 1 if one
was broken: then it prints the shortest path to it, and the command that repeats it. With `--state`,
it keeps its state in this folder and goes on where it stopped (`deep`).
"""

from __future__ import annotations

import argparse
import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from rallypoint.simulation.model.deep import Deep
from rallypoint.simulation.model.fair import begin, stuck_after
from rallypoint.simulation.model.report import Report
from rallypoint.simulation.model.story import as_text, parsed, story
from rallypoint.simulation.model.world import Move, State, World
from rallypoint.simulation.model.worlds import LARGE, MEDIUM, WORLDS

STATES_MAX: Final = 1_000_000
SAMPLE_EVERY: Final = 500
"""In a world that is not explored whole, every so many states a run without faults begins."""


def explore(world: World, *, states_max: int = STATES_MAX, seconds_max: float = 1e9) -> Report:
    """Look at every state, nearest first, but at no more than `states_max`."""
    search = _Search(world, states_max, seconds_max)
    search.go()
    return search.report


class _Search:
    """One search. States have numbers, in the order in which they are found."""

    def __init__(self, world: World, states_max: int, seconds_max: float) -> None:
        self.world = world
        self.report = Report()
        self._states_max, self._seconds_max = states_max, seconds_max
        self._numbers: dict[State, int] = {}
        self._states: list[State] = []
        self._before, self._choices = array("I"), array("B")
        self._from, self._to = array("I"), array("I")
        """The moves without faults, by the numbers of their states."""
        self._settled: list[int] = []

    def go(self) -> None:
        """Search, and decide whether a state is stuck."""
        began_s, cpu_s = time.perf_counter(), time.process_time()
        done = self._search(began_s)
        if not self.report.violation:
            if self.report.is_whole:
                self._find_stuck()
                self.report.is_progress_whole = True
            else:
                self._find_stuck_among_samples(done)
        self.report.states = len(self._states)
        self.report.seconds = time.perf_counter() - began_s
        self.report.cpu_seconds = time.process_time() - cpu_s

    def _search(self, began_s: float) -> int:
        world, report, states = self.world, self.report, self._states
        self._add(begin(world), 0, 0)
        at, level_ends = 0, 1
        while at < len(states):
            if len(states) >= self._states_max:
                return at
            if not at % 1_000 and time.perf_counter() - began_s > self._seconds_max:
                return at
            if at == level_ends:
                report.depth += 1
                level_ends = len(states)
            state = states[at]
            if world.is_settled(state):
                self._settled.append(at)
            for choice, (move, is_fault) in enumerate(list(world.moves(state))):
                report.moves += 1
                try:
                    after = world.after(state, move)
                except Exception as error:  # noqa: BLE001 - any error of the shipped code is a fault
                    report.violation = f"{type(error).__name__}: {error}"
                    report.path = [*self._path_to(at), move]
                    return at
                number = self._numbers.get(after)
                if number is None:
                    number = self._add(after, at, choice)
                if not is_fault:
                    self._from.append(at)
                    self._to.append(number)
            at += 1
        report.is_whole = True
        return at

    def _add(self, state: State, before: int, choice: int) -> int:
        number = self._numbers[state] = len(self._states)
        self._states.append(state)
        self._before.append(before)
        self._choices.append(choice)
        return number

    def _find_stuck(self) -> None:
        """R7: from every state, moves without faults lead to a settled one.

        Backwards over all moves, until nothing changes. Most moves lead to a later state, so a pass
        from the last move to the first finds nearly all.
        """
        fine = bytearray(len(self._states))
        for number in self._settled:
            fine[number] = 1
        changed = True
        while changed:
            changed = False
            for at in range(len(self._from) - 1, -1, -1):
                if fine[self._to[at]] and not fine[self._from[at]]:
                    fine[self._from[at]] = changed = True
        at = fine.find(0)
        if at >= 0:  # the nearest of them
            self.report.violation = (
                "R7: stuck, no moves without faults lead to a settled state from here"
            )
            self.report.path = self._path_to(at)

    def _find_stuck_among_samples(self, done: int) -> None:
        for at in range(0, done, SAMPLE_EVERY):
            path = stuck_after(self.world, self._states[at])
            self.report.samples += 1
            if path is not None:
                self.report.violation = "R7: stuck, a run without faults does not settle"
                self.report.path = [*self._path_to(at), *path]
                return

    def _path_to(self, number: int) -> list[Move]:
        moves = []
        while number:
            before = self._before[number]
            moves.append(list(self.world.moves(self._states[before]))[self._choices[number]][0])
            number = before
        return moves[::-1]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    options = _parser().parse_args(arguments)
    if options.list:
        for name, limits in WORLDS.items():
            size = "large" if name in LARGE else "medium" if name in MEDIUM else "small"
            print(f"{name:12}{size:8}{limits}")
        return 0
    if options.world not in WORLDS:
        print(
            f"error: there is no world {options.world!r}\nhint: --list shows all worlds",
            file=sys.stderr,
        )
        return 2
    world = World(WORLDS[options.world])
    if options.path is not None:
        return _repeat(world, options.path)
    if options.state is not None:
        deep = Deep(options.world, world, Path(options.state))
        most = f"so far, of {options.states:,} states at most"
        report = deep.go(
            states_max=options.states,
            seconds_max=options.seconds,
            tell=lambda line: print(f"{most}: {line}", file=sys.stderr, flush=True),
        )
    else:
        report = explore(world, states_max=options.states, seconds_max=options.seconds)
    if options.json:
        print(msgspec.json.encode(report).decode())
    else:
        _show(options.world, world, report)
    return 1 if report.violation else 0


def _show(name: str, world: World, report: Report) -> None:
    print(f"{name}: {report}")
    if report.violation:
        print("\n".join(story(World(world.limits), report.path)))
        print(report.violation)
        print(
            "repeat it: python -m rallypoint.simulation.explore "
            f"--world {name} --path {as_text(report.path)}"
        )
    else:
        print(report.verdict(name, world.limits))


def _repeat(world: World, text: str) -> int:
    try:
        lines = list(story(world, parsed(text)))
    except ValueError as error:
        print(f"error: {error}\nhint: a path belongs to one version of the code", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 1 if lines and "BROKEN" in lines[-1] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rallypoint.simulation.explore")
    parser.add_argument("--list", action="store_true", help="list the worlds")
    parser.add_argument("--world", default="crash", help="which world")
    parser.add_argument("--states", type=int, default=STATES_MAX, help="look at so many at most")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after this time")
    parser.add_argument("--state", help="keep the search in this folder, and go on there")
    parser.add_argument("--path", help="repeat these moves, and tell what they do")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
