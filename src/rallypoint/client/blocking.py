"""The blocking native API: the asynchronous one, run in a thread of its own.

One thread of the process serves all runs. So a program needs no event loop, any thread may call,
and heartbeats go on while the program computes. They stop while other code holds the GIL. A node
whose program holds it for longer than `suspect_after_s` becomes suspect, and after `lost_after_s`
(30 s) it is lost. Under `rallypoint run` the agent is another process, so the program's GIL has no
effect.

After a fork only the parent has the thread. The child closes its copies of the connections, so that
peers still notice the parent's death. Using the run in the child is an error with the reason.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol, SupportsIndex, TypeVar

from rallypoint import errors
from rallypoint.client import world as aio
from rallypoint.client.border import bare
from rallypoint.client.join_plan import JoinPlan, open_client
from rallypoint.client.newest import Newest
from rallypoint.client.step_gate import Pass
from rallypoint.core.reasons import Waiting
from rallypoint.core.values import Change, CloseRecord, RoundMember

_T = TypeVar("_T")


class Runner(Protocol):
    """Runs a coroutine in Rallypoint's thread and waits for it, as Portal does."""

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The coroutine's result. Raises its error."""


class Portal:
    """The thread with the event loop, and the calls into it from other threads."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="rallypoint", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        while True:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                # From a callback of the program. asyncio ends its loop for these two errors, and
                # then nothing would answer in this process any more.
                text = "a callback in Rallypoint's thread cannot end the program"
                self._loop.call_exception_handler({"message": text, "exception": error})
            else:
                return

    @property
    def is_of_parent(self) -> bool:
        """Whether this process is a child made by fork() after the portal was started."""
        return os.getpid() != self._pid

    def run(self, work: Coroutine[Any, Any, _T], timeout_s: float | None = None) -> _T:
        """Run a coroutine in the loop, and wait for it for at most `timeout_s`.

        Ctrl-C and the end of that time cancel it, and do not wait until it has ended.

        Raises ForkedProcessError in a child made by fork(), UsageError in the loop's thread, and
        TimeoutError.
        """
        problem = self._problem()
        if problem is not None:
            work.close()
            raise problem
        future = self.start(work)
        try:
            return future.result(timeout_s)
        except errors.RallypointError as error:
            bare(error)
            raise
        except BaseException:
            future.cancel()
            raise

    def start(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Run a coroutine in the loop without waiting. Any thread of this process may call it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def post(self, callback: Callable[[], None]) -> None:
        """Call this in the loop, and do not wait. Raises ForkedProcessError."""
        self.check_is_here()
        self._loop.call_soon_threadsafe(callback)

    def check_is_here(self) -> None:
        """Raises ForkedProcessError in a child made by fork()."""
        if self.is_of_parent:
            problem = self._problem()
            assert problem is not None
            raise problem

    def _problem(self) -> errors.UsageError | None:
        if self.is_of_parent:
            return errors.ForkedProcessError(
                "this run was joined by the parent process; a child made by fork() cannot use it",
                hint="use it in the process that joined, and pass results to it",
            )
        if threading.current_thread() is self._thread:
            return errors.UsageError(
                "a callback runs in Rallypoint's thread, so it must not wait for Rallypoint",
                hint="set a flag or a threading.Event in on_change, and read it elsewhere",
            )
        return None


_portal: Portal | None = None
_portal_lock = threading.Lock()
_open_runs: list[Run] = []


def portal() -> Portal:
    """The portal of the process. The first call starts it."""
    global _portal
    with _portal_lock:
        if _portal is None:
            _portal = Portal()
        return _portal


def _in_forked_child() -> None:
    """Forget the parent's runs and portal, so that the child can join runs itself.

    A reference to the portal stays, so that its objects are not finalized here: see `fork_safety`.
    """
    global _portal, _portal_lock
    _kept_for_ever.append(_portal)
    _portal, _portal_lock = None, threading.Lock()
    _open_runs.clear()


_kept_for_ever: list[object] = []
os.register_at_fork(after_in_child=_in_forked_child)


def leave_open_runs() -> None:
    """Say goodbye for a program that ends without leaving, so that the others learn it at once."""
    error = _what_ended_the_program()
    for run in list(_open_runs):
        with contextlib.suppress(errors.RallypointError, TimeoutError, CancelledError):
            run.__exit__(type(error) if error else None, error, None)


def _what_ended_the_program() -> BaseException | None:
    """The uncaught exception, which the interpreter stores when it prints the traceback.

    None at an interactive prompt, where it would be that of an earlier command.
    """
    if hasattr(sys, "ps1") or sys.flags.interactive:
        return None
    return getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)


atexit.register(leave_open_runs)


class Store(aio.OfThisProcess):
    """The round's key-value store, with the semantics of torch.distributed.Store; blocking.

    Values are bytes; a str is stored as UTF-8. Calls wait for at most `timeout`. Any thread may
    call. Every call may raise StoreTimeoutError (which names the missing keys), StoreError,
    RoundBrokenError if the round has ended, or CoordinatorLostError.
    """

    def __init__(self, runner: Runner, store: aio.Store) -> None:
        self._run = runner.run
        self._store = store

    def __repr__(self) -> str:
        return repr(self._store)

    @property
    def timeout_s(self) -> float:
        """The longest time that a call waits, in seconds. Set it with `set_timeout`."""
        return self._store.timeout_s

    @property
    def timeout(self) -> timedelta:
        """The longest time that a call waits."""
        return self._store.timeout

    def set_timeout(self, timeout: timedelta | float) -> None:
        """Set how long calls wait at most: a timedelta, or seconds."""
        self._store.set_timeout(timeout)

    def set(self, key: str, value: bytes | str) -> None:
        """Store a value."""
        self._run(self._store.set(key, value))

    def get(self, key: str) -> bytes:
        """Wait until a key exists, and return its value."""
        return self._run(self._store.get(key))

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, and return its new value.

        It is applied once, even if a connection fails.
        """
        return self._run(self._store.add(key, amount))

    def compare_set(self, key: str, expected: bytes | str, desired: bytes | str) -> bytes:
        """Replace `expected` by `desired`, and return the key's value afterwards (see torch)."""
        return self._run(self._store.compare_set(key, expected, desired))

    def append(self, key: str, value: bytes | str) -> None:
        """Append to a value, or set it."""
        self._run(self._store.append(key, value))

    def wait(self, keys: Sequence[str], timeout: timedelta | float | None = None) -> None:
        """Wait until all keys exist."""
        self._run(self._store.wait(keys, timeout))

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all keys exist now."""
        return self._run(self._store.check(keys))

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Wait until all keys exist, and return their values."""
        return self._run(self._store.multi_get(keys))

    def multi_set(self, keys: Sequence[str], values: Sequence[bytes | str]) -> None:
        """Store several values at once."""
        self._run(self._store.multi_set(keys, values))

    def delete_key(self, key: str) -> bool:
        """Delete a key. Returns whether it existed."""
        return self._run(self._store.delete_key(key))

    def num_keys(self) -> int:
        """The number of keys."""
        return self._run(self._store.num_keys())


