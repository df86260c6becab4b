"""A round's store, as `RendezvousInfo.store` gives it: torch's semantics, with torch or without.

Two kinds: the round's own store, kept by the coordinator, and a prefix over a store that the caller
has. Both watch for one thing: torchrun's agent, once its workers have finished, waits for the other
agents in a barrier on this store, deaf to everything else. What it writes there is the only sign
that its node is done, so the first such write is passed on.

A round can end while torchrun's agents are at one of the two things they do on this store: before
the workers start they work out the workers' ranks, and after the end they meet in that barrier. An
error in the first would end the agent, and one in the second would be shown as a traceback. So both
go through instead when the round is over: see RoundSource.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn, cast

from rallypoint import errors
from rallypoint.client.blocking import Portal
from rallypoint.client.blocking import Store as BlockingStore
from rallypoint.client.node import Node
from rallypoint.client.world import STORE_TIMEOUT_S
from rallypoint.client.world import Store as AsyncStore
from rallypoint.core import store as ops
from rallypoint.core.values import Change, ChangeKind, CloseRecord, Outcome
from rallypoint.rendezvous import _torch_bridge

TERMINAL_STATE: Final = "torchelastic/agent/terminal_state"
"""What the keys of torchrun's exit barrier begin with (torch 2.13, elastic/agent/server/api.py)."""
ROLE_INFO: Final = "torchelastic/role_info/"
"""And those by which each agent tells how many workers it has, ..."""
ASSIGNED_RANKS: Final = "torchelastic/assigned_ranks/"
"""... and those by which the agent with rank 0 tells each which ranks they get."""

ANSWER_MARGIN_S: Final = 2.0
"""How much later than its deadline a call ends if the coordinator does not answer at all."""
END_FOLLOWS_S: Final = 3.0
"""How long after the end of a round a node that is done waits for the end of the run."""

_log = logging.getLogger("rallypoint.rendezvous")


def is_terminal(op: ops.StoreOp) -> bool:
    """Whether this is a step of torchrun's exit barrier."""
    match op:
        case ops.Add(key=key) | ops.Set(key=key) | ops.Get(key=key):
            return key.startswith(TERMINAL_STATE)
        case ops.Wait(keys=keys):
            return all(key.startswith(TERMINAL_STATE) for key in keys)
    return False


def _is_assignment(op: ops.StoreOp) -> bool:
    """Whether this is a step by which torchrun's agents work out their workers' ranks."""
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
    """The run has ended, and not by success, while this node was in torchrun's exit barrier."""

    def __init__(self, close: CloseRecord) -> None:
        super().__init__()
        self.close = close


class RoundSource:
    """The calls of one round's store, for one node. To be called in the portal's loop.

    `on_terminal` is called once the agent's exit barrier has counted this node. `tells_end`: a step
    of the exit barrier in a run that did not succeed raises RunEndedBadly.
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

    def check(self) -> None:
        """Raises RoundBrokenError if the node is no longer in this round."""
        current = self._node.round
        if current is None or current.head.number != self._number:
            detail = "this node has gone on to another round"
            raise errors.RoundBrokenError(
                Change(ChangeKind.READY_AGAIN, self._number, (), 0, detail)
            )
        if self._node.change is not None:
            raise errors.RoundBrokenError(self._node.change)

    async def call(self, op: ops.StoreOp, timeout_s: float | None) -> object:
        """One operation. Raises as Node.call does.

        What torchrun's agent does in a round that is over goes through (see this module's top). A
        barrier at the exit has no purpose then: nobody else will come, and nobody waits. Ranks are
        made up: the workers that get them are stopped as soon as the agent looks at
        `num_nodes_waiting`, and then it rendezvouses again.
        """
        if isinstance(op, ops.Set) and op.key.startswith(ROLE_INFO):
            self._own_role = op.value
        try:
            self.check()
            value = await self._answer(op, timeout_s)
        except errors.RoundBrokenError as error:
            if is_terminal(op):
                await self._check_end()
                value = 0 if isinstance(op, ops.Add) else b""
            elif _is_assignment(op) and error.change.kind is not ChangeKind.CLOSED:
                value = self._made_up(op)
            else:
                raise
        if isinstance(op, ops.Add) and is_terminal(op):
            self._note_terminal()
        return value

    async def _check_end(self) -> None:
        """Raises RunEndedBadly if the run has ended, and not by success.

        The loss of a node can leave too few for the run. The end is pushed a moment later than the
        loss, as the ledger has to have it.
        """
        if not self._tells_end:
            return
        with contextlib.suppress(errors.CoordinatorError):
            await self._node.end_of_run(END_FOLLOWS_S)
        close = self._node.closed
        if close is not None and close.outcome is not Outcome.SUCCEEDED:
            raise RunEndedBadly(close)

    async def _answer(self, op: ops.StoreOp, timeout_s: float | None) -> object:
        """The coordinator's, which says what was missing; or none, from one that is frozen."""
        limit_s = None if timeout_s is None else timeout_s + ANSWER_MARGIN_S
        try:
            async with asyncio.timeout(limit_s):
                return await self._node.call(op, timeout_s)
        except TimeoutError as error:
            if isinstance(error, errors.RallypointError):
                raise
            raise errors.StoreTimeoutError(
                f"the coordinator has not answered for {limit_s:g} s"
            ) from None

    def _made_up(self, op: ops.StoreOp) -> object:
        """Ranks as if every node had as many workers as this one."""
        _log.info("round %d has ended while its workers' ranks were assigned", self._number)
        match op:
            case ops.MultiGet(keys=keys):
                return (self._own_role,) * len(keys)
            case ops.Get(key=key):
                workers = json.loads(self._own_role)["local_world_size"]
                first, size = int(key.removeprefix(ASSIGNED_RANKS)) * workers, self._nodes * workers
                return json.dumps([first, size, first, size]).encode()
        return None

    def _note_terminal(self) -> None:
        if not self._is_terminal:
            self._is_terminal = True
            self._on_terminal()


