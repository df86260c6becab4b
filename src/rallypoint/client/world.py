"""The asynchronous native API: Run, World and Store for programs with an event loop.

`rallypoint.aio` exports these; `rallypoint` has the same with blocking calls (`client/blocking`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from types import TracebackType
from typing import Any, BinaryIO, Final, Generic, NoReturn, SupportsIndex, TypeVar, cast

from rallypoint import errors
from rallypoint.client.border import BORDER
from rallypoint.client.fencing import Fence, FencingToken, Writer
from rallypoint.client.newest import Newest, checked, newest
from rallypoint.client.run_client import RunClient, WorldFacts
from rallypoint.client.step_gate import Pass
from rallypoint.client.steps import Steps, WorldDrain
from rallypoint.client.store_calls import COORDINATOR_LOST, StoreCalls, round_ended, store_error
from rallypoint.core import store as ops
from rallypoint.core.reasons import Waiting
from rallypoint.core.values import (
    Address,
    Change,
    ChangeKind,
    CloseRecord,
    Drain,
    Outcome,
    RoundMember,
)

STORE_TIMEOUT_S: Final = 300.0
"""How long a call of the store waits by default, in seconds, as in torch."""

_T = TypeVar("_T")
_log = logging.getLogger("rallypoint.client")


class OfThisProcess:
    """The base of objects that use this process's connection, and mean nothing in another one."""

    _instead = "call rallypoint.join in the other process"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        name = type(self).__name__
        raise TypeError(
            f"a {name} cannot be pickled or copied, because it uses this process's connection to "
            f"the coordinator: {self._instead}"
        )


class Answer(Generic[_T]):
    """The answer of the coordinator: `await` it. Each await asks anew."""

    def __init__(self, name: str, ask: Callable[[], Coroutine[Any, Any, _T]]) -> None:
        self._name, self._ask = name, ask

    def __await__(self) -> Generator[Any, Any, _T]:
        return self._ask().__await__()

    def __call__(self) -> Coroutine[Any, Any, _T]:
        """The former way. Deprecated: the name is a property, as in the blocking API."""
        text = f"{self._name} is a property now: write `await ...{self._name}`, without parentheses"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return self._ask()

    def __repr__(self) -> str:
        return f"<{self._name}: not awaited>"


