"""`python -m tests.fuzz`: hostile input at the shipped code, from a seed, for as long as you like.

    python -m tests.fuzz --inputs 100000 --seed 1           all targets, each with its share
    python -m tests.fuzz --target nodes --seed 1 --episode 42     one episode again
    python -m tests.fuzz --inputs 10000000 --state fuzz.json      goes on where it stopped
    python -m tests.fuzz --live 20000                       over sockets, at `rallypoint serve`
    python -m tests.fuzz --collect 300                      add to the corpus what reaches new code

An episode is some hundred or thousand inputs that follow from (target, seed, episode) alone. It
fails if an exception is not one of those declared, if anything is logged as an error, if anything
is left of its connections, or if the honest run beside it is disturbed. docs/fuzzing.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

from tests.fuzz import corpus, engines, nodes, people, sides, stored, texts
from tests.fuzz.watching import FuzzFailure, Watch, must

Episode = Callable[[Random, Watch], int]

TARGETS: Final[dict[str, tuple[Episode, float]]] = {
    "nodes": (nodes.episode, 0.60),
    "people": (people.episode, 0.03),
    "sides": (sides.episode, 0.14),
    "stored": (stored.episode, 0.10),
    "texts": (texts.episode, 0.08),
    "etcd": (engines.etcd_episode, 0.045),
    "folder": (engines.folder_episode, 0.005),
}
"""What is fuzzed, and its share of all inputs."""
SETTLED_AFTER: Final = 40
"""Episodes after which this process has loaded and cached what it will."""
GROWTH_MIB_MAX: Final = 64.0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--inputs", type=int, default=100_000, help="how many, of all targets")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", choices=TARGETS, help="only this one")
    parser.add_argument("--episode", type=int, help="only this one, of --target")
    parser.add_argument("--state", type=Path, help="a file to go on from, written as it goes")
    parser.add_argument("--seconds", type=float, help="stop after so long, for --state")
    parser.add_argument("--live", type=int, help="so many inputs at a real `rallypoint serve`")
    parser.add_argument("--collect", type=float, help="look for the corpus, for so many seconds")
    given = parser.parse_args(arguments)
    if given.collect:
        print(f"{corpus.collect(given.collect, given.seed)} inputs were added to {corpus.FOLDER}")
        return 0
    if given.live:
        from tests.fuzz import live

        print(f"live: {live.run(given.seed, given.live)} inputs, seed {given.seed}: no failure")
        return 0
    if given.episode is not None:
        if given.target is None:
            parser.error("--episode is of one --target")
        inputs = one_episode(given.target, given.seed, given.episode)
        print(f"{given.target} episode {given.episode}: {inputs} inputs, no failure")
        return 0
    targets = [given.target] if given.target else list(TARGETS)
    return Fuzzing(targets, given.seed, given.state).go(given.inputs, given.seconds)


def one_episode(target: str, seed: int, number: int) -> int:
    """How many inputs it had. Raises FuzzFailure, with the command that repeats it."""
    run, _ = TARGETS[target]
    with Watch() as watch:
        try:
            inputs = run(Random(f"{target}:{seed}:{number}"), watch)
            watch.check()
        except Exception as error:
            again = f"python -m tests.fuzz --target {target} --seed {seed} --episode {number}"
            raise FuzzFailure(f"{type(error).__name__}: {error}\nagain: {again}") from error
    return inputs


class Fuzzing:
    """All targets in turn, each with its share of the inputs."""

    def __init__(self, targets: list[str], seed: int, state: Path | None = None) -> None:
        self._targets = targets
        self._seed = seed
        self._file = state
        fresh = {name: {"episodes": 0, "inputs": 0} for name in targets}
        self._done: dict[str, dict[str, int]] = fresh
        self._spent_s = 0.0
        self._first: dict[str, float] | None = None
        if state is not None and state.exists():
            kept = json.loads(state.read_text())
            must(kept["seed"] == seed, f"{state} is of seed {kept['seed']}")
            self._done = {**fresh, **kept["targets"]}
            self._spent_s = kept["seconds"]

    def go(self, inputs_max: int, seconds_max: float | None = None) -> int:
        """Until so many inputs were tried. The exit code: 1 after a failure."""
        begun_s, told_s, episodes = time.monotonic(), time.monotonic(), 0
        failed = 0
        while self.inputs < inputs_max and not failed:
            if seconds_max is not None and time.monotonic() - begun_s > seconds_max:
                break
            target = min(self._targets, key=self._behind)
            done = self._done[target]
            try:
                done["inputs"] += one_episode(target, self._seed, done["episodes"])
            except FuzzFailure as failure:
                print(f"FAILED: {target} episode {done['episodes']}\n{failure}", flush=True)
                failed = 1
            done["episodes"] += 1
            episodes += 1
            if episodes % SETTLED_AFTER == 0:
                self._check_growth()
            now_s = time.monotonic()
            if now_s - told_s > 30 or failed:
                self._spent_s += now_s - told_s
                told_s = now_s
                self._tell()
        self._spent_s += time.monotonic() - told_s
        self._tell()
        return failed

    @property
    def inputs(self) -> int:
        return sum(each["inputs"] for each in self._done.values())

    def _behind(self, target: str) -> float:
        return self._done[target]["inputs"] / TARGETS[target][1]

    def _check_growth(self) -> None:
        gc.collect()
        now = {"MiB": memory_mib(), "descriptors": descriptors(), "threads": threads()}
        if self._first is None:
            self._first = now
            return
        grown = now["MiB"] - self._first["MiB"]
        must(grown < GROWTH_MIB_MAX, f"memory has grown by {grown:.0f} MiB: {self._first}, {now}")
        for what in ("descriptors", "threads"):
            # A thread that counts log lines comes and goes.
            must(now[what] <= self._first[what] + 2, f"{what}: {self._first[what]}, {now[what]}")

    def _tell(self) -> None:
        parts = (f"{name} {each['inputs']:,}" for name, each in self._done.items())
        rate = self.inputs / max(0.001, self._spent_s)
        text = f"seed {self._seed}: {self.inputs:,} inputs ({', '.join(parts)}), {rate:,.0f}/s"
        print(f"{text}, {memory_mib():.0f} MiB, {descriptors():.0f} descriptors", flush=True)
        if self._file is not None:
            kept: dict[str, Any] = {"seed": self._seed, "targets": self._done}
            temporary = self._file.with_suffix(".new")
            temporary.write_text(json.dumps({**kept, "seconds": self._spent_s}))
            temporary.replace(self._file)


def memory_mib() -> float:
    """What this process has in memory now; 0 where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0.0
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


def descriptors() -> float:
    try:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    except OSError:
        return 0


def threads() -> float:
    return threading.active_count()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
