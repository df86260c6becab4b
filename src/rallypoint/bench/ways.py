"""The ways in which a small job is started, so that one run compares them.

A way is added in one place: a row of WAYS. Its agents are those of `rallypoint run`, with some
options, or of `torchrun`. torch's agents have no event log, so of them only the workers are timed.
"""

from __future__ import annotations

import importlib.util
import signal
import socket
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

import msgspec

from rallypoint.bench.agents import DDP, KEPT_DDP, Agent
from rallypoint.bench.driver import Plan
from rallypoint.bench.processes import BenchError

MAX_RESTARTS: Final = 3
"""torch counts restarts for each agent: a survivor's worker that fails in gloo uses one."""


class TorchrunAgent(Agent):
    """One `torchrun` with one worker. Only its worker writes to the event log."""

    env: ClassVar = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    """With c10d's default, survivors of a kill make no step together (docs/from-torch.md)."""

    @staticmethod
    def shared(nnodes: str, endpoint: str, run_id: str) -> tuple[str, ...]:
        """The options that all agents of a job have."""
        return (
            *(f"--rdzv-endpoint={endpoint}", f"--rdzv-id={run_id}", f"--nnodes={nnodes}"),
            *("--nproc-per-node=1", "--local-addr=127.0.0.1", f"--max-restarts={MAX_RESTARTS}"),
        )

    def has_begun(self, endpoint: str) -> bool:
        """Whether it hosts the rendezvous: its port accepts a connection."""
        host, _, port = endpoint.rpartition(":")
        with socket.socket() as tried:
            tried.settimeout(1.0)
            return tried.connect_ex((host, int(port))) == 0

    def end(self) -> None:
        """Kill it with its workers, which are in sessions of their own."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)  # It starts no other worker meanwhile.
            self.kill_all()

    def _command(self, name: str, log: str, options: Sequence[str]) -> tuple[str, ...]:
        return ("-m", "torch.distributed.run", *options)


class Way(msgspec.Struct, frozen=True):
    """One way to start the agents of a job.

    `name`: for `--ways` and the figures. `kind`, `options`: of the agents. `worker`: the DDP job of
    `recover`. `keeps`: no survivor's process may be started again. `ready`: the event after which
    the job is as the way promises; None: at once. `repeats`: how often it is measured at most, as
    some take long. Bounds of the medians, or None: `ours_ms` of our share of the time after a kill,
    `next_step_ms` of all of it, `raised_ms` after an exception, `drained_ms` of the pause when a
    node leaves.
    """

    name: str
    shown: str
    kind: type[Agent] = Agent
    options: tuple[str, ...] = ("--max-restarts=1",)
    worker: str = DDP
    keeps: bool = False
    ready: str | None = None
    repeats: int = 5
    ours_ms: float | None = None
    next_step_ms: float | None = None
    raised_ms: float | None = None
    drained_ms: float | None = None


COLD: Final = Way("cold", "rallypoint run", ours_ms=200.0)
WAYS: Final = {
    way.name: way
    for way in (
        COLD,
        Way(
            "preload",
            "rallypoint run --preload",
            # The first step is taken long before, so that all modules are known then.
            options=("--max-restarts=1", "--preload", "--set", "preload_after=8s"),
            ready="preloaded",
            ours_ms=200.0,
            next_step_ms=300.0,
            raised_ms=300.0,
            drained_ms=500.0,
        ),
        Way(
            "keep-workers",
            "rallypoint run --keep-workers --preload",
            # The place of the worker that raises starts warm. Most of that time is the end of a
            # process that was started cold.
            options=(
                *("--max-restarts=1", "--keep-workers"),
                *("--preload", "--set", "preload_after=8s"),
            ),
            worker=KEPT_DDP,
            keeps=True,
            ready="preloaded",
            ours_ms=200.0,
            next_step_ms=200.0,
        ),
        *(
            Way(
                f"torchrun-{backend}",
                f"torchrun --rdzv-backend={backend}",
                TorchrunAgent,
                (f"--rdzv-backend={backend}",),
                repeats=repeats,
            )
            # c10d takes 45 s for a kill, and more than 30 s for a failure.
            for backend, repeats in (("rallypoint", 5), ("c10d", 2))
        ),
    )
}


def chosen(names: Sequence[str], *, is_ddp: bool, kind: type[Agent] | None = None) -> list[Way]:
    """The ways of these names; without any, all that can be compared. Raises BenchError.

    `kind`: only ways with agents of this kind, and with the worker that the caller chooses.

    A plain Python worker imports too little to preload, and torchrun is torch's.
    """
    if not is_ddp:
        others = [name for name in names if name != COLD.name]
        if others:
            raise BenchError(
                f"--ways {','.join(others)} needs --ddp: a plain Python worker is only started by "
                "`rallypoint run`, and imports too little to preload",
                f"rallypoint bench recover --ddp --ways {','.join(names)}",
            )
        return [COLD]
    check_torch("--ddp", ", or leave --ddp out to use a plain Python worker")
    known = [
        name for name, way in WAYS.items() if kind is None or (way.kind is kind and not way.keeps)
    ]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BenchError(
            f"--ways {','.join(unknown)}: there is no such way here",
            f"there are {', '.join(known)}",
        )
    return [WAYS[name] for name in dict.fromkeys(names or known)]


def check_torch(what: str, otherwise: str = "") -> None:
    """Raise BenchError if there is no torch. `what` needs it; `otherwise`: for the hint."""
    if importlib.util.find_spec("torch") is None:
        raise BenchError(
            f"{what} needs torch, which is not installed",
            f"pip install 'rallypoint[torch]'{otherwise}",
        )


def in_turn(
    plan: Plan, those: Sequence[Way], once: Callable[[Way], dict[str, float]]
) -> dict[Way, list[dict[str, float]]]:
    """Measure each way `plan.repeats` times, or as often as it allows; they take turns."""
    results: dict[Way, list[dict[str, float]]] = {way: [] for way in those}
    for index in range(plan.repeats):
        for way, found in results.items():
            if index < way.repeats:
                found.append(once(way))
    return results
