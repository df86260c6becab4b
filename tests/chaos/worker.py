"""The counting worker, which also makes all other calls of its round's store, in a second thread.

    FAILOVER_LOG=file python worker.py [PAUSE_FILE [FAIL_FILE]]

The thread goes from stage to stage together with those of the other workers. In a stage it waits
for a key of another worker (`get`), for keys of all (`wait`) and at a barrier, swaps a value that
all swap at the same time (`compare_set`), writes and reads two keys at once, and deletes what
nobody needs any more. It writes down each call before it, and the answer after it; a call that
fails has none. store_calls.py judges them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

import rallypoint
from rallypoint.core import store as op
from tests.failover import counting_worker
from tests.failover.counting_worker import count, note

STAGE_S = 0.3
WAITS_S = 5.0
"""How long a call with a limit waits. The others must come within the stage, however long."""


class Calls:
    """The calls of one worker in one round."""

    def __init__(self, world: rallypoint.World) -> None:
        self._world = world
        self._made = 0

    def go_on(self, is_over: threading.Event) -> None:
        """Stage after stage, until the round is over."""
        with contextlib.suppress(rallypoint.RoundBrokenError, rallypoint.CoordinatorLostError):
            known = b""
            while not is_over.wait(STAGE_S):
                with contextlib.suppress(rallypoint.StoreTimeoutError):
                    known = self._stage(known)

    def _stage(self, known: bytes) -> bytes:
        rank, size = self._world.rank, self._world.size
        # A worker that did not hear that the last barrier was passed must not wait at it alone.
        stage = int(self._call(op.CompareSet("stage", b"", b"0")))
        said = [f"said{stage}/{each}" for each in range(size)]
        self._call(op.Set(said[rank], self._unique()))
        self._call(op.Get(said[(rank + 1) % size]))
        self._call(op.Wait(tuple(said)))
        known = self._call(op.CompareSet("shared", known, self._unique()))
        pair = ("pair/a", "pair/b")
        self._call(op.MultiSet(pair, (self._unique(),) * 2))
        self._call(op.MultiGet(pair))
        self._call(op.Barrier(f"meet{stage}", rank))
        self._call(op.CompareSet("stage", b"%d" % stage, b"%d" % (stage + 1)))
        if stage:
            self._call(op.DeleteKey(f"said{stage - 1}/{rank}"))
            self._call(op.Check((f"said{stage - 1}/{rank}",)))
        return known

    def _unique(self) -> bytes:
        return b"%d.%d" % (os.getpid(), self._made)

    def _call(self, operation: op.StoreOp) -> Any:
        self._made += 1
        call = {"round": self._world.number, "pid": os.getpid(), "call": self._made}
        note("called", **call, operation=msgspec.to_builtins(operation))
        result = self._do(operation)
        note("answered", **call, result=msgspec.to_builtins(result))
        return result

    def _do(self, operation: op.StoreOp) -> Any:
        store = self._world.store
        match operation:
            case op.Set(key=key, value=value):
                return store.set(key, value)
            case op.Get(key=key):
                return store.get(key)
            case op.CompareSet(key=key, expected=expected, desired=desired):
                return store.compare_set(key, expected, desired)
            case op.Wait(keys=keys):
                return store.wait(keys, WAITS_S)
            case op.Check(keys=keys):
                return store.check(keys)
            case op.MultiSet(keys=keys, values=values):
                return store.multi_set(keys, values)
            case op.MultiGet(keys=keys):
                return store.multi_get(keys)
            case op.DeleteKey(key=key):
                return store.delete_key(key)
            case op.Barrier(name=name):
                return self._world.barrier(name, WAITS_S)
        raise AssertionError(operation)


@contextlib.contextmanager
def calling(world: rallypoint.World) -> Iterator[None]:
    """Make calls meanwhile."""
    is_over = threading.Event()
    thread = threading.Thread(target=Calls(world).go_on, args=(is_over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        # R4: all calls end with the round. A worker that fails does not wait for the others.
        if world.change is not None:
            thread.join()


def count_and_call(world: rallypoint.World, pause: Path, fail: Path) -> None:
    with calling(world):
        count(world, pause, fail)


def main(pause: Path, fail: Path) -> None:
    counting_worker.main(pause, fail, count_and_call)


if __name__ == "__main__":
    paths = [*map(Path, sys.argv[1:]), *[Path("/nonexistent")] * 2]
    main(paths[0], paths[1])