StoreForTorch = Callable[[Portal, aio.Store], Store | None]
"""Makes a Store that is a torch.distributed.Store as well; None if torch has none.

`rallypoint.join` passes it in, because this layer must not import torch.
"""


class World(aio.Facts):
    """A round from the view of one of its workers. Use it as `with world:`.

    If the confirmed end of the round explains an error in the block (a peer was lost, left, joined
    or failed first), the block suppresses the error. All other errors are raised, including
    mistakes of the program (ValueError, TypeError, KeyError, AssertionError and so on).
    """

    def __init__(self, portal: Portal, world: aio.World, for_torch: StoreForTorch) -> None:
        super().__init__(world._facts, world._steps)
        self._portal = portal
        self._world = world
        self._members: tuple[RoundMember, ...] | None = None
        self._plain = Store(portal, world.store)
        self._for_torch = for_torch
        self._torch: Store | None = None
        self._is_passing_on = False
        """Whether a step is on its way to Rallypoint's thread."""

    @property
    def store(self) -> Store:
        """The round's store. Every access returns a store with the same keys.

        If the process has imported `torch.distributed`, the store is a torch.distributed.Store as
        well, for `init_process_group(store=world.store, rank=world.rank, world_size=world.size)`.
        Rallypoint does not import torch for it. If torch is imported after the first access, later
        accesses return another object, with the timeout that the first one had at that time.
        """
        if self._torch is None and "torch.distributed" in sys.modules:
            self._torch = self._for_torch(self._portal, self._world.store)
        return self._plain if self._torch is None else self._torch

    @property
    def change(self) -> Change | None:
        """Why the round has ended; None while it is active. It is cheap: read it in every step."""
        return self._world.change

    @property
    def members(self) -> tuple[RoundMember, ...]:
        """All members of the round in node-rank order: name, host, addresses, labels, workers.

        They are fetched at the first access. Raises RoundBrokenError if the round is over by then.
        """
        if self._members is None:
            self._members = self._portal.run(self._world._members())
        return self._members

    def should_yield(self, step: SupportsIndex) -> bool:
        """Whether to stop at this step: save the state, and ask for the next world.

        Every worker of the world must call it at the same steps, with the same numbers from 0 on,
        before it begins the step. Then it is true for all of them at the same step, when a node is
        going to leave. It takes a microsecond; it waits only when a node is going to leave, until
        all agree. Rallypoint's thread agrees with the others, also while the program hangs in a
        collective.

        Raises UsageError for a step below that of an earlier call, RoundBrokenError if the world
        ends while it waits, and ForkedProcessError in a child made by fork().
        """
        self._portal.check_is_here()
        world, client = self._world, self._world._client
        passed = world._begin_step(step, lambda: self._portal.start(_do(world._take_part)))
        if passed is Pass.GO_ON:
            return False
        is_last = passed is Pass.STOP or self._portal.run(self._steps.is_last(step))
        if is_last:
            self._portal.run(_do(lambda: client.yielded(world.number)))
        return is_last

    def barrier(self, name: str, timeout: timedelta | float | None = None) -> None:
        """Wait until every worker of the round has called the barrier of this name.

        Raises StoreTimeoutError, which names the missing ranks.
        """
        self._portal.run(self._world.barrier(name, timeout))

    def newest(
        self, step: SupportsIndex | None, timeout: timedelta | float | None = None
    ) -> Newest:
        """Who has the newest state: a worker that went on can give it to newcomers.

            newest = world.newest(model.step)  # None: this worker has no state yet
            if newest.step is not None and world.rank not in newest.ranks:
                ...  # take the state of newest.step from rank newest.ranks[0]

        Every worker of the world must call it, equally often, with the step that its own state is
        of: a whole number from 0 on, or None (or -1) if it has none. All get the same answer. It
        waits for all of them, for at most `timeout`, by default that of the store.

        Raises StoreTimeoutError, which names who has not called it, RoundBrokenError if
        the world ends meanwhile, and UsageError for a step that is none.
        """
        return self._portal.run(self._world.newest(step, timeout))

    def progress(self, step: int) -> None:
        """This worker has come to `step`, a whole number that grows within the world.

        If no worker of the world advances for `hang_timeout_s`, the world ends as a hang, with the
        stacks of all workers as its cause (docs/hangs.md). The call does not wait; call it in every
        step. A step that is not above the last one is no progress; one below it is logged, once.

        Any thread may call it. Raises UsageError if `step` is no whole number, and
        ForkedProcessError in a child made by fork().
        """
        if self._is_progress(step) and not self._is_passing_on:
            self._is_passing_on = True
            self._portal.post(self._pass_step_on)

    def _pass_step_on(self) -> None:
        """Pass on the newest step, in Rallypoint's thread."""
        self._is_passing_on = False
        assert self._step is not None
        self._world._client.progress(self.number, self._step)

    def on_change(self, callback: Callable[[Change], None]) -> None:
        """Call back once when the round ends, or at once if it has ended.

        The callback runs in Rallypoint's thread. It must be short and must not call Rallypoint.
        """
        self._portal.run(_call(self._world.on_change, callback))

    def __enter__(self) -> World:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception) or self._portal.is_of_parent:
            return False
        return self._portal.run(self._world.__aexit__(kind, error, trace))


