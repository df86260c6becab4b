"""A search that is larger than memory, in a folder: it goes on where it stopped.

Breadth first, in slices of the nearest states that were not looked at. What a slice leads to is
compared with the names of all states so far, which are on disk, in one pass; what is new is
appended. So memory holds one slice, the parts of states (`Parts`) and five bytes for each state. A
name has 64 bits: with five million states, one is lost to an equal name with a chance of one to a
million.

    search.json    how far it is: all that follows counts only up to the sizes in it
    names.bin      8 bytes for each state, in the order in which they were found
    before.bin     4 bytes: the number of the state before it; choices.bin: 1 byte, which move
    states.bin     the states themselves, as numbers of parts
    parts.log      the parts, as they were added
"""

from __future__ import annotations

import hashlib
import os
import pickle
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from rallypoint.simulation.model.fair import begin, stuck_after
from rallypoint.simulation.model.report import Report
from rallypoint.simulation.model.world import Move, State, World

SLICE: Final = 20_000
CHUNK: Final = 1 << 20
SAMPLE_EVERY: Final = 2_000


class Progress(msgspec.Struct):
    """How far a search is. `code`: of which source. `looked_at`: how many states were expanded."""

    world: str
    code: str
    limits: str
    looked_at: int = 0
    level_ends: int = 1
    parts_bytes: int = 0
    report: Report = msgspec.field(default_factory=Report)


class OtherSearchError(Exception):
    """The folder has a search of another world, or of other code."""


class Deep:
    """One search in a folder. Raises OtherSearchError if the folder has another one."""

    def __init__(self, name: str, world: World, folder: Path) -> None:
        self.world = world
        self._folder = folder
        self._width = len(world.first())
        self._before, self._choices = array("I"), array("B")
        folder.mkdir(parents=True, exist_ok=True)
        fresh = Progress(name, _code(), repr(world.limits))
        known = folder / "search.json"
        if known.exists():
            self._progress = msgspec.json.decode(known.read_bytes(), type=Progress)
            if (self._progress.world, self._progress.limits) != (name, fresh.limits):
                raise OtherSearchError(f"{folder} has a search of world {self._progress.world!r}")
            if self._progress.code != fresh.code:
                raise OtherSearchError(f"{folder} has a search of other source code")
            self._resume()
        else:
            self._progress = fresh
            first = begin(self.world)
            self._append([first], [0], array("B", [0]), [_name(first)])
            self._save()

    def go(
        self,
        *,
        states_max: int,
        seconds_max: float = 1e9,
        tell: Callable[[str], None] = lambda line: None,
    ) -> Report:
        """Search until there are so many states, or for this time, or until a rule is broken."""
        report = self._progress.report
        began_s = told_s = time.perf_counter()
        while self._progress.looked_at < report.states and not report.violation:
            if report.states >= states_max or time.perf_counter() - began_s >= seconds_max:
                break
            slice_s, slice_cpu_s = time.perf_counter(), time.process_time()
            self._look_at_slice()
            report.seconds += time.perf_counter() - slice_s
            report.cpu_seconds += time.process_time() - slice_cpu_s
            self._save()
            if time.perf_counter() - told_s > 10:
                told_s = time.perf_counter()
                tell(str(report))
        report.is_whole = self._progress.looked_at == report.states and not report.violation
        return report

    # -- one slice -------------------------------------------------------------------------------

    def _look_at_slice(self) -> None:
        progress, world = self._progress, self.world
        report, first = progress.report, progress.looked_at
        last = min(first + SLICE, progress.level_ends)
        found: dict[int, tuple[State, int, int]] = {}
        for number, state in zip(range(first, last), self._read(first, last), strict=True):
            if not number % SAMPLE_EVERY:
                report.samples += 1
                stuck = stuck_after(world, state)
                if stuck is not None:
                    self._broken("R7: stuck, a run without faults does not settle", number, stuck)
                    return
            for choice, (move, _) in enumerate(list(world.moves(state))):
                report.moves += 1
                try:
                    after = world.after(state, move)
                except Exception as error:  # noqa: BLE001 - any error of the shipped code is a fault
                    self._broken(f"{type(error).__name__}: {error}", number, [move])
                    return
                found.setdefault(_name(after), (after, number, choice))
        self._keep_new(found)
        progress.looked_at = last
        if last == progress.level_ends and report.states > last:
            progress.level_ends = report.states
            report.depth += 1

    def _keep_new(self, found: dict[int, tuple[State, int, int]]) -> None:
        new = set(found)
        with (self._folder / "names.bin").open("rb") as file:
            while data := file.read(8 * CHUNK):
                new.difference_update(array("Q", data))
        names = [name for name in found if name in new]
        states = [found[name][0] for name in names]
        befores = [found[name][1] for name in names]
        self._append(states, befores, array("B", [found[name][2] for name in names]), names)

    def _broken(self, violation: str, number: int, then: list[Move]) -> None:
        self._progress.report.violation = violation
        self._progress.report.path = [*self._path_to(number), *then]

    def _path_to(self, number: int) -> list[Move]:
        moves = []
        while number:
            before = self._before[number]
            (state,) = self._read(before, before + 1)
            moves.append(list(self.world.moves(state))[self._choices[number]][0])
            number = before
        return moves[::-1]

    # -- the folder ------------------------------------------------------------------------------

    def _append(
        self, states: list[State], befores: list[int], choices: array[int], names: list[int]
    ) -> None:
        flat = array("I", [each for state in states for each in state])
        for file, data in (
            ("states.bin", flat),
            ("before.bin", array("I", befores)),
            ("choices.bin", choices),
            ("names.bin", array("Q", names)),
        ):
            with (self._folder / file).open("ab") as opened:
                opened.write(data.tobytes())
        self._before.extend(befores)
        self._choices.extend(choices)
        self._progress.report.states += len(states)

    def _read(self, first: int, last: int) -> list[State]:
        row = 4 * self._width
        with (self._folder / "states.bin").open("rb") as file:
            file.seek(first * row)
            flat = array("I", file.read((last - first) * row))
        width = self._width
        return [tuple(flat[at : at + width]) for at in range(0, len(flat), width)]

    def _save(self) -> None:
        with (self._folder / "parts.log").open("ab") as file:
            pickle.dump(self.world.added(), file, -1)
            self._progress.parts_bytes = file.tell()
        new = self._folder / "search.json.new"
        new.write_bytes(msgspec.json.encode(self._progress))
        new.replace(self._folder / "search.json")

    def _resume(self) -> None:
        progress, states = self._progress, self._progress.report.states
        sizes = {
            "states.bin": 4 * self._width * states,
            "before.bin": 4 * states,
            "choices.bin": states,
            "names.bin": 8 * states,
            "parts.log": progress.parts_bytes,
        }
        for file, size in sizes.items():
            # What a search that was killed had written after its last save does not count.
            os.truncate(self._folder / file, size)
        self._before.frombytes((self._folder / "before.bin").read_bytes())
        self._choices.frombytes((self._folder / "choices.bin").read_bytes())
        with (self._folder / "parts.log").open("rb") as log:
            while log.tell() < progress.parts_bytes:
                added: dict[str, Any] = pickle.load(log)  # noqa: S301 - our own bytes
                self.world.add(added)


def _name(state: State) -> int:
    packed = array("I", state).tobytes()
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")


def _code() -> str:
    """A name of the source code: a search of other code has other states."""
    root = Path(__file__).parents[2]
    digest = hashlib.blake2b(digest_size=8)
    for folder in ("core", "client", "wire", "checkers", "simulation/model"):
        for file in sorted((root / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
