"""`make soak`: thousands of real rounds, and whether anything grows with them.

    python -m tests.soak --rounds 10000 --ledger etcd

One `rallypoint serve` over the ledger, two processes of small nodes, several runs. etcd's history
is compacted, and its quota is some megabytes, which no round may fill. Measured at intervals:
memory, descriptors, tasks and objects of the coordinator and of a process of nodes, and what the
ledger has: files and bytes, or keys, bytes and revisions for each round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import itertools
import json
import os
import signal
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil

from rallypoint.ledger.etcd.client import EtcdClient
from rallypoint.ledger.etcd.wire import prefix_end
from rallypoint.ledger.file import FileLedger
from rallypoint.ledger.keys import EVENTS
from tests.agent.processes import SRC, Process
from tests.ledger.etcd_processes import EtcdCluster, etcd, programs
from tests.ports import free_port
from tests.soak.flat import Line, fitted

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
RUNS = 4
"""A run has five rounds a second at most, after its first few hundred."""
LOOKS = 80
QUOTA_BYTES = 24 << 20
PREFIX = "/soak"
STARTS_WITHIN_S = 60.0
STUCK_S = 120.0
ETCD_OPTIONS = (f"--quota-backend-bytes={QUOTA_BYTES}",)
HISTORY = 1000
"""How many revisions are kept at each look. etcd's own compaction looks every five minutes only."""


class Measure(msgspec.Struct, frozen=True):
    """What is measured, and how much it may certainly grow from the end of the warm-up on.

    `share`: of its mean. `least`: in its unit, for what is small or has steps.
    """

    name: str
    share: float = 0.0
    least: float = 0.0
    unit: float = 1.0

    def allowed(self, line: Line) -> float:
        """In the unit of the measurements."""
        return max(self.share * line.mean, self.least)


MB = float(1 << 20)
MEASURES = (
    Measure("serve rss MB", 0.03, 1.0 * MB, MB),
    Measure("serve descriptors", 0.0, 2.0),
    Measure("serve tasks", 0.0, 5.0),
    Measure("serve objects", 0.15),
    Measure("node rss MB", 0.03, 1.0 * MB, MB),
    Measure("node descriptors", 0.0, 2.0),
    Measure("node tasks", 0.0, 5.0),
    Measure("node objects", 0.02),
    Measure("files", 0.05, 25.0),
    Measure("files MB", 0.05, 0.1 * MB, MB),
    Measure("etcd keys", 0.05, 10.0),
    Measure("etcd MB", 0.10, 2.0 * MB, MB),
    Measure("revisions a round", 0.05, 1.0),
)

UNCLEAR = "unclear"
Sample = dict[str, float]