class Run(aio.OfThisProcess):
    """A run from the view of one of its programs. Use it as `with rallypoint.join(...) as run:`."""

    _instead = aio.Run._instead

    def __init__(
        self,
        portal: Portal,
        run: aio.Run,
        for_torch: StoreForTorch = lambda portal, store: None,
    ) -> None:
        self._portal = portal
        self._run = run
        self._for_torch = for_torch
        self._last: World | None = None
        _open_runs.append(self)

    def __repr__(self) -> str:
        return repr(self._run)

    @property
    def run_id(self) -> str:
        """The run's name."""
        return self._run.run_id

    @property
    def node(self) -> str:
        """This node's name in the run."""
        return self._run.node

    @property
    def closed(self) -> CloseRecord | None:
        """How the run ended; None while it is open."""
        return self._run.closed

    @property
    def world(self) -> World | None:
        """The last world."""
        return self._last

    def worlds(self) -> Iterator[World]:
        """Iterate over the worlds: a new one each time the members change.

        The iteration ends when the run closes, or when this node has left it, or is going to leave
        it because its agent got a signal.

        Each step of the iteration leaves the present world, which ends that world for all its
        members. Raises JoinTimeoutError, RefusedError, CoordinatorLostError.
        """
        while (world := self._portal.run(self._run._next_or_none())) is not None:
            yield self._given(world)

    def next_world(self) -> World | None:
        """Wait for the next World. Returns None if the run is closed.

        It returns None as well in a worker of `rallypoint run` whose node is going to leave.

        Raises UsageError if this node has left the run, and the errors of `worlds`.
        """
        world = self._portal.run(self._run.next_world())
        return self._given(world) if world is not None else None

    def _given(self, world: aio.World) -> World:
        """The blocking twin of a world of this run."""
        self._last = World(self._portal, world, self._for_torch)
        return self._last

    @property
    def waiting(self) -> Waiting | None:
        """Ask the coordinator why there is no round yet, as data; None if there is a round."""
        return self._portal.run(self._run._client.waiting())

    def leave(self, reason: str = "the program left the run") -> None:
        """Take this node out of the run. The others regroup at once."""
        self._portal.run(self._run.leave(reason))

    def close(self, reason: str, *, failed: bool = False) -> CloseRecord:
        """End the run for all. Returns how it ended, also if it was closed before."""
        return self._portal.run(self._run.close(reason, failed=failed))

    def aclose(self) -> None:
        """Leave the run, if this node is in it, and close everything. Idempotent."""
        if self in _open_runs:
            _open_runs.remove(self)
            self._portal.run(self._run.aclose())

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Not in a child made by fork(), because the run belongs to its parent.
        if self in _open_runs:
            _open_runs.remove(self)
            self._portal.run(self._run.__aexit__(kind, error, trace))


def forget(run: Run) -> None:
    """Do not say goodbye for this run at the end of the program: its node has ended."""
    if run in _open_runs:
        _open_runs.remove(run)


def join(planned: JoinPlan, for_torch: StoreForTorch = lambda portal, store: None) -> Run:
    """Join by this plan. Raises CoordinatorError."""
    door = portal()
    client = door.run(open_client(planned))
    return Run(door, aio.Run(client, planned.join_timeout_s), for_torch)


async def _do(action: Callable[[], None]) -> None:
    action()


async def _call(function: Callable[[Callable[[Change], None]], None], argument: Any) -> None:
    function(argument)
