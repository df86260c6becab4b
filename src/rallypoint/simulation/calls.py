"""Which calls of its round's store a node makes: see `programs` and `agents`.

Most jobs have a few keys of one kind each, so that a history stays short to check. A job that is
about its store (`Plan.is_store`) has more: several keys at once, values of many sizes, waits that
are longer than an outage, and nodes that only read.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from rallypoint.client.node import Node
from rallypoint.core.store import (
    Add,
    Append,
    Barrier,
    Check,
    CompareSet,
    DeleteKey,
    Get,
    MultiGet,
    MultiSet,
    Set,
    StoreOp,
    StoreValue,
    Wait,
)
from rallypoint.simulation.scene import Oracle, Scene, StartedNode, Token

Drawn = tuple[StoreOp, float | None]
"""A call, and its limit in seconds."""
TOGETHER: Final = ("m/x", "m/y", "m/z")
"""Keys that are written and awaited together. Their history is one."""
LATE: Final = ("late/a", "late/b")
"""Keys that are seldom there: calls wait for them for long."""
NEVER: Final = ("never",)
"""Nobody sets it: a call that waits for it ends by its own time."""
READS_S: Final = 8.0
"""For how long a node only reads, or does not."""
MEETINGS: Final = 0.04
"""In which part of all seeds nodes often meet at a barrier."""
VARIED: Final = 0.3
"""In which part of all seeds the calls are varied: see `_varied`."""
SIZES: Final = (0, 0, 200, 1_500)
"""How much longer than usual a value is, in bytes."""


def drawn(scene: Scene, here: StartedNode, node: Node) -> Drawn:
    """A call of the round's store. No value is written twice."""
    value = b"%d" % next(scene.serial)
    if not scene.plan.is_store:
        call = _usual(here, node, value)
    elif is_reader(here):
        call = _read(here.process.random)
    else:
        call = _of_a_store(here, node, value)
    return _meeting(here, node, value) or _varied(here, value, call)


async def make(scene: Scene, here: StartedNode, node: Node, token: Token, call: Drawn) -> None:
    """Call the store, and tell the scene the call and its answer."""
    operation, limit_s = call
    number = next(scene.serial)
    scene.tell(Oracle.called, here, token, number, operation, limit_s)
    try:
        result = await node.call(operation, limit_s)
    except asyncio.CancelledError:
        scene.tell(Oracle.withdrawn, here, number)
        raise
    scene.tell(Oracle.answered, here, token, number, result)
    if isinstance(result, StoreValue):
        here.answered_s = scene.world.now_s
        if isinstance(operation, Get | CompareSet) and isinstance(result.value, bytes):
            here.seen[operation.key] = result.value


def _meeting(here: StartedNode, node: Node, value: bytes) -> Drawn | None:
    """In a few seeds all nodes often come to one barrier, again and again; else None."""
    world, given = here.process.world, node.round
    if random.Random(f"{world.seed}/meetings").random() >= MEETINGS or given is None:
        return None
    if given.seat.workers > 1 or random.Random(f"{world.seed}/{value!r}/meets").random() > 0.3:
        return None
    return Barrier(f"all {world.now_s // 8.0:.0f}", given.seat.first_rank), 6.0


def _varied(here: StartedNode, value: bytes, call: Drawn) -> Drawn:
    """In some seeds: a compare_set that expects what its node has seen last, and other sums."""
    seed, (operation, limit_s) = here.process.world.seed, call
    if random.Random(f"{seed}/varied").random() >= VARIED:
        return call
    draw = random.Random(f"{seed}/{value!r}/varied")
    match operation:
        case CompareSet(key, _, desired) if draw.random() < 0.7:
            return CompareSet(key, here.seen.get(key, b"never"), desired), limit_s
        case Set(key, desired) if key in here.seen and draw.random() < 0.5:
            return CompareSet(key, here.seen[key], desired), limit_s
        case Add(key, _):
            return Add(key, draw.choice((1, 2, 7, -1, 0))), limit_s
    return call