class Soak:
    """One coordinator, two processes of nodes, and what they use."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder = folder
        self.rounds = rounds
        self.samples: list[Sample] = []
        self.processes: list[Process] = []
        self._seen = folder / "serve.json"

    def start(self, place: str, endpoint: str, leak: str) -> None:
        """Start everything. `place` is for the coordinator, `endpoint` the same for nodes."""
        leaks = [leak] if leak else []
        port = str(free_port())
        watched = [str(HERE / "watched_serve.py"), str(self._seen), *leaks]
        self.serve = self._start([*watched, "serve", "--port", port, "--ledger", place], "serve")
        self.serve.line("is ready at", STARTS_WITHIN_S)
        argv = [str(HERE / "nodes.py"), endpoint, str(RUNS), str(self.rounds // RUNS)]
        self.nodes = [self._start([*argv, name], name) for name in ("one", "two")]

    def _start(self, argv: list[str], name: str) -> Process:
        env = {k: v for k, v in os.environ.items() if not k.startswith("RALLYPOINT_")}
        env |= {"PYTHONPATH": os.pathsep.join(map(str, (SRC, ROOT)))}
        # Otherwise the C library keeps a heap for each thread, and memory has steps.
        env |= {"MALLOC_ARENA_MAX": "1"}
        self.processes.append(Process([sys.executable, *argv], env, self.folder, name))
        return self.processes[-1]

    def play(self, ledger: Callable[[], Sample], say: Callable[[Sample], None]) -> None:
        """Until all rounds are over. Raises AssertionError if something ends or stands still."""
        step = self.rounds / LOOKS
        reached, moved_s = 0.0, time.monotonic()
        while True:
            done = self._told(self.nodes[0]).get("rounds", 0)
            if done >= reached + step and self._seen.exists():
                reached, moved_s = done, time.monotonic()
                self.samples.append(self._sample(done) | ledger())
                say(self.samples[-1])
            if all(each.popen.poll() is not None for each in self.nodes):
                break
            assert self.serve.popen.poll() is None, self.serve.text
            assert time.monotonic() - moved_s < STUCK_S, f"no round ended for {STUCK_S:g} s"
            time.sleep(0.1)
        for each in self.nodes:
            assert each.code() == 0, each.text

    def _sample(self, done: float) -> Sample:
        sample = {"rounds": float(done), "at_s": time.monotonic()}
        for name, process, told in (
            ("serve", self.serve, json.loads(self._seen.read_text())),
            ("node", self.nodes[0], self._told(self.nodes[0])),
        ):
            of = psutil.Process(process.pid)
            sample[f"{name} rss MB"] = of.memory_info().rss
            sample[f"{name} descriptors"] = of.num_fds()
            sample[f"{name} tasks"] = told["tasks"]
            sample[f"{name} objects"] = told["objects"]
        return sample

    def _told(self, process: Process) -> dict[str, Any]:
        lines = [line for line in process.lines[-3:] if line.startswith("{")]
        return json.loads(lines[-1]) if lines else {}

    def close(self) -> None:
        """End all."""
        for each in self.processes:
            if each.popen.poll() is None:
                each.signal(signal.SIGKILL)
            each.close()


async def events_in(place: Path) -> tuple[int, int]:
    """How many records of events the ledger has, and their bytes.

    A coordinator keeps the last SEGMENTS_KEPT segments. A soak ends before they are full.
    """
    count, size = 0, 0
    async with FileLedger(str(place)) as ledger:
        for log in await ledger.logs(EVENTS):
            for _, data in await ledger.records(log):
                count, size = count + 1, size + len(data)
    return count, size


def in_files(place: Path) -> Sample:
    """What is in the folder now, without events. What goes away meanwhile is not in it."""
    count, size = 0, 0
    for folder, _, files in os.walk(place):
        for name in files:
            with contextlib.suppress(OSError):
                size += (Path(folder) / name).stat().st_size
                count += 1
    events, events_size = asyncio.run(events_in(place))
    return {"files": count - events, "files MB": size - events_size}


def in_etcd(cluster: EtcdCluster) -> Sample:
    """The keys, the size of the data base, and its revision. Old revisions are then compacted."""

    async def ask() -> Sample:
        client = EtcdClient(cluster.options)
        await client.open()
        try:
            key = PREFIX.encode()
            found = await client.range(key, prefix_end(key), count_only=True)
            # Without events, as in `in_files`.
            events = f"{PREFIX}/l/{urllib.parse.quote(EVENTS, safe='')}".encode()
            of_events = await client.range(events, prefix_end(events), count_only=True)
            status = await client.status()
        finally:
            await client.aclose()
        revision = found.header.revision
        keys = found.count - of_events.count
        return {"etcd keys": keys, "etcd MB": status.db_size, "revision": revision}

    sample = asyncio.run(ask())
    compact(cluster.endpoints[0], int(sample["revision"]) - HISTORY)
    return sample


def compact(endpoint: str, revision: int) -> None:
    """Drop what is older, as an operator's compaction does."""
    if revision > 0:
        host, _, port = endpoint.partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        with contextlib.closing(connection):
            connection.request("POST", "/v3/kv/compaction", json.dumps({"revision": revision}))
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()


