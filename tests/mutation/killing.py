"""Runs tests against mutants, in forks of one process that has collected the tests.

A fork takes the code of the mutant: `__code__` of the functions that it changes is replaced, so
nothing is imported again. It runs tests until one fails, and ends.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from types import CodeType, FrameType, FunctionType
from typing import Any, Final, NoReturn

import msgspec
import pytest
from _pytest.runner import runtestprotocol

from tests.mutation.mutants import Function, MutableFile, Mutant, made

TEST_S_MAX: Final = 30.0
"""A test that takes longer has found an endless loop, or waits for ever. The longest pure test
takes four seconds."""
CPU_S_MAX: Final = 90
MEMORY_BYTES_MAX: Final = 4 << 30


class Verdict(msgspec.Struct):
    """`killer`: the test that failed; "" if none did. `is_timeout`: it ran too long."""

    killer: str = ""
    is_timeout: bool = False
    tests: int = 0
    seconds: float = 0.0
    now_invalid: str = ""


class Reach(msgspec.Struct):
    """What one test reaches: its seconds, and the keys of marked lines."""

    seconds: float
    lines: list[str]


class Tests:
    """The plugin: collects tests, and gives `work` control in place of running them."""

    def __init__(self, work: Callable[[Tests], None]) -> None:
        self._work = work
        self.items: dict[str, pytest.Item] = {}
        self.functions: dict[tuple[str, Function], list[FunctionType]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        # Imported here, because pytest wants to see the first import of it.
        from hypothesis import HealthCheck, Phase, settings

        # A mutant that is found need not be found again, nor in a shorter example.
        settings.register_profile(
            "mutation",
            parent=settings.default,
            database=None,
            derandomize=True,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        )
        settings.load_profile("mutation")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {each.nodeid: each for each in session.items}
        for each in gc.get_objects():
            if isinstance(each, FunctionType):
                code = each.__code__
                key = code.co_filename, (code.co_qualname, code.co_firstlineno)
                self.functions.setdefault(key, []).append(each)
        # A fork that collects garbage would copy all that it looks at.
        gc.collect()
        gc.freeze()
        self._work(self)
        return True

    # -- in forks ------------------------------------------------------------------------------

    def reach(
        self, files: dict[str, MutableFile], mutants: Iterable[Mutant], names: Iterable[str]
    ) -> dict[str, Reach]:
        """Which marked lines each of these tests reaches. Runs them once, without a mutant."""
        by_file: dict[str, dict[str, Mutant]] = {}
        for each in mutants:
            by_file.setdefault(str(each.mark.path), {}).setdefault(line_key(each), each)

        def told(out: int) -> None:
            seen: dict[str, None] = {}
            for name, lines in by_file.items():
                self._watch(files[name], lines, seen)
            found: dict[str, tuple[float, list[str]]] = {}
            items = [self.items[each] for each in names]
            for item, following in zip(items, [*items[1:], None], strict=True):
                seen.clear()
                began_s = time.perf_counter()
                failed = _failed(item, following)
                if failed:
                    _tell(out, json.dumps({"failed": item.nodeid}).encode())
                    return
                found[item.nodeid] = (time.perf_counter() - began_s, list(seen))
            _tell(out, json.dumps(found).encode())

        answer = _in_fork(told, seconds_max=1_800)
        told_back = json.loads(answer or b"{}")
        if "failed" in told_back:
            raise RuntimeError(f"without a mutant this test fails: {told_back['failed']}")
        if not told_back:
            raise RuntimeError("the tests did not end, without a mutant")
        return {name: Reach(seconds, lines) for name, (seconds, lines) in told_back.items()}

    def _watch(self, file: MutableFile, lines: dict[str, Mutant], seen: dict[str, None]) -> None:
        """Make each marked line write its key into `seen` when it is reached."""
        places: dict[tuple[ast.AST, str, int], list[str]] = {}
        for key, mutant in lines.items():
            body, field, index = file.statement_of(mutant)
            places.setdefault((body, field, index), []).append(key)
        # The last ones first, so that the places of the others stay.
        for (body, field, index), keys in sorted(places.items(), key=lambda each: -each[0][2]):
            calls = [
                ast.Expr(ast.Call(ast.Name("_reached_", ast.Load()), [ast.Constant(key)], []))
                for key in keys
            ]
            getattr(body, field)[index:index] = [
                ast.copy_location(each, getattr(body, field)[index]) for each in calls
            ]
        self._take(str(file.path), file.compiled())
        for (path, _), functions in self.functions.items():
            if path == str(file.path):
                for each in functions:
                    each.__globals__["_reached_"] = lambda key: seen.__setitem__(key, None)

    def _take(self, path: str, codes: dict[Function, CodeType]) -> int:
        """Replace the code of the file's functions. Returns how many have another one now."""
        taken = 0
        for name, code in codes.items():
            for each in self.functions.get((path, name), ()):
                if each.__code__ != code:
                    each.__code__ = code
                    taken += 1
        return taken

    def kill(
        self,
        file: MutableFile,
        mutant: Mutant,
        names: list[str],
        seconds: float,
        worlds: int = 0,
    ) -> Verdict:
        """Run these tests against the mutant, until one fails, and then so many simulated worlds.

        `seconds`: the usual time of the tests.
        """
        with made(mutant.edit):
            try:
                codes = file.compiled()
            except (SyntaxError, ValueError, TypeError) as error:
                return Verdict(now_invalid=str(error))

        def told(out: int) -> None:
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_S_MAX, CPU_S_MAX + 5))
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
            signal.signal(signal.SIGALRM, _ring)
            try:
                if not self._take(str(file.path), codes):
                    return _tell(out, b"invalid")
            except ValueError:
                return _tell(out, b"invalid")
            items = [self.items[each] for each in names]
            pytest.Function.repr_failure = _nothing_said  # type: ignore[method-assign]
            for item, following in zip(items, [*items[1:], None], strict=True):
                _tell(out, f"{item.nodeid}\n".encode())
                signal.setitimer(signal.ITIMER_REAL, TEST_S_MAX)
                if _failed(item, following):
                    return _tell(out, b"failed")
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            for seed in range(worlds):
                _tell(out, f"seed {seed}\n".encode())
                if _world_fails(seed):
                    return _tell(out, b"failed")
            return _tell(out, b"survived")

        began_s = time.perf_counter()
        seconds_max = TEST_S_MAX * 2 + 10 * seconds + worlds
        answer = _in_fork(told, seconds_max)
        took_s = time.perf_counter() - began_s
        lines = answer.decode().split("\n")
        if lines[-1] == "invalid":
            return Verdict(now_invalid="its code cannot take the place of the function's")
        run = lines[:-1]
        if lines[-1] == "survived":
            return Verdict(tests=len(run), seconds=took_s)
        killer = run[-1] if run else "?"
        return Verdict(killer, lines[-1] != "failed", len(run), took_s)


