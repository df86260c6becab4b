"""Jobs of real torchrun agents: started, killed and watched in the same way for each rendezvous.

A node is an agent and everything that it started: all processes that have the node's log in their
environment. torchrun's workers are in sessions of their own. If only the agent were killed, they
would continue to train, unlike the workers of a lost machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.parts import ROOT, clean_environment
from rallypoint.bench.event_log import EventReader, LoggedEvent
from rallypoint.bench.processes import BenchError, wait_until
from rallypoint.net import free_port

WORKER: Final = ROOT / "benchmarks" / "torchrun_worker.py"
MAX_RESTARTS: Final = 3
"""torch counts restarts for each agent. A survivor's worker that fails in gloo uses one."""
DEADLINE_S: Final = 120.0
"""How long any step of a job may take. torch's slowest answer here takes 60 s."""
SHARED: Final = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


class JobFailedError(Exception):
    """The job did not reach the measured event. The first line of the text is for the table."""


@dataclass(frozen=True)
class Variant:
    """One way to run the same job."""

    name: str
    backend: str
    environment: Mapping[str, str] = field(default_factory=dict)


RALLYPOINT: Final = Variant("rallypoint", "rallypoint")
C10D: Final = Variant("c10d, store not shared", "c10d", {SHARED: "1"})
C10D_DEFAULT: Final = Variant("c10d, torch's defaults", "c10d")


class Node:
    """One `torchrun` with one worker. Both write to one event log."""

    def __init__(self, job: Job, name: str) -> None:
        self.name = name
        self._path = job.folder / f"{name}.jsonl"
        self._log = EventReader(self._path)
        self._said = self._path.with_suffix(".txt").open("wb")
        self.started_s = time.monotonic()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.logged_torchrun"),
                f"--rdzv-backend={job.variant.backend}",
                f"--rdzv-endpoint=127.0.0.1:{job.port}",
                *("--rdzv-id=job", f"--nnodes={job.nnodes}", "--nproc-per-node=1"),
                *(f"--max-restarts={MAX_RESTARTS}", "--local-addr=127.0.0.1"),
                *(str(WORKER), job.work),
            ],
            env=clean_environment(
                **job.variant.environment,
                BENCHMARK_LOG=str(self._path),
                TMPDIR=str(job.folder),
                GLOO_SOCKET_IFNAME="lo",
                OMP_NUM_THREADS="1",
            ),
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
        )

    def events(self, kind: str, since_s: float = 0.0, **fields: Any) -> list[LoggedEvent]:
        """The events of this kind from `since_s` on that have these fields, in order."""
        return [
            event
            for event in self._log.all(kind, since_s)
            if all(event[name] == value for name, value in fields.items())
        ]

    def first_s(self, *kinds: str, since_s: float = 0.0, **fields: Any) -> float | None:
        """When one of these events first happened; None if none did."""
        times = [e["at_s"] for kind in kinds for e in self.events(kind, since_s, **fields)]
        return min(times, default=None)

    def last_said(self) -> str:
        """The end of the output of the agent and its worker, for an error."""
        return self._path.with_suffix(".txt").read_text(errors="replace")[-2_000:]

    def kill(self) -> None:
        """SIGKILL to all its processes, the agent first, as if the machine were lost."""
        mark = f"BENCHMARK_LOG={self._path}".encode()
        for pid in [self.process.pid, *_processes_with(mark)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill it and take its exit code."""
        self.kill()
        self.process.wait()
        self.kill()  # Also the processes that it started in the meantime.
        self._said.close()


def _processes_with(mark: bytes) -> list[int]:
    """The processes that have this in their environment, the youngest last."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return sorted(found)


class Job:
    """Nodes that meet at one port of 127.0.0.1. The first of them is the host."""

    def __init__(self, variant: Variant, nnodes: str, work: str, folder: Path) -> None:
        self.variant = variant
        self.nnodes = nnodes
        self.work = work
        self.folder = folder
        self.port = free_port()
        self.nodes: list[Node] = []

    def start(self, count: int, *, first_hosts: bool = True) -> list[Node]:
        """Start this many more nodes.

        `first_hosts`: the job's first node calls the rendezvous before another starts, so that it
        is the host.
        """
        new = []
        for _ in range(count):
            new.append(Node(self, f"node{len(self.nodes)}"))
            self.nodes.append(new[-1])
            if first_hosts and len(self.nodes) == 1:
                self.wait_for(new, "called")
        return new

    def wait_for(
        self, nodes: list[Node], kind: str, since_s: float = 0.0, **fields: Any
    ) -> list[float]:
        """Wait until all of these nodes have such an event; when each first had one.

        Raises JobFailedError if all agents end before that, or at the deadline.
        """
        began_s = time.monotonic()

        def has_happened() -> bool:
            if all(node.first_s(kind, since_s=since_s, **fields) is not None for node in nodes):
                return True
            if all(node.process.poll() is not None for node in self.nodes):
                after_s = time.monotonic() - began_s
                said = nodes[0].last_said()
                raise JobFailedError(f"the job ended, all agents after {after_s:.0f} s\n{said}")
            return False

        try:
            wait_until(has_happened, f"{kind} everywhere", DEADLINE_S)
        except BenchError as error:
            raise JobFailedError(f"not within {DEADLINE_S:g} s\n{nodes[0].last_said()}") from error
        times = [node.first_s(kind, since_s=since_s, **fields) for node in nodes]
        return [at_s for at_s in times if at_s is not None]

    def stepped(self, nodes: list[Node], since_s: float = 0.0) -> float:
        """Wait until their workers have done a step together; when the last of them had."""
        return max(self.wait_for(nodes, "stepped", since_s, size=len(nodes)))


@contextlib.contextmanager
def job(variant: Variant, nnodes: str, work: str) -> Iterator[Job]:
    """A job that has no nodes yet. All its processes end with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        made = Job(variant, nnodes, work, Path(folder))
        try:
            yield made
        finally:
            for node in made.nodes:
                node.end()
