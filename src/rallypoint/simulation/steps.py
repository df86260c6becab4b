"""Simulated workers that train in steps, and ask at each step whether to stop (R14).

Each rank of a round has the shipped `Steps`. Between two steps all ranks meet in a collective, in
which a rank hangs until all others have come, or until its node learns that the round has ended. So
a rank that waited for one that hangs there would wait for ever.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from rallypoint.client.node import Node
from rallypoint.client.steps import Steps
from rallypoint.core.values import Change, Drain
from rallypoint.errors import RoundBrokenError
from rallypoint.simulation.scene import Oracle, Scene, StartedNode, Token

STEP_S: Final = 0.2
"""How long a step takes, on average, in seconds."""
PROMPT_S: Final = 0.05
"""Within how many seconds the threads of a node's workers promise."""
SLOW_PART: Final = 0.2
"""How many of them are slow, because a program keeps Python's lock."""
SLOW_S: Final = 4.0
"""Within how many seconds those promise."""
POLL_S: Final = 0.02
LEFT_S: Final = (2.0, 12.0)
"""How much time a draining node has, between these bounds, in seconds."""
SILENT_PART: Final = 0.1
"""In which part of the rounds the workers of a node never ask."""


class StepWorkers:
    """The workers of one node in one round."""

    def __init__(self, scene: Scene, here: StartedNode, node: Node, token: Token) -> None:
        self._scene, self._here, self._node, self._token = scene, here, node, token
        found = node.round
        assert found is not None
        self._size = found.head.size
        first, count = found.seat.first_rank, found.seat.workers
        self._steps = {rank: Steps(token[1]) for rank in range(first, first + count)}
        self._stopped: set[int] = set()
        node.on_drain, node.on_step, node.on_ended = self._drain, self._decided, self._ended
        if node.drain is not None:
            self._drain(node.drain)

    async def run(self) -> None:
        """Train until all workers have stopped, or the round has ended."""
        draw = self._here.process.random
        asks = draw.random() >= SILENT_PART
        loop = asyncio.get_running_loop()
        ranks = [loop.create_task(self._train(rank, asks=asks)) for rank in self._steps]
        try:
            await asyncio.gather(*ranks)
            if len(self._stopped) == len(self._steps):
                # A program saves its state, and waits until all have done so.
                await self._meet("saved", len(self._steps))
        finally:
            for rank in ranks:
                rank.cancel()

    @property
    def has_stopped(self) -> bool:
        """Whether all workers were told to stop, at the same step."""
        return len(self._stopped) == len(self._steps)

    async def _train(self, rank: int, *, asks: bool) -> None:
        step, steps = 0, self._steps[rank]
        draw = random.Random(f"{self._scene.world.seed}/{self._here.name}/{rank}/{self._token}")
        while not self._is_over:
            if asks:
                was_used = all(each.gate.is_used for each in self._steps.values())
                asking = steps.is_last(step)
                is_used = asyncio.get_running_loop().create_task(asking)
                await asyncio.sleep(0)
                if not was_used and all(each.gate.is_used for each in self._steps.values()):
                    self._node.takes_part()
                self._scene.tell(Oracle.step_asked, self._here, self._token, rank, step)
                try:
                    is_last = await is_used
                except RoundBrokenError:
                    self._scene.tell(
                        Oracle.step_answered, self._here, self._token, rank, step, None
                    )
                    return
                self._scene.tell(Oracle.step_answered, self._here, self._token, rank, step, is_last)
                if is_last:
                    self._stopped.add(rank)
                    return
            await asyncio.sleep(draw.expovariate(1.0 / STEP_S))
            await self._meet(step, 1)
            step += 1

    async def _meet(self, what: int | str, count: int) -> None:
        """A collective: it ends when all ranks of the round are in it, or this round is over."""
        met = self._scene.met.setdefault((self._here.run_id, self._token, what), [0])
        met[0] += count
        while met[0] < self._size and not self._is_over:  # noqa: ASYNC110 - it polls
            await asyncio.sleep(POLL_S)

    @property
    def _is_over(self) -> bool:
        node = self._node
        is_it = node.round is not None and node.round.head.number == self._token[1]
        return not is_it or node.change is not None or node.gone is not None or bool(node.closed)

    def _drain(self, drain: Drain) -> None:
        for each in self._steps.values():
            each.told(drain)
        if drain.is_asked:
            # The threads answer, whatever the programs do.
            draw = self._here.process.random
            within_s = draw.random() * (SLOW_S if draw.random() < SLOW_PART else PROMPT_S)
            asyncio.get_running_loop().call_later(within_s, self._promise)

    def _promise(self) -> None:
        promises = [each.gate.promise() for each in self._steps.values()]
        known = [each for each in promises if each is not None]
        if len(known) == len(promises) and not self._is_over:
            self._node.promise(max(known))

    def _decided(self, step: int) -> None:
        for each in self._steps.values():
            each.decided(step)

    def _ended(self, change: Change) -> None:
        for each in self._steps.values():
            each.ended(change)


def drain(scene: Scene, victim: StartedNode, left_s: float, reason: str) -> bool:
    """The node is going to leave. False if its round cannot agree: then it has to leave at once."""
    node = victim.node
    if node is None or not node.can_agree or victim.is_leaving:
        return False
    scene.say(victim.name, f"drains, with {left_s:.1f} s: {reason}")
    victim.drains_until_s = scene.world.now_s + left_s
    node.drains(reason, left_s)
    return True
