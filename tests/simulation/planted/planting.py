"""How a bug is put back into the shipped code: functions are replaced while it is planted.

A replacement gets the original function first and then the same parameters, by the same names. So a
target that was renamed, or that has other parameters by now, is an error and not a bug that nobody
plants. Calls of the replacement are counted: one that is never called has bound to nothing.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from rallypoint.simulation.job import Job
from rallypoint.simulation.node_situations import departures
from rallypoint.simulation.plan import Plan
from rallypoint.simulation.situations import RARE, Situation, _plain

Tool = Callable[[int], list[str]]
"""Runs one seed. Returns the rules that did not hold, in words."""


class Replacement(msgspec.Struct, frozen=True):
    """One function in place of another. `target`: "module:Class.method" or "module:function"."""

    target: str
    function: Callable[..., Any]


class Bug(msgspec.Struct, frozen=True, kw_only=True):
    """A bug, and what is known about how it is found.

    `rule`: what it breaks. `source`: where it comes from. `by`: the name of the tool in TOOLS.
    `seed`: a seed with which the tool finds it; None: not known.
    """

    name: str
    rule: str
    source: str
    parts: tuple[Replacement, ...]
    by: str = "job"
    seed: int | None = None
    tests: tuple[str, ...] = ()
    """Of a bug that no simulation reaches: the tests that fail with it."""
    judged: str = ""
    """Why no promise is broken by it. `by` is "judged" then, and nothing looks for it."""


def replaces(target: str) -> Callable[[Callable[..., Any]], Replacement]:
    """The decorated function takes the place of `target`."""
    return lambda function: Replacement(target, function)


class BindingError(Exception):
    """A replacement does not fit its target any more."""


class Planted:
    """A bug while it is planted. `calls`: how often each of its replacements was called."""

    def __init__(self, bug: Bug) -> None:
        self.bug = bug
        self.calls = {part.target: 0 for part in bug.parts}

    def unused(self) -> list[str]:
        """The targets whose replacement was never called."""
        return [target for target, calls in self.calls.items() if not calls]


@contextlib.contextmanager
def planted(bug: Bug) -> Iterator[Planted]:
    """Plant it. Raises BindingError if a target is gone or has other parameters."""
    there = Planted(bug)
    with contextlib.ExitStack() as undo:
        for part in bug.parts:
            undo.callback(_plant(part, there.calls))
        yield there


def _plant(part: Replacement, calls: dict[str, int]) -> Callable[[], None]:
    owner, name = _owner_of(part.target)
    raw = vars(owner).get(name)
    if raw is None:
        raise BindingError(f"{part.target} does not exist")
    original: Any = raw.fget if isinstance(raw, property) else getattr(raw, "__func__", raw)
    _must_fit(part, original)

    @functools.wraps(original)
    def replacement(*arguments: Any, **named: Any) -> Any:
        calls[part.target] += 1
        return part.function(original, *arguments, **named)

    new: Any = replacement
    if isinstance(raw, property | classmethod | staticmethod):
        new = type(raw)(replacement)
    setattr(owner, name, new)
    moved = [*_named_in_modules(original, replacement)]
    for where, key in moved:
        where[key] = replacement

    def undo() -> None:
        setattr(owner, name, raw)
        for where, key in moved:
            where[key] = original

    return undo


def _owner_of(target: str) -> tuple[Any, str]:
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each, None)
        if owner is None:
            raise BindingError(f"{target} does not exist")
    return owner, name


def _must_fit(part: Replacement, original: Any) -> None:
    expected = list(inspect.signature(original).parameters.values())
    given = list(inspect.signature(part.function).parameters.values())[1:]
    if [(each.name, each.kind) for each in expected] != [(each.name, each.kind) for each in given]:
        raise BindingError(
            f"{part.target} takes {inspect.signature(original)}, "
            f"and its replacement {inspect.signature(part.function)}"
        )


def _named_in_modules(original: Any, replacement: Any) -> Iterator[tuple[dict[Any, Any], Any]]:
    """Where else code and tests refer to the function: imports, and tables of functions."""
    for module_name, module in list(sys.modules.items()):
        if not module_name.startswith(("rallypoint", "tests", "test_")):
            continue
        names = vars(module)
        for name, value in list(names.items()):
            if value is original:
                yield names, name
            elif isinstance(value, dict):
                yield from ((value, key) for key, each in value.items() if each is original)


def _job(seed: int) -> list[str]:
    return Job(seed).run().problems


def _departures(seed: int) -> list[str]:
    """A job in which nodes drain."""
    plain = Plan(nodes=3, min_nodes=1)
    return Job(seed, plan=departures(plain, random.Random(seed)).sound()).run().problems


def _situation(name: str, change: Situation) -> Tool:
    """Jobs that are all about one situation, which few seeds of `_job` come to."""

    def play(seed: int) -> list[str]:
        plan = change(_plain(name, Plan(nodes=3, min_nodes=2)), random.Random(seed)).sound()
        return Job(seed, plan=plan).run().problems

    return play


_SITUATIONS = {name: _situation(name, change) for name, (_, change) in RARE.items()}
TOOLS: dict[str, Tool] = {**_SITUATIONS, "job": _job, "departures": _departures}


def failing_tests(bug: Bug | None, tests: tuple[str, ...]) -> list[str]:
    """Which of these tests fail with the bug; None: without any."""
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"),
            *("-p", "tests.simulation.planted.plugin", "-p", "no:randomly", *tests),
        ],
        env={**os.environ, "RALLYPOINT_PLANTED": bug.name if bug is not None else ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode not in (0, 1):
        raise RuntimeError(f"pytest could not run {tests}: {ran.stdout[-500:]} {ran.stderr[-500:]}")
    failed = [line for line in ran.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed if ran.returncode else []
