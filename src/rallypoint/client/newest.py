"""Which workers of a world have the newest state: `world.newest(step)`.

Each worker stores its step, and all wait for each other in a barrier. Then rank 0 reads the steps
and stores the result, which the others read: four calls of each worker, whatever their number.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, SupportsIndex, cast

import msgspec

from rallypoint import errors
from rallypoint.core.store import Barrier, Get, MultiGet, Set, StoreOp

PREFIX: Final = "rallypoint/newest"
"""How the keys in the world's store begin."""
_HAS_NONE: Final = -1


class Newest(msgspec.Struct, frozen=True):
    """The newest state of a world.

    `step`: the highest step of all workers; None: none of them has a state. `ranks`: who has it, in
    order; at least one if there is a step.
    """

    step: int | None
    ranks: tuple[int, ...]


Call = Callable[[StoreOp, float], Coroutine[Any, Any, object]]
"""A call of the world's store, which waits for at most so many seconds. See Store for the errors.
"""


def checked(step: SupportsIndex | None) -> int | None:
    """The step as a number; None for a worker without a state. Raises UsageError."""
    if step is None:
        return None
    try:
        if not isinstance(step, bool):
            number = operator.index(step)
            if number >= _HAS_NONE:
                return None if number == _HAS_NONE else number
    except TypeError:
        pass
    raise errors.UsageError(
        f"newest({step!r}): a step is a whole number from 0 on",
        hint="pass the step that this worker's state is of; None (or -1) if it has no state",
    )


async def newest(
    step: int | None, rank: int, size: int, use: int, call: Call, timeout_s: float
) -> Newest:
    """See World.newest. `use`: how often the world has done this before; the same for all."""
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + timeout_s

    def left_s() -> float:
        return max(0.0, ends_s - loop.time())

    name = f"{PREFIX}/{use}"
    own = str(_HAS_NONE if step is None else step)
    await call(Set(f"{name}/{rank}", own.encode()), left_s())
    await call(Barrier(name, rank), left_s())
    if rank != 0:
        return msgspec.json.decode(cast(bytes, await call(Get(name), left_s())), type=Newest)
    steps = await call(MultiGet(tuple(f"{name}/{each}" for each in range(size))), left_s())
    found = _of(map(int, cast("tuple[bytes, ...]", steps)))
    await call(Set(name, msgspec.json.encode(found)), left_s())
    return found


def _of(steps: Iterable[int]) -> Newest:
    told = list(steps)
    best = max(told)
    if best == _HAS_NONE:
        return Newest(None, ())
    return Newest(best, tuple(rank for rank, step in enumerate(told) if step == best))
