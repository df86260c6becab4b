"""The workers of one round, each in a group of its own, so that it can stay for the next round.

`worker_processes.WorkerGroup` has the workers of a node that start and end together. Here each
worker has such a group: a worker that is kept is passed on with its group, and with the thread that
is its parent. What must not be here: which worker is kept (machine.py).
"""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import Callable, Sequence

import msgspec

from rallypoint.launch.system import Workers
from rallypoint.launch.worker_processes import WorkerExit, WorkerSpec

Make = Callable[[WorkerSpec, Callable[[WorkerExit], None]], Workers]


class Place:
    """One worker with its group. Its rank, and who is told of its end, change with each round."""

    def __init__(self, spec: WorkerSpec, exits: Callable[[WorkerExit], None], make: Make) -> None:
        self.rank = spec.rank
        self.exits = exits
        self.group = make(spec, self._ended)

    def _ended(self, exit: WorkerExit) -> None:
        self.exits(msgspec.structs.replace(exit, rank=self.rank))


class EachWorker:
    """See system.Workers. `kept`: the local ranks of workers of `last` that go on here."""

    def __init__(
        self,
        specs: Sequence[WorkerSpec],
        exits: Callable[[WorkerExit], None],
        make: Make,
        last: EachWorker | None = None,
        kept: Sequence[int] = (),
    ) -> None:
        self._places: dict[int, Place] = {}
        self._new: list[Workers] = []
        self._old: list[Workers] = []
        before = {} if last is None else last._places
        self._left = [place.group for each, place in before.items() if each not in kept]
        """Those of the last round that do not go on."""
        for spec in specs:
            place = before[spec.local_rank] if spec.local_rank in kept else None
            if place is None:
                place = Place(spec, exits, make)
                self._new.append(place.group)
            else:
                self._old.append(place.group)
            place.rank, place.exits = spec.rank, exits
            self._places[spec.local_rank] = place

    @property
    def running(self) -> tuple[int, ...]:
        """See Workers."""
        groups = (place.group.running for place in self._places.values())
        return tuple(itertools.chain.from_iterable(groups))

    @property
    def pids(self) -> dict[int, int]:
        """See Workers."""
        pids: dict[int, int] = {}
        for place in self._places.values():
            pids.update(place.group.pids)
        return pids

    async def start(self, *, is_first_alone: bool = False) -> None:
        """See Workers: the new ones, all or none of them. None of them waits for another one."""
        # R13: one that ended after the others had been stopped may have left processes.
        await asyncio.gather(*(group.stop(0) for group in self._left))
        self._left = []
        starts = [group.start() for group in self._new]
        starts += [group.go_on() for group in self._old]
        ends = await asyncio.gather(*starts, return_exceptions=True)
        errors = [each for each in ends if each is not None]
        if errors:
            await asyncio.gather(*(group.stop(0) for group in self._new))
            raise errors[0]

    def start_others(self) -> None:
        """See Workers. They start at once."""

    async def go_on(self) -> None:
        """See Workers. `start` does it for those that were kept."""

    async def stop(
        self,
        grace_s: float,
        first_signal: int = signal.SIGTERM,
        ending: Sequence[int] = (),
        kept: Sequence[int] = (),
    ) -> tuple[int, ...]:
        """See Workers. `kept`: the local ranks of workers that are left alone."""
        stops = [
            place.group.stop(grace_s, first_signal, ending)
            for local_rank, place in self._places.items()
            if local_rank not in kept
        ]
        return tuple(itertools.chain.from_iterable(await asyncio.gather(*stops)))

    def lengthen_stop(self, grace_s: float) -> None:
        """See Workers. It has no effect on those that are not being stopped."""
        for place in self._places.values():
            place.group.lengthen_stop(grace_s)

    def signal_leaders(self, number: int) -> None:
        """See Workers."""
        for place in self._places.values():
            place.group.signal_leaders(number)
