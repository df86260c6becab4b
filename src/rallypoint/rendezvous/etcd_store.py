"""A store in etcd, under torch's name and with the semantics of torch.distributed.Store.

Each key is one of etcd's: the prefix, a slash, and the key as it is. A value is in an envelope with
its writer's nonce, and each write is conditional on what was there. So after an answer that was
lost, the same write can be sent again, and an `add` counts once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar, cast

from rallypoint import errors
from rallypoint.client.blocking import Store as BlockingStore
from rallypoint.client.world import Store as AsyncStore
from rallypoint.client.world import seconds
from rallypoint.core import store as ops
from rallypoint.ledger import record_format
from rallypoint.ledger.etcd.client import EtcdClient
from rallypoint.ledger.etcd.txn import compare, decided, delete, get, put
from rallypoint.ledger.etcd.wire import EtcdCompactedError, EtcdUnknownError, KeyValue, prefix_end
from rallypoint.rendezvous import _torch_bridge
from rallypoint.rendezvous.etcd_blocking import EtcdConnection, as_key, connection

__all__ = ["EtcdStore", "cas_delay"]

_T = TypeVar("_T")
_OPS_MAX: Final = 100
"""How many operations one transaction has; etcd takes 128 (--max-txn-ops)."""
_AT_ONCE: Final = 16
_CONTENTION_S: Final = 0.02
"""Up to how long a lost compare-and-swap waits before it is tried anew."""
_INT64: Final = 1 << 63


def cas_delay() -> None:
    """Sleep for up to 0.1 s, by chance: between two tries of a compare-and-swap that was lost."""
    time.sleep(random.uniform(0, 0.1))


class EtcdStore(BlockingStore):
    """A store below a prefix of etcd. Any thread may call.

    All who give the same prefix share it; nothing else may write there. Nothing in it is deleted
    but by `delete_key`.

    Args:
        etcd_client: the connection to etcd.
        etcd_store_prefix: what its keys begin with; a slash is added where none is at the end.
        timeout: how long a call waits; 300 s unless given.

    Raises:
        TypeError: `etcd_client` is something else.

    A call that waits (`get`, `wait`, `multi_get`) raises LookupError at the end of its time, and
    every call RendezvousConnectionError where etcd does not answer, within the store's timeout and
    the client's `read_timeout`. `add` raises ValueError where the value is no integer.
    """

    def __init__(
        self,
        etcd_client: EtcdConnection,
        etcd_store_prefix: str,
        timeout: timedelta | None = None,
    ) -> None:
        self.client = connection(etcd_client)
        self.prefix = etcd_store_prefix.rstrip("/") + "/"
        # What the blocking store asks of a portal is `run`, which the connection has too, with
        # the errors of a rendezvous.
        self._calls = _EtcdCalls(self.client, as_key(self.prefix))
        super().__init__(cast(Any, self.client), self._calls)
        self._for_torch: list[object] = []
        if timeout is not None:
            self.set_timeout(timeout)

    def add(self, key: str, num: int) -> int:
        """Add to a counter; the new value. The argument has torch's name for it here."""
        return super().add(key, num)

    def wait(self, keys: Sequence[str], override_timeout: timedelta | float | None = None) -> None:
        """Wait until all keys exist. The argument has torch's name for it here."""
        super().wait(keys, override_timeout)

    def for_torch(self) -> Any:
        """The same keys as a torch.distributed.Store, which torch's C++ and PrefixStore take.

        Keep this store for as long as torch uses that one. Raises RuntimeError without torch.
        """

        client, calls = self.client, self._calls

        def call(op: ops.StoreOp, timeout_s: float) -> object:
            return client.run(calls.call(op, timeout_s))

        _torch_bridge.require("a torch.distributed.Store over etcd")
        store = _torch_bridge.store_of(call, self.timeout.total_seconds())
        self._for_torch.append(store)  # for as long as this one lives; see store_of
        return store

    def __repr__(self) -> str:
        return f"<EtcdStore {self.prefix!r} at {', '.join(self.client.endpoints)}>"


