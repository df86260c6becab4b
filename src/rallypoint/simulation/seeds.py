"""Plays many seeds on several processes, and keeps the progress in a file, so that it can go on.

A seed is one job. What a seed finds is kept with the seed; a seed that takes too long, or in which
the simulator itself fails, is a finding, too.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.pool import Pool
from pathlib import Path
from types import FrameType

import msgspec

from rallypoint.simulation.job import Job

SLICE = 50
"""How many seeds a process plays before it tells what it found."""
SEED_LIMIT_S = 120.0
"""The CPU time that one seed may take, in seconds. Mostly it takes a tenth of a second."""


class Finding(msgspec.Struct, frozen=True):
    """What did not hold in the world of a seed."""

    seed: int
    problems: list[str]


class Slice(msgspec.Struct, frozen=True):
    """What some seeds found, and how much CPU time, in seconds, they took."""

    first: int
    count: int
    steps: int
    cpu_s: float
    findings: list[Finding]


class Progress(msgspec.Struct):
    """How far a run over many seeds has come. `code`: a hash of the code that was run last."""

    first: int
    end: int
    next: int
    """All seeds from `first` up to this one have been played."""
    code: str
    steps: int = 0
    cpu_s: float = 0.0
    findings: list[Finding] = []
    played: dict[str, int] = {}
    """How many seeds were played with each code."""

    @classmethod
    def read(cls, path: Path | None, seeds: range) -> Progress:
        """The progress in a file; a new one if there is none. Raises ValueError for other seeds."""
        code = hash_of_code()
        if path is None or not path.exists():
            return cls(seeds.start, seeds.stop, seeds.start, code)
        try:
            found = msgspec.json.decode(path.read_bytes(), type=cls)
        except msgspec.MsgspecError as error:
            raise ValueError(f"{path} is not the progress of a run over seeds: {error}") from None
        if found.first != seeds.start:
            raise ValueError(f"{path} begins with seed {found.first}, and not {seeds.start}")
        found.end, found.code = max(found.next, seeds.stop), code
        return found

    def add(self, done: Slice) -> None:
        """Count the seeds that come next."""
        assert done.first == self.next
        # First, because an interrupt may come between any two lines.
        self.findings += done.findings
        self.next += done.count
        self.steps += done.steps
        self.cpu_s += done.cpu_s
        self.played[self.code] = self.played.get(self.code, 0) + done.count

    def write(self, path: Path) -> None:
        """Write it to a file, whole or not at all."""
        beside = path.with_name(path.name + ".new")
        beside.write_bytes(msgspec.json.format(msgspec.json.encode(self)))
        beside.replace(path)

    def told(self) -> str:
        """It in words."""
        count = self.next - self.first
        rate = count / self.cpu_s if self.cpu_s else 0.0
        found = [f"seed {each.seed}: {'; '.join(each.problems)[:300]}" for each in self.findings]
        seeds = f"{count:,} of {self.end - self.first:,} seeds played, from {self.first} on"
        speed = (
            f"{rate:.1f} worlds a second of CPU time, {self.steps / max(1, count):.0f} steps each"
        )
        return "\n".join([*found, f"{seeds}: {len(found)} with problems; {speed}"])


def play(seed: int) -> tuple[list[str], int]:
    """Play one seed. Returns its problems, and how many steps it took."""
    job = Job(seed)
    try:
        job.run()
    except Exception as error:  # noqa: BLE001 - a seed on which the simulator fails is a finding
        job.problems.append(f"the simulator failed: {type(error).__name__}: {error}")
    return job.problems, job.world.steps


def play_slice(seeds: range) -> Slice:
    """Play some seeds in this process."""
    began_s, steps, findings = time.process_time(), 0, []
    before = signal.signal(signal.SIGPROF, _too_long)
    try:
        for seed in seeds:
            signal.setitimer(signal.ITIMER_PROF, SEED_LIMIT_S)
            problems, count = play(seed)
            steps += count
            if problems:
                findings.append(Finding(seed, problems))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return Slice(seeds.start, len(seeds), steps, time.process_time() - began_s, findings)


def digest(seed: int) -> str:
    """What happened in the world of a seed, and when, as a digest: for any version of Python."""
    job = Job(seed).run()
    told = repr([(each.at_s, each.who, each.what) for each in job.events])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def digests(seeds: range, jobs: int) -> Iterator[tuple[int, str]]:
    """The digest of each seed's history, in their order."""
    if jobs <= 1:
        yield from zip(seeds, map(digest, seeds), strict=True)
        return
    with processes(jobs) as pool:
        yield from zip(seeds, pool.imap(digest, seeds, chunksize=SLICE), strict=True)


def play_all(
    progress: Progress,
    jobs: int,
    path: Path | None = None,
    *,
    is_first_enough: bool = False,
    seconds_max: float = math.inf,
    told: Callable[[str], None] = lambda line: print(line, flush=True),
) -> Progress:
    """Play all seeds that are left, on so many processes. `path`: where to keep the progress.

    It ends earlier after `seconds_max`. `progress` is changed, so it holds after an interrupt, too.
    `told` gets a line for each finding, and once in a while one about the progress.
    """
    began_s = said_s = time.monotonic()
    for done in _slices(range(progress.next, progress.end), jobs):
        progress.add(done)
        if path is not None:
            progress.write(path)
        for finding in done.findings:
            told(f"seed {finding.seed}: {finding.problems[0]}")
        if time.monotonic() - said_s > 30.0:
            said_s = time.monotonic()
            told(progress.told().splitlines()[-1])
        if is_first_enough and progress.findings:
            break
        if time.monotonic() - began_s > seconds_max:
            break
    return progress


def _slices(seeds: range, jobs: int) -> Iterator[Slice]:
    """What the seeds found, slice by slice, in their order."""
    parts = [seeds[at : at + SLICE] for at in range(0, len(seeds), SLICE)]
    if jobs <= 1 or len(parts) <= 1:
        yield from map(play_slice, parts)
        return
    with processes(jobs) as pool:
        yield from pool.imap(play_slice, parts)


def processes(count: int) -> Pool:
    """So many processes that ignore SIGINT from their first instruction on.

    Ctrl-C is for all processes of a terminal: the parent ends the others, and tells. Only an
    inherited SIG_IGN holds while a process starts; so a Ctrl-C in this call, too, has no effect.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return multiprocessing.get_context("spawn").Pool(count)
    finally:
        signal.signal(signal.SIGINT, before)


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"the seed took more than {SEED_LIMIT_S:g} s of CPU time")


def hash_of_code() -> str:
    """A hash of Rallypoint's source, so that counts of different code are told apart."""
    hashed = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()[:12]