class Verdict(msgspec.Struct, frozen=True):
    """One row of the table."""

    name: str
    line: Line
    allowed: float
    unit: float

    @property
    def grows(self) -> bool:
        return self.line.grows_by_more_than(self.allowed)

    @property
    def is_unclear(self) -> bool:
        """Whether the measurements are too noisy to tell."""
        return not self.grows and not self.line.is_flat(self.allowed)

    def row(self) -> str:
        """For a person."""
        mean, growth, error, allowed = (
            each / self.unit
            for each in (self.line.mean, self.line.growth, self.line.error, self.allowed)
        )
        says = "GROWS" if self.grows else UNCLEAR if self.is_unclear else "flat"
        return f"{self.name:20}{mean:12.2f}{growth:+12.3f} ± {error:8.3f}{allowed:12.2f}  {says}"


def verdicts(samples: list[Sample]) -> list[Verdict]:
    """Each measure that was taken."""
    rounds = [each["rounds"] for each in samples]
    found = []
    for measure in MEASURES:
        values = [each[measure.name] for each in samples if measure.name in each]
        if measure.name == "revisions a round" and "revision" in samples[0]:
            values = [
                (b["revision"] - a["revision"]) / (b["rounds"] - a["rounds"])
                for a, b in itertools.pairwise(samples)
            ]
            values.insert(0, values[0])
        if values:
            line = fitted(rounds, values)
            found.append(Verdict(measure.name, line, measure.allowed(line), measure.unit))
    return found


def summary(found: list[Verdict]) -> str:
    """The last line: what the exit code is for, and what it does not tell."""
    grow = [each.name for each in found if each.grows]
    unclear = [each.name for each in found if each.is_unclear]
    lines = f"GROWS: {', '.join(grow)}" if grow else "nothing grows for certain"
    if unclear:
        lines += f"; {UNCLEAR}, too noisy to tell, so no failure: {', '.join(unclear)}"
    return lines


def table(found: list[Verdict], samples: list[Sample]) -> str:
    """The table, with its head."""
    took_s = samples[-1]["at_s"] - samples[0]["at_s"]
    rounds = samples[-1]["rounds"] - samples[0]["rounds"]
    head = f"{'':20}{'mean':>12}{'growth':>12}   {'error':>8}{'allowed':>12}"
    first = f"{rounds:.0f} rounds in {took_s:.0f} s ({rounds / took_s:.1f} a second)"
    return "\n".join([first, head, *(each.row() for each in found)])


@contextlib.contextmanager
def soaking(
    ledger: str, rounds: int, leak: str = ""
) -> Iterator[tuple[Soak, Callable[[], Sample]]]:
    """A soak over this ledger, which is gone at the end; and what measures the ledger."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rallypoint-soak-")))
        if ledger == "etcd":
            cluster = stack.enter_context(etcd(programs()[0], options=ETCD_OPTIONS))
            place = endpoint = f"etcd://{','.join(cluster.endpoints)}{PREFIX}"
            measure = lambda: in_etcd(cluster)  # noqa: E731 - it is chosen here
        else:
            where = folder / "ledger"
            place, endpoint = f"file:{where}", f"file://{where}"
            measure = lambda: in_files(where)  # noqa: E731
        soak = Soak(folder, rounds)
        stack.callback(soak.close)
        soak.start(place, endpoint, leak)
        yield soak, measure


def main() -> int:
    """0: nothing certainly grows; the last line names what is unclear. 1: something grows."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--ledger", choices=("etcd", "file"), default="etcd")
    parser.add_argument("--leak", choices=("logs", "tasks"), default="", help="plant a fault")
    parser.add_argument("--samples", type=Path, help="write all measurements here")
    options = parser.parse_args()

    def say(sample: Sample) -> None:
        shown = {name: round(value, 1) for name, value in sample.items() if name != "at_s"}
        print(shown, flush=True)

    with soaking(options.ledger, options.rounds, options.leak) as (soak, measure):
        soak.play(measure, say)
        if options.samples is not None:
            options.samples.write_bytes(msgspec.json.encode(soak.samples))
        found = verdicts(soak.samples)
        print(f"{options.ledger}: {table(found, soak.samples)}\n{summary(found)}")
        return int(any(each.grows for each in found))


if __name__ == "__main__":
    sys.exit(main())