class Facts(OfThisProcess):
    """The properties of both kinds of World that need no call to the coordinator."""

    _instead = (
        "pass what the other process needs, such as world.rank, world.size and world.bootstrap, or "
        "call rallypoint.join there"
    )

    def __init__(self, facts: WorldFacts, steps: Steps | None = None) -> None:
        self._facts = facts
        self._steps = Steps(facts.head.number) if steps is None else steps
        self._change: Change | None = None
        self._step: int | None = None
        self._went_back = False
        self._newest_uses = 0

    @property
    def rank(self) -> int:
        """This worker's rank in the round: 0 ... size - 1."""
        return self._facts.rank

    @property
    def size(self) -> int:
        """The number of workers of the round (torch: world size)."""
        return self._facts.head.size

    @property
    def local_rank(self) -> int:
        """This worker's rank on its node."""
        return self._facts.local_rank

    @property
    def local_size(self) -> int:
        """The number of workers of this worker's node."""
        return self._facts.seat.workers

    @property
    def node_rank(self) -> int:
        """The rank of this worker's node: 0 ... nodes - 1 (torch: group rank)."""
        return self._facts.seat.node_rank

    @property
    def nodes(self) -> int:
        """The number of nodes of the round."""
        return self._facts.head.nodes

    @property
    def node(self) -> str:
        """The name of this worker's node."""
        return self._facts.node

    @property
    def number(self) -> int:
        """The round's number. (term, number) grows with each round: it is a fencing token (R13)."""
        return self._facts.head.number

    @property
    def term(self) -> int:
        """The term of the coordinator that formed the round."""
        return self._facts.head.term

    @property
    def drain(self) -> WorldDrain | None:
        """Which nodes are going to leave this world, why, and when; None if none is.

        The world goes on until then. It is cheap: read it in every step.
        """
        return self._steps.drain

    @property
    def token(self) -> FencingToken:
        """(term, number) of this round. It grows with each round of the run (R13)."""
        return FencingToken(self.term, self.number)

    def fenced(self, path: str | os.PathLike[str]) -> AbstractContextManager[BinaryIO]:
        """Write a file that no earlier round may write over: a checkpoint.

            with world.fenced("model.pt") as file:
                torch.save(state, file)

        The block gets a new file, open for writing bytes, in the folder "<path>.fence"; its `name`
        is a path for libraries that need one. When the block ends, the file is forced to the disk
        and gets its name in one step. After an error in the block, the old file stays. The calls
        block; any thread may make them.

        Raises FencedError if a later round of the run, or another run, has claimed or written the
        file; then it is unchanged. Raises OSError.
        """
        return self._fence(path).writing()

    def claim(self, path: str | os.PathLike[str]) -> None:
        """Claim a file before you read it: no earlier round can write it from now on.

        Raises FencedError and OSError, as `fenced`. The call blocks; any thread may make it.
        """
        self._fence(path).claim()

    def _fence(self, path: str | os.PathLike[str]) -> Fence:
        facts = self._facts
        return Fence(path, Writer(self.token, facts.run_id, facts.ledger_id, facts.node))

    @property
    def restart_count(self) -> int:
        """How many rounds have been charged to the run's restart budget."""
        return self._facts.head.restart_count

    @property
    def bootstrap(self) -> Address:
        """Where rank 0's node holds a port for a library that needs one (torch: MASTER_ADDR)."""
        return self._facts.head.bootstrap

    @property
    def change(self) -> Change | None:
        """Why the round has ended; None while it is active. It is cheap: read it in every step."""
        return self._change

    def _is_progress(self, step: Any) -> bool:
        """Whether this step is above all before it. Warns once of one that is below the last."""
        if not isinstance(step, int) or isinstance(step, bool):
            raise errors.UsageError(
                f"a step is a whole number, not {step!r}", hint="count the steps of your training"
            )
        last = self._step
        if last is None or step > last:
            self._step = step
            return True
        if step < last and not self._went_back:
            self._went_back = True
            text = "rank %d: step %d after step %d is no progress: a step must grow within a world"
            _log.warning(text, self.rank, step, last)
        return False

    def __repr__(self) -> str:
        state = "ended" if self._change else "on"
        return (
            f"<World round {self.number} ({state}): rank {self.rank} of {self.size}, "
            f"node {self.node_rank} of {self.nodes}>"
        )


