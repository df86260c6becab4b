"""A round's store, which `RendezvousInfo.store` returns: torch's semantics, with or without torch.

There are two kinds: the round's own store at the coordinator, and a prefix over a store of the
caller. torchrun's agents use it twice. Before the workers start, the agents use it to assign the
workers' ranks. After its workers have finished, an agent waits in an exit barrier on it for the
others. Its first write there is the only sign that its node is done, so both kinds pass that on.

If the round has ended, an error would end the agent in the first case, and print a traceback in the
second. So both uses succeed in a round that is over: see RoundCalls.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, NoReturn, TypeVar, cast

from rallypoint import errors
from rallypoint.client.blocking import Portal
from rallypoint.client.blocking import Store as BlockingStore
from rallypoint.client.node import Node
from rallypoint.client.store_calls import COORDINATOR_LOST, no_answer, round_ended, store_error
from rallypoint.client.world import Store as AsyncStore
from rallypoint.core import store as ops
from rallypoint.core.values import Change, ChangeKind, CloseRecord, Outcome
from rallypoint.rendezvous import _torch_bridge

TERMINAL_STATE: Final = "torchelastic/agent/terminal_state"
"""Prefix of the keys of torchrun's exit barrier (torch 2.13, elastic/agent/server/api.py)."""
ROLE_INFO: Final = "torchelastic/role_info/"
"""Prefix of the keys with each agent's number of workers."""
ASSIGNED_RANKS: Final = "torchelastic/assigned_ranks/"
"""Prefix of the keys in which the agent with rank 0 gives the others their workers' ranks."""

ANSWER_MARGIN_S: Final = 2.0
"""How many seconds after its deadline a call ends if the coordinator does not answer."""
END_FOLLOWS_S: Final = 3.0
"""How many seconds a node that is done waits for the end of the run after that of its round."""

_log = logging.getLogger("rallypoint.rendezvous")
_T = TypeVar("_T")


def is_terminal(op: ops.StoreOp) -> bool:
    """Whether this is a step of torchrun's exit barrier."""
    match op:
        case ops.Add(key=key) | ops.Set(key=key) | ops.Get(key=key):
            return key.startswith(TERMINAL_STATE)
        case ops.Wait(keys=keys):
            return all(key.startswith(TERMINAL_STATE) for key in keys)
    return False


def _is_assignment(op: ops.StoreOp) -> bool:
    """Whether this is a step in which torchrun's agents assign their workers' ranks."""
    match op:
        case ops.Set(key=key):
            return key.startswith(ROLE_INFO)
        case ops.Get(key=key):
            return key.startswith(ASSIGNED_RANKS)
        case ops.MultiGet(keys=keys):
            return all(key.startswith(ROLE_INFO) for key in keys)
        case ops.MultiSet(keys=keys):
            return all(key.startswith(ASSIGNED_RANKS) for key in keys)
    return False


class RunEndedBadly(Exception):
    """The run has failed or was cancelled while this node was in torchrun's exit barrier."""

    def __init__(self, close: CloseRecord) -> None:
        super().__init__()
        self.close = close


class RoundCalls:
    """The calls of one round's store, for one node. See StoreCalls.

    `on_terminal` is called when torchrun's exit barrier has counted this node. With `tells_end`, a
    step of that barrier raises RunEndedBadly if the run did not succeed.
    """

    def __init__(
        self,
        node: Node,
        number: int,
        on_terminal: Callable[[], None],
        *,
        tells_end: bool = False,
    ) -> None:
        self._node = node
        self._tells_end = tells_end
        self._number = number
        self._nodes = node.round.head.nodes if node.round is not None else 1
        self._on_terminal = on_terminal
        self._is_terminal = False
        self._own_role: bytes = b""

    async def call(self, op: ops.StoreOp, timeout_s: float | None) -> ops.StoreResult:
        """Execute one operation. The calls of torchrun's agent succeed in a round that is over.

        See the module's docstring for the reason. No other node reaches the exit barrier then. The
        ranks are invented: the agent stops the workers that get them as soon as it reads
        `num_nodes_waiting`, and then rendezvouses again.
        """
        if isinstance(op, ops.Set) and op.key.startswith(ROLE_INFO):
            self._own_role = op.value
        ended = self._ended()
        result = round_ended(ended) if ended is not None else await self._answer(op, timeout_s)
        if isinstance(result, ops.StoreFailure) and result.code == ops.ROUND_ENDED:
            if is_terminal(op):
                await self._check_end()
                result = ops.StoreValue(0 if isinstance(op, ops.Add) else b"")
            elif _is_assignment(op):
                ended = self._ended()
                if ended is None or ended.kind is not ChangeKind.CLOSED:
                    result = ops.StoreValue(self._invented(op))
        is_counted = isinstance(op, ops.Add) and is_terminal(op)
        if is_counted and isinstance(result, ops.StoreValue) and not self._is_terminal:
            self._is_terminal = True
            self._on_terminal()
        return result

    def error_of(self, failure: ops.StoreFailure) -> Exception:
        """The error of a call of this store that failed."""
        if failure.code == ops.ROUND_ENDED:
            lost = Change(ChangeKind.NODE_LOST, self._number, detail=failure.message)
            return errors.RoundBrokenError(self._ended() or lost)
        if failure.code == COORDINATOR_LOST and self._node.gone is not None:
            return self._node.gone
        return store_error(failure)

    def _ended(self) -> Change | None:
        """Why this round is over for the node; None while it is active."""
        current = self._node.round
        if current is None or current.head.number != self._number:
            detail = "this node is in another round now"
            return Change(ChangeKind.READY_AGAIN, self._number, (), 0, detail)
        return self._node.change

    async def _check_end(self) -> None:
        """Raises RunEndedBadly if the run has ended without success.

        The loss of a node can end the run. The coordinator reports that end a moment after the
        loss, because it writes the end to the ledger first.
        """
        if not self._tells_end:
            return
        with contextlib.suppress(errors.CoordinatorError):
            await self._node.end_of_run(END_FOLLOWS_S)
        close = self._node.closed
        if close is not None and close.outcome is not Outcome.SUCCEEDED:
            raise RunEndedBadly(close)

    async def _answer(self, op: ops.StoreOp, timeout_s: float | None) -> ops.StoreResult:
        """The coordinator's answer, which names what is missing. If it is frozen, a timeout."""
        limit_s = None if timeout_s is None else timeout_s + ANSWER_MARGIN_S
        try:
            async with asyncio.timeout(limit_s):
                return await self._node.call(op, timeout_s)
        except TimeoutError:
            return no_answer("the coordinator", limit_s)

    def _invented(self, op: ops.StoreOp) -> bytes | tuple[bytes, ...] | None:
        """Invented ranks, as if every node had as many workers as this one."""
        _log.info("round %d has ended while its workers' ranks were assigned", self._number)
        match op:
            case ops.MultiGet(keys=keys):
                return (self._own_role,) * len(keys)
            case ops.Get(key=key):
                workers = json.loads(self._own_role)["local_world_size"]
                first, size = int(key.removeprefix(ASSIGNED_RANKS)) * workers, self._nodes * workers
                return json.dumps([first, size, first, size]).encode()
        return None