class _EtcdCalls(AsyncStore):
    """The store's calls, as coroutines in Rallypoint's thread."""

    def __init__(self, etcd: EtcdConnection, prefix: bytes) -> None:
        super().__init__(cast(Any, None), lambda: None)
        self._etcd = etcd
        self._prefix = prefix

    async def _call(self, op: ops.StoreOp, timeout: timedelta | float | None = None) -> object:
        return await self.call(op, self.timeout_s if timeout is None else seconds(timeout))

    async def call(self, op: ops.StoreOp, timeout_s: float) -> object:
        """One operation."""
        match op:
            case ops.Get(key):
                return (await self._awaited((key,), timeout_s))[0]
            case ops.MultiGet(keys):
                return await self._awaited(keys, timeout_s)
            case ops.Wait(keys):
                await self._awaited(keys, timeout_s)
                return None
        return await self._etcd.within(min(timeout_s, self._etcd.read_timeout), self._at_once(op))

    async def _at_once(self, op: ops.StoreOp) -> object:
        """The calls that wait for nothing but etcd's answer."""
        match op:
            case ops.Set(key, value):
                return await self._update(key, lambda _: value)
            case ops.Append(key, value):
                return await self._update(key, lambda old: self._value(old) + value)
            case ops.Add(key, amount):
                total = await self._update(key, lambda old: self._sum(key, old, amount))
                return int(total)
            case ops.CompareSet(key, expected, desired):
                return await self._compare_set(key, expected, desired)
            case ops.MultiSet(keys, values):
                await self._set_all(dict(zip(keys, values, strict=True)))
                return None
            case ops.Check(keys):
                found, _ = await self._range(keys)
                return len(found) == len(set(keys))
            case ops.DeleteKey(key):
                return await self._delete(key)
            case ops.NumKeys():
                client = await self._etcd.client()
                end = prefix_end(self._prefix)
                return (await client.range(self._prefix, end, count_only=True)).count
        raise errors.UsageError(f"a store in etcd has no {type(op).__name__}")

    # -- reading ----------------------------------------------------------------------------------

    async def _awaited(self, keys: Sequence[str], timeout_s: float) -> tuple[bytes, ...]:
        """The values of `keys`, once all exist at the same time. Raises LookupError."""
        missing: list[str] | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    found, revision = await self._range(keys)
                    missing = [key for key in keys if key not in found]
                    if not missing:
                        return tuple(self._value(found[key]) for key in keys)
                    await self._changed(missing[0], revision)
        except TimeoutError as error:
            if missing is None:
                raise errors.LedgerUnreachableError(
                    f"no answer within {timeout_s:g} s",
                    hint="is etcd running, and has it a leader?",
                ) from error
            raise LookupError(_not_there(missing, timeout_s, self._etcd)) from error

    async def _changed(self, key: str, revision: int) -> None:
        """Wait until something was written to `key` after `revision`."""
        client = await self._etcd.client()
        with contextlib.suppress(EtcdCompactedError):
            watch = client.watch(self._place(key), start_revision=revision + 1)
            async with contextlib.aclosing(watch) as changes:
                await anext(changes)

    async def _range(self, keys: Sequence[str]) -> tuple[dict[str, KeyValue], int]:
        """Those of `keys` that exist, and a revision at which that was so."""
        client = await self._etcd.client()
        found: dict[str, KeyValue] = {}
        revisions: list[int] = []
        for start in range(0, len(keys), _OPS_MAX):
            part = keys[start : start + _OPS_MAX]
            # Nothing is changed by it, so a lost answer is no unknown outcome.
            result, _ = await decided(client, [], [get(self._place(key)) for key in part])
            revisions.append(result.header.revision)
            for index, key in enumerate(part):
                if result.range(index).kvs:
                    found[key] = result.range(index).kvs[0]
        return found, min(revisions, default=0)

    # -- writing ----------------------------------------------------------------------------------

    async def _update(
        self,
        key: str,
        change: Callable[[KeyValue | None], bytes],
        found: KeyValue | None = None,
    ) -> bytes:
        """Write what `change` makes of the key as it is; what was written.

        The first try takes it that the key is as `found`; not there, unless that is given, for
        most are written once.
        """
        client, place = await self._etcd.client(), self._place(key)
        while True:
            value, nonce = change(found), record_format.new_nonce()
            before = found.mod_revision if found else 0
            result, unsure = await decided(
                client,
                [compare(place, "mod_revision", before)],
                [put(place, record_format.seal(value, nonce))],
                [get(place)],
            )
            if result.succeeded:
                return value
            is_guess = found is None
            found = next(iter(result.range(0).kvs), None)
            if unsure and await self._was_mine(client, found, before, nonce):
                return value
            if not is_guess:
                await asyncio.sleep(random.uniform(0, _CONTENTION_S))

    async def _compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        class OtherError(Exception):
            pass

        def change(old: KeyValue | None) -> bytes:
            # An absent key compares as empty, but is not: then `expected` comes back, as in torch.
            if self._value(old) != expected:
                raise OtherError(expected if old is None else self._value(old))
            return desired

        found, _ = await self._range((key,))
        try:
            return await self._update(key, change, found.get(key))
        except OtherError as other:
            return cast(bytes, other.args[0])

    async def _was_mine(
        self, client: EtcdClient, found: KeyValue | None, before: int, nonce: bytes
    ) -> bool:
        """Whether a write whose answer was lost came right after revision `before` of its key.

        etcd keeps a key's earlier values: back through them from what is there now. Raises
        EtcdUnknownError if the key was deleted since, and EtcdRefusedError if it was compacted.
        """
        while found is not None and found.mod_revision > before:
            if self._opened(found).nonce == nonce:
                return True
            if found.version == 1:
                break
            earlier = await client.range(found.key, revision=str(found.mod_revision - 1))
            found = next(iter(earlier.kvs), None)
        if found is None or (before and found.mod_revision != before):
            raise EtcdUnknownError("the answer to a write was lost, and its key was deleted since")
        return False

    async def _set_all(self, values: dict[str, bytes]) -> None:
        free = asyncio.Semaphore(_AT_ONCE)

        async def one(key: str, value: bytes) -> None:
            async with free:
                await self._update(key, lambda _: value)

        await _all_of([one(key, value) for key, value in values.items()])

    async def _delete(self, key: str) -> bool:
        client, place = await self._etcd.client(), self._place(key)
        unsure = False
        while True:
            found = (await client.range(place, keys_only=True)).kvs
            if not found:
                return unsure
            condition = compare(place, "mod_revision", found[0].mod_revision)
            result, was_lost = await decided(client, [condition], [delete(place)])
            if result.succeeded:
                return True
            unsure = unsure or was_lost

    # -- values -----------------------------------------------------------------------------------

    def _place(self, key: str) -> bytes:
        return self._prefix + as_key(key)

    def _opened(self, found: KeyValue) -> record_format.Opened:
        return record_format.unseal(
            found.value, f"etcd's key {found.key.decode(errors='replace')!r}"
        )

    def _value(self, found: KeyValue | None) -> bytes:
        return b"" if found is None else self._opened(found).value

    def _sum(self, key: str, old: KeyValue | None, amount: int) -> bytes:
        text = self._value(old) or b"0"
        try:
            total = int(text) + amount
        except ValueError:
            raise ValueError(f"the value of key {key!r} is no decimal integer") from None
        if not -_INT64 <= total < _INT64:
            raise ValueError(f"the sum {total} of key {key!r} does not fit into 64 bits")
        return b"%d" % total


def _not_there(missing: Sequence[str], timeout_s: float, etcd: EtcdConnection) -> str:
    shown = ", ".join(map(repr, missing[:10])) + (", ..." if len(missing) > 10 else "")
    where = ", ".join(etcd.endpoints)
    return f"not in the store at {where} after {timeout_s:g} s: {shown}"


async def _all_of(work: Sequence[Coroutine[Any, Any, _T]]) -> None:
    """All of them, or the first error, as it is; none goes on after the end."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        for task in tasks:
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
