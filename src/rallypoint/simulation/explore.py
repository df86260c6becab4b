"""Breadth first through all states of a model, until there are no more or a limit is reached.

Found by this: a rule that is broken in some state, and a state that is stuck, from which no healthy
moves lead to a settled one. The path to it is printed, and it is as short as any.
"""

from __future__ import annotations

import hashlib
import pickle
import time
import zlib
from collections import deque

import msgspec

from rallypoint.simulation.model import Limits, ModelWorld, Move
from rallypoint.testing.violations import InvariantViolation


class Report(msgspec.Struct):
    """What was explored. `is_whole`: whether there is no state that was not looked at."""

    states: int = 0
    moves: int = 0
    depth: int = 0
    seconds: float = 0.0
    is_whole: bool = False
    violation: str = ""
    path: list[Move] = msgspec.field(default_factory=list)


def digest(world: ModelWorld) -> bytes:
    """A name for the state: equal states have equal names, whatever the hash seed."""
    return hashlib.blake2b(repr(world.key()).encode(), digest_size=16).digest()


def explore(limits: Limits, *, states_max: int = 100_000, checks_progress: bool = True) -> Report:
    """Look at every state, nearest first, but at no more than `states_max`."""
    began_s = time.perf_counter()
    report = Report()
    first = ModelWorld(limits)
    name = digest(first)
    parents: dict[bytes, tuple[bytes, Move] | None] = {name: None}
    healthy: dict[bytes, list[bytes]] = {}
    """From each state to those from which one healthy move leads to it."""
    settled: list[bytes] = []
    queue: deque[tuple[bytes, int, bytes]] = deque([(name, 0, _packed(first))])
    while queue and len(parents) < states_max:
        name, depth, packed = queue.popleft()
        report.depth = depth
        whole = zlib.decompress(packed)
        world: ModelWorld = pickle.loads(whole)  # noqa: S301 - our own bytes
        if world.is_settled:
            settled.append(name)
        for move in list(world.moves()):
            report.moves += 1
            after: ModelWorld = pickle.loads(whole)  # noqa: S301 - our own bytes
            try:
                after.make(move)
            except (InvariantViolation, AssertionError) as error:
                report.violation = f"{type(error).__name__}: {error}"
                report.path = [*path_to(parents, name), move]
                return _ended(report, parents, began_s)
            found = digest(after)
            if not move.is_fault:
                healthy.setdefault(found, []).append(name)
            if found not in parents:
                parents[found] = (name, move)
                queue.append((found, depth + 1, _packed(after)))
    report.is_whole = not queue
    if checks_progress:
        # What was not looked at may lead anywhere.
        _find_stuck(report, parents, healthy, [*settled, *(each[0] for each in queue)])
    return _ended(report, parents, began_s)


def _find_stuck(
    report: Report,
    parents: dict[bytes, tuple[bytes, Move] | None],
    healthy: dict[bytes, list[bytes]],
    good: list[bytes],
) -> None:
    """R7: from every state, healthy moves lead to a settled one."""
    fine = set(good)
    left = list(good)
    while left:
        for before in healthy.get(left.pop(), ()):
            if before not in fine:
                fine.add(before)
                left.append(before)
    for name in parents:  # in the order in which they were found: the nearest first
        if name not in fine:
            report.violation = "R7: stuck, no healthy moves lead to a settled state"
            report.path = path_to(parents, name)
            return


def path_to(parents: dict[bytes, tuple[bytes, Move] | None], name: bytes) -> list[Move]:
    """The moves from the first state to this one."""
    moves = []
    step = parents[name]
    while step is not None:
        name, move = step
        moves.append(move)
        step = parents[name]
    return moves[::-1]


def _packed(world: ModelWorld) -> bytes:
    return zlib.compress(pickle.dumps(world, -1), 1)


def _ended(
    report: Report, parents: dict[bytes, tuple[bytes, Move] | None], began_s: float
) -> Report:
    report.states = len(parents)
    report.seconds = time.perf_counter() - began_s
    return report