def round_store(
    portal: Portal,
    source: RoundSource,
    on_bad_end: Callable[[CloseRecord], NoReturn] | None = None,
) -> Any:
    """The round's own store: torch's class where torch is in use, else a plain one.

    `on_bad_end`: ends torchrun's exit barrier where the run did not succeed; for a source that
    `tells_end`.
    """
    if _torch_bridge.loaded():

        def call(op: ops.StoreOp, timeout_s: float) -> object:
            try:
                return portal.run(source.call(op, timeout_s))
            except RunEndedBadly as ended:
                # Not raised in the portal's loop: a SystemExit would end its thread.
                assert on_bad_end is not None
                on_bad_end(ended.close)

        return _torch_bridge.round_store_of(call, STORE_TIMEOUT_S)
    # The source looks whether the round is on: a barrier at the exit must get there, too.
    return BlockingStore(portal, AsyncStore(cast(Any, source), lambda: None))


# -- a prefix over a store of the caller's ---------------------------------------------------------


def prefixed(prefix: str, store: Any, on_terminal: Callable[[], None]) -> Any:
    """`store` with "prefix/" before every key. A torch store gives a torch PrefixStore."""

    def on_add(key: str) -> None:
        if key.startswith(TERMINAL_STATE):
            on_terminal()

    for_torch = getattr(store, "for_torch", None)
    if for_torch is not None and _torch_bridge.loaded():
        store = for_torch()  # ours over etcd, as torch's own kind
    if _torch_bridge.is_torch_store(store):
        return _torch_bridge.prefix_store(prefix, store, on_add)
    return PrefixedStore(prefix, store, on_add)


class PrefixedStore:
    """A store over another, as torch.distributed.PrefixStore, for stores that are not torch's.

    Every call is passed on with the prefix, a slash and the key; errors are the other store's.
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
        """The value of a key, once it exists."""
        return cast(bytes, self.underlying_store.get(self._key(key)))

    def add(self, key: str, amount: int) -> int:
        """Add to a counter; the new value."""
        count = cast(int, self.underlying_store.add(self._key(key), amount))
        self._on_add(key)
        return count

    def compare_set(self, key: str, expected: bytes | str, desired: bytes | str) -> bytes:
        """Replace `expected` by `desired`; what the key has then."""
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
        """The values of several keys, once all exist."""
        return cast("list[bytes]", self.underlying_store.multi_get([*map(self._key, keys)]))

    def multi_set(self, keys: Sequence[str], values: Sequence[bytes | str]) -> None:
        """Store several values at once."""
        self.underlying_store.multi_set([*map(self._key, keys)], values)

    def delete_key(self, key: str) -> bool:
        """Delete a key; whether it was there."""
        return cast(bool, self.underlying_store.delete_key(self._key(key)))

    def num_keys(self) -> int:
        """How many keys the store underneath has, under any prefix: as torch counts."""
        return cast(int, self.underlying_store.num_keys())

    @property
    def timeout(self) -> Any:
        """How long calls wait."""
        return self.underlying_store.timeout

    def set_timeout(self, timeout: Any) -> None:
        """Set how long calls wait."""
        self.underlying_store.set_timeout(timeout)

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}"
