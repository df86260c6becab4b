"""A node as a witness: whether the hosts of other members answer, when its coordinator asks.

The kernel of a host answers a connection at once: it accepts it, or refuses it where nobody
listens. A host without power does not answer. In each of three seconds the node connects to the
host and, at the same time, to another one that has answered before. Only if the host never answers,
though the other one does, the node testifies that it does not. `sightings` says what may be
dialled; the coordinator decides what follows (core/witnesses.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Final, Generic, TypeVar

from rallypoint import runtime
from rallypoint.client import network
from rallypoint.client.sightings import Sightings
from rallypoint.core.values import Address, HostReport
from rallypoint.core.witnesses import LOOK_S

_log = logging.getLogger("rallypoint.node")
Q = TypeVar("Q")
"""What identifies a question, for the answer."""

TURNS: Final = 3
"""In how many parts of LOOK_S the node connects anew."""
TURN_S: Final = LOOK_S / TURNS
CLEAR_TURNS: Final = 2
"""In how many of them another host must have answered at once."""
GRACE_S: Final = 0.5
"""How much later than planned the last of them may end."""
WATCH_S: Final = 3.0
"""How long a host has to answer the first connection."""
SPREAD_S: Final = 2.0
"""The first connections of all members are spread over this time."""
TRY_AGAIN_S: Final = 30.0
_SEEN: Final = "has answered this node"


class Witness(Generic[Q]):
    """See above. All methods are for one event loop. `testify` sends what was found.

    `coordinator`: the address of the coordinator's side of the node's connection, if it has one.
    """

    def __init__(
        self,
        testify: Callable[[Q, HostReport], None],
        coordinator: Callable[[], Address | None],
    ) -> None:
        self.sightings = Sightings()
        self._testify = testify
        self._coordinator = coordinator
        self._watching: asyncio.Task[None] | None = None
        self._looking: dict[str, asyncio.Task[None]] = {}

    def watch(self, addresses: tuple[Address, ...]) -> None:
        """Connect to these addresses once, and remember which of them answer."""
        if self._watching is not None:
            self._watching.cancel()
        self._watching = self._spawn(self._watch(addresses))

    def look(self, question: Q, host: str) -> None:
        """Find out whether this host still answers, and testify."""
        before = self._looking.pop(host, None)
        if before is not None:
            before.cancel()  # Another coordinator asks, or this one asks again.
        task = self._looking[host] = self._spawn(self._look(question, host))
        task.add_done_callback(lambda task: self._looked(host, task))

    def _looked(self, host: str, task: asyncio.Task[None]) -> None:
        if self._looking.get(host) is task:
            del self._looking[host]

    async def aclose(self) -> None:
        """Stop all of it. Idempotent."""
        tasks = [*self._looking.values(), *([self._watching] if self._watching else [])]
        self._watching = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return runtime.spawn(work, self._failed)

    def _failed(self, error: Exception) -> None:
        """An unexpected error ends only this look: the coordinator waits for no witness."""
        _log.error("looking at another member's host failed", exc_info=error)

    async def _watch(self, addresses: tuple[Address, ...]) -> None:
        pause_s = SPREAD_S
        while addresses := tuple(self.sightings.to_try(addresses)):
            for each in addresses:
                await asyncio.sleep(pause_s * runtime.here().chance.random())
                if self.sightings.may_dial(1, runtime.now_s()):
                    answered = await network.here().answers(each, WATCH_S)
                    self.sightings.tried(each, has_answered=answered is True)
                    what = "%s, the host of another member, %s"
                    _log.debug(what, each.host, _SEEN if answered else "has not answered this node")
            pause_s = TRY_AGAIN_S

    async def _look(self, question: Q, host: str) -> None:
        address = self.sightings.seen_at(host)
        if address is None:
            self._testify(question, HostReport.UNSEEN)
            return
        others = self.sightings.others(host, self._coordinator())
        self._testify(question, await self._report(address, others))

    async def _report(self, address: Address, others: list[Address]) -> HostReport:
        ends_s = runtime.now_s() + LOOK_S
        tries = _Tries(address)
        clear = 0
        try:
            for _ in range(TURNS):
                # R8: members are no port scanners.
                if not others or not self.sightings.may_dial(1 + len(others), runtime.now_s()):
                    return HostReport.UNSURE
                turn_ends_s = runtime.now_s() + TURN_S
                tries.began(self._spawn(tries.once(max(TURN_S, ends_s - runtime.now_s()))))
                # R8: in the same second, another host has to answer.
                answered = await self._that_answer(others)
                if answered:
                    clear, others = clear + 1, answered[:1]
                if await tries.is_answered_until(turn_ends_s):
                    return HostReport.ANSWERED
            if await tries.is_answered_until(ends_s + GRACE_S):
                return HostReport.ANSWERED
            # R8: without a way to the host, its silence says nothing.
            is_clear = clear >= CLEAR_TURNS and tries.had_a_way
            return HostReport.NOT_ANSWERED if is_clear else HostReport.UNSURE
        finally:
            tries.cancel()

    async def _that_answer(self, others: list[Address]) -> list[Address]:
        """Those of some addresses that answer within a turn."""
        here = network.here()
        found = await asyncio.gather(*(here.answers(each, TURN_S) for each in others))
        return [each for each, answers in zip(others, found, strict=True) if answers]


class _Tries:
    """The connections that a node tries to one host."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._found: list[bool | None] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()

    def began(self, task: asyncio.Task[None]) -> None:
        """Another one is tried."""
        self._tasks.append(task)

    async def once(self, limit_s: float) -> None:
        """Try one connection."""
        self._found.append(await network.here().answers(self._address, limit_s))
        self._changed.set()

    async def is_answered_until(self, ends_s: float) -> bool:
        """Whether one is answered by that time. Returns as soon as one is.

        If all have ended, it waits all the same: so the next one is tried later.
        """
        while True not in self._found:
            left_s = ends_s - runtime.now_s()
            if left_s <= 0 or (len(self._found) == TURNS):
                return False
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left_s)
        return True

    @property
    def had_a_way(self) -> bool:
        """Whether all have ended without an answer, though this machine has a way to the host."""
        return len(self._found) == TURNS and None not in self._found

    def cancel(self) -> None:
        """Give up those that are open."""
        for each in self._tasks:
            each.cancel()
