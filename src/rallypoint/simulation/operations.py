"""What users and schedulers do to a job, at moments that the seed draws: see `faults`.

Each is a function as a fault is. A process that is frozen does it when it goes on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final

from rallypoint.client.node import Node
from rallypoint.core.values import Failure, FailureKind, Outcome
from rallypoint.errors import CoordinatorError
from rallypoint.simulation.scene import Scene, StartedNode, Undo


def _fail(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """A worker of the node fails."""
    kind = draw.choice((FailureKind.EXCEPTION, FailureKind.SIGNAL, FailureKind.COMMUNICATION))
    _soon(victim, lambda node: node.failed(Failure(kind, "boom")))


def _finish(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """The node's workers finish."""
    victim.should_finish = True


def _depart(scene: Scene, victim: StartedNode, draw: random.Random) -> Undo:
    """The node says that it leaves, and its process or its machine ends some time after that."""
    _soon(victim, lambda node: node.depart("it is preempted"))

    def end() -> None:
        if not victim.process.is_alive:
            return
        gone = [victim]
        if draw.random() < 0.5:
            victim.process.kill()
        else:
            gone = scene.lose_power(victim)
        for each in gone:
            scene.start_later(each.index, draw.expovariate(0.2))

    if draw.random() < 0.3:
        scene.world.after(draw.random() * 0.01, end)
    return end  # At the latest when the faults end.


def leave(victim: StartedNode) -> None:
    """Its program ends in order."""
    if victim.task is not None:
        victim.is_leaving = True
        victim.process.soon(victim.task.cancel)


def _leave(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """The node leaves in order, and another one comes in its place."""
    leave(victim)
    scene.start_later(victim.index, draw.expovariate(0.2))


def _close(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """Somebody closes the run."""
    outcome = draw.choice((Outcome.SUCCEEDED, Outcome.FAILED, Outcome.STOPPED))

    async def close(node: Node) -> None:
        try:
            await node.close_run(outcome, "a user closed it", 30.0)
        except CoordinatorError as error:
            scene.say(victim.name, f"could not close the run: {error.message}")

    if draw.random() < 0.5:  # Most jobs should go on.
        _start(victim, close)


def _start_all(scene: Scene, victim: StartedNode, draw: random.Random) -> None:
    """A scheduler starts all nodes that do not run, with the run ids that they had."""
    running = {each.index for each in scene.living}
    for index in range(scene.plan.nodes):
        if index not in running:
            scene.start_later(index, draw.random() * 2.0)


def _soon(victim: StartedNode, work: Callable[[Node], object]) -> None:
    def run() -> None:
        if victim.node is not None and not victim.is_over:
            work(victim.node)

    victim.process.soon(run)


def _start(victim: StartedNode, work: Callable[[Node], Coroutine[Any, Any, None]]) -> None:
    _soon(victim, lambda node: asyncio.get_running_loop().create_task(work(node)))


OPERATIONS: Final = {
    "fail": _fail,
    "finish": _finish,
    "depart": _depart,
    "leave": _leave,
    "close": _close,
    "start_all": _start_all,
}