def line_key(mutant: Mutant) -> str:
    """The name of a marked line, in what a test reaches."""
    return f"{mutant.mark.path.name}:{mutant.function[0]}:{mutant.was}"


def _failed(item: pytest.Item, following: pytest.Item | None) -> bool:
    try:
        reports = runtestprotocol(item, log=False, nextitem=following)
    except _TooLong:
        return True
    return any(report.failed for report in reports)


def _nothing_said(*_: Any, **__: Any) -> str:
    """In place of the text of a failure, which takes longer than most tests."""
    return ""


def _world_fails(seed: int) -> bool:
    from rallypoint.simulation.seeds import play

    return bool(play(seed)[0])


class _TooLong(BaseException):
    """A test has run for too long."""


def _ring(number: int, frame: FrameType | None) -> NoReturn:
    # It may be raised where nothing lets it through, so the process ends soon in any case.
    signal.setitimer(signal.ITIMER_REAL, 5.0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    raise _TooLong


def _tell(out: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(out, view) :]


def _in_fork(work: Callable[[int], Any], seconds_max: float) -> bytes:
    """What `work` writes in a process of its own, which is killed after `seconds_max`."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        try:
            nothing = os.open(os.devnull, os.O_RDWR)
            for each in (0, 1, 2):
                os.dup2(nothing, each)
            os.close(reading)
            work(writing)
        finally:
            os._exit(0)
    os.close(writing)
    found = bytearray()
    ends_s = time.monotonic() + seconds_max
    try:
        while (left_s := ends_s - time.monotonic()) > 0:
            ready, _, _ = select.select([reading], [], [], left_s)
            data = os.read(reading, 1 << 16) if ready else b""
            if not data:
                break
            found += data
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return bytes(found)
