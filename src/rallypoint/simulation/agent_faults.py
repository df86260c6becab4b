"""Faults that meet agents and their workers: see `faults`, which has those of any node.

They do nothing to a node that runs no agent, or has not started it yet.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from functools import partial
from typing import Final

from rallypoint.core.values import Outcome
from rallypoint.simulation.agents import BROKEN, SimulatedSystem
from rallypoint.simulation.hanging import stand
from rallypoint.simulation.scene import Scene, StartedNode, Undo
from rallypoint.simulation.workers import FINISHED, HowItEnds

AgentFault = Callable[[Scene, SimulatedSystem, random.Random], Undo | None]

_BOOM: Final = ("Traceback (most recent call last):", "RuntimeError: boom")
_FAILURES: Final = (
    HowItEnds(1, lines=_BOOM),
    HowItEnds(3),
    HowItEnds(139),
    HowItEnds(signal=int(signal.SIGSEGV)),
    HowItEnds(signal=int(signal.SIGKILL)),
    HowItEnds(signal=int(signal.SIGKILL), oom=True),
    HowItEnds(signal=int(signal.SIGTERM)),
    HowItEnds(1, lines=("ConnectionResetError: Connection reset by peer",)),
)


def _fail(scene: Scene, system: SimulatedSystem, draw: random.Random) -> None:
    """One of its workers fails."""
    if system.living:
        draw.choice(system.living).end(draw.choice(_FAILURES))


def _break(scene: Scene, system: SimulatedSystem, draw: random.Random) -> None:
    """One of its workers fails as if a peer had ended: that is no cause."""
    if system.living:
        draw.choice(system.living).end(BROKEN)


def _finish(scene: Scene, system: SimulatedSystem, draw: random.Random) -> None:
    """Its workers finish, one after the other."""
    for worker in system.living:
        scene.world.after(draw.random() * 0.5, partial(worker.end, FINISHED))


def _hang(scene: Scene, system: SimulatedSystem, draw: random.Random) -> Undo:
    """Its workers are stuck: only SIGKILL ends them."""
    system.is_stubborn = True

    def go_on() -> None:
        system.is_stubborn = False

    return go_on


def _term(scene: Scene, system: SimulatedSystem, draw: random.Random) -> None:
    """It is asked to stop; at times twice, or with its workers, as Slurm and systemd do."""
    number = draw.choice((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    if draw.random() < 0.3:
        for worker in system.living:
            delay_s = draw.random() * 0.05
            scene.world.after(delay_s, partial(worker.end, HowItEnds(signal=int(number))))
    scene.world.after(draw.random() * 0.05, lambda: system.signal(number))
    if draw.random() < 0.4:
        scene.world.after(draw.random() * 2.0, lambda: _again(system, number))


def _again(system: SimulatedSystem, number: int) -> None:
    if system.process.is_alive:
        system.signal(number)


def _ask(scene: Scene, system: SimulatedSystem, draw: random.Random) -> None:
    """One of its workers asks its agent for something."""
    socket = system.socket
    if socket is None or not system.living:
        return
    wants = draw.choice(("regroup", "regroup", "leave", "close"))
    scene.say(system.here.name, f"a worker asks: {wants}")
    if wants == "regroup":
        system.process.soon(socket.ask.regroup)
    elif wants == "leave":
        system.process.soon(socket.ask.leave, "a worker has had enough")
    elif draw.random() < 0.2:
        outcome = draw.choice((Outcome.SUCCEEDED, Outcome.FAILED))
        system.process.soon(socket.ask.close, outcome, "a worker says so")


def _no_start(scene: Scene, system: SimulatedSystem, draw: random.Random) -> Undo:
    """Its machine starts no process."""
    system.cannot_start = True

    def start() -> None:
        system.cannot_start = False

    return start


AGENT_FAULTS: Final[dict[str, AgentFault]] = {
    "worker fails": _fail,
    "workers finish": _finish,
    "workers hang": _hang,
    "signal": _term,
    "worker asks": _ask,
    "no start": _no_start,
}
RARE_AGENT_FAULTS: Final[dict[str, AgentFault]] = {
    "worker breaks": _break,
    "worker stands": stand,
}
"""Those that only some plans have: see `Plan`."""


def on_agent(
    fault: AgentFault,
) -> Callable[[Scene, StartedNode, random.Random], Undo | None]:
    """The fault for any node: without an agent, nothing happens."""

    def meets(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo | None:
        system = victim.system
        return fault(scene, system, draw) if isinstance(system, SimulatedSystem) else None

    return meets