def is_reader(here: StartedNode) -> bool:
    """Whether this node of a job with `is_store` only reads for now.

    A coordinator whose nodes only read needs no ledger for its answers: only its lease tells it
    that another one may have taken writes.
    """
    world = here.process.world
    part = random.Random(f"{world.seed}/reads").choice((0.4, 0.8))
    at = f"{world.seed}/{here.name}/{world.now_s // READS_S:.0f}/reads"
    return random.Random(at).random() < part


def drawn_wait(draw: random.Random) -> Drawn:
    """A call that mostly waits until its time is over, or its round is."""
    keys = draw.choice((LATE[:1], LATE[1:], LATE))
    operation: StoreOp = Wait(keys) if draw.random() < 0.5 else MultiGet(keys)
    return operation, draw.choice((3.0, 8.0, 15.0, 30.0, None))


def vain_wait(draw: random.Random) -> Drawn:
    """A call that waits until its time is over, or its round is."""
    return draw.choice((Wait(NEVER), MultiGet(NEVER), Get(*NEVER))), draw.uniform(3.0, 10.0)


def _usual(here: StartedNode, node: Node, value: bytes) -> Drawn:
    now_s = here.process.world.now_s
    draw, key = here.process.random, here.process.random.choice(("a", "b"))
    limit_s = draw.choice((None, 2.0, 30.0))
    match draw.randrange(20):
        case 0 | 1:
            return Get(key), 2.0  # It waits for a key that may never be set.
        # Nodes set and await keys of the same names at about the same time.
        case 2 | 3:
            return Get(f"at {now_s // 2:.0f}"), 3.0
        case 4 | 5:
            return Set(f"at {now_s // 2:.0f}", value), None
        case 6 if (given := node.round) is not None:
            return Barrier(f"barrier-{draw.randrange(3)}", given.seat.first_rank), 5.0
        case 7:
            return Append(f"list-{key}", value + b","), limit_s
        case 8:
            return DeleteKey(key), limit_s
        case 9 | 10 | 11:
            return CompareSet(key, b"", value), limit_s
        case 12 | 13 | 14:
            return Set(key, value), limit_s
        case _:
            return Add("n" + key, 1), limit_s


def _read(draw: random.Random) -> Drawn:
    some = tuple(draw.sample(TOGETHER, draw.choice((1, 2))))
    match draw.randrange(8):
        case 0:
            return Check(some), 2.0
        case 1:
            return MultiGet(some), 0.3
        case _:
            return Get(draw.choice(("a", "b", "na"))), 0.3


def _of_a_store(here: StartedNode, node: Node, value: bytes) -> Drawn:
    draw = here.process.random
    key, limit_s = draw.choice(("a", "b")), draw.choice((None, 2.0, 30.0))
    waits_s = draw.choice((0.3, 0.3, 2.0))
    long = value + b"." * draw.choice(SIZES)
    write = draw.choice(_WRITES)
    match draw.randrange(12):
        case 0 | 1:
            return _read(draw)
        case 2 if (given := node.round) is not None:
            return Barrier(f"barrier-{draw.randrange(2)}", given.seat.first_rank), 5.0
        case 3:
            return Wait(tuple(draw.sample(TOGETHER, 2))), waits_s
        case 4:
            return MultiGet(tuple(draw.sample(TOGETHER, 2))), waits_s
        case 5:
            return DeleteKey(draw.choice((key, *TOGETHER, *LATE))), limit_s
        case _:
            return write(draw, key, long), limit_s


_WRITES: Final[tuple[Callable[[random.Random, str, bytes], StoreOp], ...]] = (
    lambda draw, key, value: Set(key, value),
    lambda draw, key, value: Set(key, value),
    lambda draw, key, value: Add("n" + key, 1),
    lambda draw, key, value: Append(f"list-{key}", value + b","),
    lambda draw, key, value: CompareSet(key, b"", value),
    lambda draw, key, value: Set(draw.choice(TOGETHER), value),
    lambda draw, key, value: Set(draw.choice(TOGETHER), value),
    lambda draw, key, value: MultiSet(tuple(draw.sample(TOGETHER, 2)), (value, value + b"+")),
    lambda draw, key, value: Set(draw.choice(LATE), value),
)