class Store(OfThisProcess):
    """The round's key-value store, with the semantics of torch.distributed.Store.

    Values are bytes; a str is stored as UTF-8. Calls wait for at most `timeout`.

    Every call may raise StoreTimeoutError (which names the missing keys), StoreError,
    RoundBrokenError if the round has ended, or CoordinatorLostError.
    """

    def __init__(
        self,
        calls: StoreCalls,
        error_of: Callable[[ops.StoreFailure], Exception] = store_error,
    ) -> None:
        self._calls = calls
        self._error_of = error_of
        self._timeout_s = STORE_TIMEOUT_S

    def __repr__(self) -> str:
        return f"<Store: calls wait for at most {self._timeout_s:g} s>"

    @property
    def timeout(self) -> timedelta:
        """The longest time that a call waits."""
        return timedelta(seconds=self._timeout_s)

    @property
    def timeout_s(self) -> float:
        """The same in seconds. Set it with `set_timeout`."""
        return self._timeout_s

    @timeout_s.setter
    def timeout_s(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def set_timeout(self, timeout: timedelta | float) -> None:
        """Set how long calls wait at most: a timedelta, or seconds."""
        self._timeout_s = seconds(timeout)

    async def set(self, key: str, value: bytes | str) -> None:
        """Store a value."""
        await self._call(ops.Set(key, as_bytes(value)))

    async def get(self, key: str) -> bytes:
        """Wait until a key exists, and return its value."""
        return cast(bytes, await self._call(ops.Get(key)))

    async def add(self, key: str, amount: int) -> int:
        """Add to a counter, and return its new value.

        It is applied once, even if a connection fails.
        """
        return cast(int, await self._call(ops.Add(key, amount)))

    async def compare_set(self, key: str, expected: bytes | str, desired: bytes | str) -> bytes:
        """Replace `expected` by `desired`, and return the key's value afterwards (see torch)."""
        op = ops.CompareSet(key, as_bytes(expected), as_bytes(desired))
        return cast(bytes, await self._call(op))

    async def append(self, key: str, value: bytes | str) -> None:
        """Append to a value, or set it."""
        await self._call(ops.Append(key, as_bytes(value)))

    async def wait(self, keys: Sequence[str], timeout: timedelta | float | None = None) -> None:
        """Wait until all keys exist."""
        await self._call(ops.Wait(tuple(keys)), timeout)

    async def check(self, keys: Sequence[str]) -> bool:
        """Whether all keys exist now."""
        return cast(bool, await self._call(ops.Check(tuple(keys))))

    async def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Wait until all keys exist, and return their values."""
        return list(cast("tuple[bytes, ...]", await self._call(ops.MultiGet(tuple(keys)))))

    async def multi_set(self, keys: Sequence[str], values: Sequence[bytes | str]) -> None:
        """Store several values at once."""
        if len(keys) != len(values):
            raise errors.UsageError(f"{len(keys)} keys for {len(values)} values")
        await self._call(ops.MultiSet(tuple(keys), tuple(map(as_bytes, values))))

    async def delete_key(self, key: str) -> bool:
        """Delete a key. Returns whether it existed."""
        return cast(bool, await self._call(ops.DeleteKey(key)))

    async def num_keys(self) -> int:
        """The number of keys."""
        return cast(int, await self._call(ops.NumKeys()))

    async def _execute(self, op: ops.StoreOp, timeout_s: float) -> object:
        """Execute one operation, which may wait for `timeout_s`, and return its value.

        Raises the errors of the operation's own method.
        """
        with BORDER:
            result = await self._calls.call(op, timeout_s)
            if isinstance(result, ops.StoreFailure):
                raise self._error_of(result)
            return result.value

    def _call(
        self, op: ops.StoreOp, timeout: timedelta | float | None = None
    ) -> Coroutine[Any, Any, object]:
        return self._execute(op, self._timeout_s if timeout is None else seconds(timeout))


class World(Facts):
    """A round from the view of one of its workers. Use it as `async with world:`.

    If the confirmed end of the round explains an error in the block (a peer was lost, left, joined
    or failed first), the block suppresses the error. All other errors are raised, including
    mistakes of the program (ValueError, TypeError, KeyError, AssertionError and so on).
    """

    def __init__(self, client: RunClient, facts: WorldFacts) -> None:
        super().__init__(facts)
        self._client = client
        self._callbacks: list[Callable[[Change], None]] = []
        self._store = Store(_RoundCalls(client, self), self._error_of)

    @property
    def store(self) -> Store:
        """The round's store."""
        return self._store

    def _error_of(self, failure: ops.StoreFailure) -> Exception:
        if failure.code == ops.ROUND_ENDED:
            # The answer of a worker's agent may arrive before the agent's message of how the round
            # ended.
            unknown = Change(ChangeKind.NODE_LOST, self.number, detail=failure.message)
            return errors.RoundBrokenError(self._change or unknown)
        if failure.code == COORDINATOR_LOST and self._client.gone is not None:
            return self._client.gone
        return store_error(failure)

    def _ended(self, change: Change) -> None:
        """The round has ended, or the cause became known."""
        is_first = self._change is None
        self._change = change
        self._steps.ended(change)
        if is_first:
            for callback in self._callbacks:
                self._call_back(callback, change)

    def on_change(self, callback: Callable[[Change], None]) -> None:
        """Call back once from the event loop when the round ends, or at once if it has ended.

        An exception of the callback goes to the loop's exception handler.
        """
        if self._change is not None:
            self._call_back(callback, self._change)
        else:
            self._callbacks.append(callback)

    def _call_back(self, callback: Callable[[Change], None], change: Change) -> None:
        asyncio.get_running_loop().call_soon(callback, change)

    @property
    def members(self) -> Answer[tuple[RoundMember, ...]]:
        """All members of the round in node-rank order: name, host, addresses, labels, workers.

        Use it as `await world.members`. Raises RoundBrokenError if the round is over by then.
        """
        return Answer("members", self._members)

    async def _members(self) -> tuple[RoundMember, ...]:
        if self._change is None:
            members = await self._client.members()
        # The client may be in a later round by now.
        if self._change is not None:
            raise errors.RoundBrokenError(self._change)
        return members

    async def should_yield(self, step: SupportsIndex) -> bool:
        """Whether to stop at this step: save the state, and ask for the next world.

        Every worker of the world must call it at the same steps, with the same numbers from 0 on,
        before it begins the step. Then it is true for all of them at the same step, when a node is
        going to leave. It waits only then, until all agree. The event loop must go on meanwhile:
        run collectives in another thread (`asyncio.to_thread`).

        Raises UsageError for a step below that of an earlier call, and RoundBrokenError if the
        world ends while it waits.
        """
        passed = self._begin_step(step, self._take_part)
        is_last = await self._steps.is_last(step) if passed is Pass.WAIT else passed is Pass.STOP
        if is_last:
            self._client.yielded(self.number)
        return is_last

    def _begin_step(self, step: SupportsIndex, takes_part: Callable[[], object]) -> Pass:
        is_first = not self._steps.gate.is_used
        passed = self._steps.gate.enter(step)
        if is_first:
            takes_part()
        return passed

    def _take_part(self) -> None:
        """The program has asked for the first time in this world."""
        # R4: what is said of a world that has ended does not count in the next one.
        if self._change is not None:
            return
        self._client.takes_part()
        # R14: a process that joins again in a round may have been asked before.
        if self._steps.is_asked:
            self._promise()

    def _drain_told(self, drain: Drain) -> None:
        self._steps.told(drain)
        if drain.is_asked:
            self._promise()

    def _promise(self) -> None:
        step = self._steps.gate.promise()
        # One that has passed no step promises when it takes part.
        if step is not None:
            self._client.promise(step)

    def _step_decided(self, step: int) -> None:
        self._steps.decided(step)

    async def barrier(self, name: str, timeout: timedelta | float | None = None) -> None:
        """Wait until every worker of the round has called the barrier of this name.

        Raises StoreTimeoutError, which names the missing ranks.
        """
        await self._store._call(ops.Barrier(name, self.rank), timeout)

    async def newest(
        self, step: SupportsIndex | None, timeout: timedelta | float | None = None
    ) -> Newest:
        """Who has the newest state: a worker that went on can give it to newcomers.

            newest = await world.newest(model.step)  # None: this worker has no state yet
            if newest.step is not None and world.rank not in newest.ranks:
                ...  # take the state of newest.step from rank newest.ranks[0]

        Every worker of the world must call it, equally often, with the step that its own state is
        of: a whole number from 0 on, or None (or -1) if it has none. All get the same answer. It
        waits for all of them, for at most `timeout`, by default that of the store.

        Raises StoreTimeoutError, which names who has not called it, RoundBrokenError if
        the world ends meanwhile, and UsageError for a step that is none.
        """
        number, use = checked(step), self._newest_uses
        limit_s = self._store.timeout_s if timeout is None else seconds(timeout)
        self._newest_uses += 1
        return await newest(number, self.rank, self.size, use, self._store._call, limit_s)

    def progress(self, step: int) -> None:
        """This worker has come to `step`, a whole number that grows within the world.

        If no worker of the world advances for `hang_timeout_s`, the world ends as a hang, with the
        stacks of all workers as its cause (docs/hangs.md). The call does not wait; call it in every
        step. A step that is not above the last one is no progress; one below it is logged, once.

        Raises UsageError if `step` is no whole number.
        """
        if self._is_progress(step):
            self._client.progress(self.number, step)

    async def __aenter__(self) -> World:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        return await self._client.is_explained(error, self.number)


class _RoundCalls:
    """The store calls of one World. None of them reaches the store of a later round (R4)."""

    def __init__(self, client: RunClient, world: World) -> None:
        self._client = client
        self._world = world

    async def call(self, op: ops.StoreOp, timeout_s: float | None) -> ops.StoreResult:
        ended = self._world._change
        return await self._client.call(op, timeout_s) if ended is None else round_ended(ended)


class Run(OfThisProcess):
    """A run from the view of a program. Use it as `async with await join(...) as run:`."""

    _instead = "pass the run's id and the endpoint, and call rallypoint.join in the other process"

    def __init__(self, client: RunClient, join_timeout_s: float | None = None) -> None:
        self._client = client
        self._join_timeout_s = join_timeout_s
        self._world: World | None = None
        client.on_ended = self._on_ended
        client.on_drain = self._on_drain
        client.on_step = self._on_step

    def __repr__(self) -> str:
        state = "open" if self.closed is None else self.closed.outcome
        return f"<Run {self.run_id!r} ({state}): node {self.node}>"

    @property
    def run_id(self) -> str:
        """The run's name."""
        return self._client.run_id

    @property
    def node(self) -> str:
        """This node's name in the run."""
        return self._client.node_name

    @property
    def closed(self) -> CloseRecord | None:
        """How the run ended; None while it is open."""
        return self._client.closed

    @property
    def world(self) -> World | None:
        """The last world."""
        return self._world

    async def worlds(self) -> AsyncIterator[World]:
        """Iterate over the worlds: a new one each time the members change.

        The iteration ends when the run closes, or when this node has left it, or is going to leave
        it because its agent got a signal.

        Each step of the iteration leaves the present world, which ends that world for all its
        members. Raises JoinTimeoutError, RefusedError, CoordinatorLostError.
        """
        while True:
            with BORDER:
                world = await self._next_or_none()
            if world is None:
                return
            yield world

    async def _next_or_none(self) -> World | None:
        """The next World; None if the run is closed or this node has left it. For `worlds`."""
        try:
            return await self.next_world()
        except errors.UsageError:
            if self._client.has_left:
                return None
            raise

    async def next_world(self) -> World | None:
        """Wait for the next World. Returns None if the run is closed.

        It returns None as well in a worker of `rallypoint run` whose node is going to leave.

        Raises UsageError if this node has left the run, and the errors of `worlds`.
        """
        with BORDER:
            facts = await self._client.next_world(self._join_timeout_s)
        if facts is None:
            return None
        if self._world is not None and self._world._facts.head == facts.head:
            return self._world  # Another thread asked at the same time.
        self._world = World(self._client, facts)
        if self._client.drain is not None:
            self._on_drain(self._client.drain)
        if self._client.step is not None:
            self._on_step(self._client.step)
        change = self._client.change
        if change is not None:  # The round ended before its World was made.
            self._on_ended(change)
        return self._world

    def _on_drain(self, drain: Drain) -> None:
        if self._world is not None and self._world.change is None:
            self._world._drain_told(drain)

    def _on_step(self, step: int) -> None:
        if self._world is not None and self._world.change is None:
            self._world._step_decided(step)

    def _on_ended(self, change: Change) -> None:
        if self._world is not None and self._world.number == change.round:
            self._world._ended(change)

    @property
    def waiting(self) -> Answer[Waiting | None]:
        """Ask the coordinator why there is no round yet, as data; None if there is a round.

        Use it as `await run.waiting`.
        """
        return Answer("waiting", self._client.waiting)

    async def leave(self, reason: str = "the program left the run") -> None:
        """Take this node out of the run. The others regroup at once."""
        with BORDER:
            await self._client.leave(reason)

    async def close(self, reason: str, *, failed: bool = False) -> CloseRecord:
        """End the run for all. Returns how it ended, also if it was closed before."""
        outcome = Outcome.FAILED if failed else Outcome.SUCCEEDED
        with BORDER:
            return await self._client.close(outcome, reason)

    async def aclose(self) -> None:
        """Leave the run, if this node is in it, and close everything. Idempotent."""
        await self._client.aclose()

    async def __aenter__(self) -> Run:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and self.closed is None:
            await self._client.give_up(error)
        await self.aclose()


def seconds(duration: timedelta | float) -> float:
    """A duration in seconds. Raises UsageError for anything else."""
    given = duration.total_seconds() if isinstance(duration, timedelta) else duration
    try:
        if not math.isnan(given):
            return max(0.0, float(given))
    except TypeError:
        pass
    raise errors.UsageError(f"a timeout is a timedelta or a number of seconds, not {duration!r}")


def as_bytes(value: bytes | str) -> bytes:
    """A value as it is stored. Raises UsageError for a number: bytes(5) would be five zeros."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise errors.UsageError(f"a value is bytes or a str, not {type(value).__name__}")