class _EndsRun:
    """Runs a round's calls, and calls `on_bad_end` if the run has ended without success."""

    def __init__(self, portal: Portal, on_bad_end: Callable[[CloseRecord], NoReturn]) -> None:
        self._portal = portal
        self._on_bad_end = on_bad_end

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result. `on_bad_end` raises in the caller's thread."""
        try:
            return self._portal.run(work)
        except RunEndedBadly as ended:
            # Not raised in the portal's loop, because a SystemExit would end its thread.
            self._on_bad_end(ended.close)


def round_store(
    portal: Portal, calls: RoundCalls, on_bad_end: Callable[[CloseRecord], NoReturn]
) -> Any:
    """The round's own store: of torch's class if torch is in use, otherwise a plain one.

    `on_bad_end`: called in the thread of a step of torchrun's exit barrier if the run has ended
    without success. For calls with `tells_end`.
    """
    runner = _EndsRun(portal, on_bad_end)
    store = AsyncStore(calls, calls.error_of)
    if _torch_bridge.loaded():
        return _torch_bridge.round_store_of(runner, store)
    return BlockingStore(runner, store)


# -- a prefix over the caller's store --------------------------------------------------------------


def prefixed(prefix: str, store: Any, on_terminal: Callable[[], None]) -> Any:
    """`store` with "prefix/" before each key: torch's PrefixStore for a store of torch's."""

    def on_add(key: str) -> None:
        if key.startswith(TERMINAL_STATE):
            on_terminal()

    for_torch = getattr(store, "for_torch", None)
    if for_torch is not None and _torch_bridge.loaded():
        store = for_torch()  # Rallypoint's store in etcd, as a store of torch's
    if _torch_bridge.is_torch_store(store):
        return _torch_bridge.prefix_store(prefix, store, on_add)
    return PrefixedStore(prefix, store, on_add)


class PrefixedStore:
    """Like torch.distributed.PrefixStore, for stores that are not torch's.

    It passes each call on with the prefix, a slash and the key. Errors are the other store's.
    """

    def __init__(
        self, prefix: str, store: Any, on_add: Callable[[str], None] = lambda key: None
    ) -> None:
        self.underlying_store = store
        self._prefix = prefix
        self._on_add = on_add

    def set(self, key: str, value: bytes | str) -> None:
        """Store a value."""
        self.underlying_store.set(self._key(key), value)

    def get(self, key: str) -> bytes:
        """Wait until a key exists, and return its value."""
        return cast(bytes, self.underlying_store.get(self._key(key)))

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, and return its new value."""
        count = cast(int, self.underlying_store.add(self._key(key), amount))
        self._on_add(key)
        return count

    def compare_set(self, key: str, expected: bytes | str, desired: bytes | str) -> bytes:
        """Replace `expected` by `desired`, and return the key's value afterwards."""
        changed = self.underlying_store.compare_set(self._key(key), expected, desired)
        return cast(bytes, changed)

    def append(self, key: str, value: bytes | str) -> None:
        """Append to a value, or set it."""
        self.underlying_store.append(self._key(key), value)

    def wait(self, keys: Sequence[str], *timeout: Any) -> None:
        """Wait until all keys exist."""
        self.underlying_store.wait([*map(self._key, keys)], *timeout)

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all keys exist now."""
        return cast(bool, self.underlying_store.check([*map(self._key, keys)]))

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Wait until all keys exist, and return their values."""
        return cast("list[bytes]", self.underlying_store.multi_get([*map(self._key, keys)]))

    def multi_set(self, keys: Sequence[str], values: Sequence[bytes | str]) -> None:
        """Store several values at once."""
        self.underlying_store.multi_set([*map(self._key, keys)], values)

    def delete_key(self, key: str) -> bool:
        """Delete a key. Returns whether it existed."""
        return cast(bool, self.underlying_store.delete_key(self._key(key)))

    def num_keys(self) -> int:
        """How many keys the underlying store has, under any prefix, as in torch."""
        return cast(int, self.underlying_store.num_keys())

    @property
    def timeout(self) -> Any:
        """How long calls wait at most."""
        return self.underlying_store.timeout

    def set_timeout(self, timeout: Any) -> None:
        """Set how long calls wait at most."""
        self.underlying_store.set_timeout(timeout)

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}"
