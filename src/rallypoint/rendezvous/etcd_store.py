"""A store in etcd, with torch's name and the semantics of torch.distributed.Store.

Each key is a key of etcd: the prefix, a slash, and the key. A value is stored with a nonce of its
writer, and each write is conditional on the value before. So after a lost answer the same write can
be sent again, and an `add` is applied once.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar, cast

from rallypoint import errors
from rallypoint.client.blocking import Store as BlockingStore
from rallypoint.client.store_calls import store_error
from rallypoint.client.world import Store as AsyncStore
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
"""How many operations one transaction has. etcd accepts 128 (--max-txn-ops)."""
_AT_ONCE: Final = 16
_CONTENTION_S: Final = 0.02
"""The longest pause after a lost compare-and-swap."""
_INT64: Final = 1 << 63
KEYS_SHOWN_MAX: Final = 10


def cas_delay() -> None:
    """Sleep for a random time up to 0.1 s, after a lost compare-and-swap."""
    time.sleep(random.uniform(0, 0.1))


class EtcdStore(BlockingStore):
    """A store below a prefix of etcd. Any thread may call.

    All stores with the same prefix share their keys, and nothing else may write there. Only
    `delete_key` deletes a key.

    Args:
        etcd_client: the connection to etcd.
        etcd_store_prefix: the prefix of its keys; a slash is added if there is none at the end.
        timeout: how long a call waits; 300 s by default.

    Raises:
        TypeError: `etcd_client` is something else.

    A call that waits (`get`, `wait`, `multi_get`) raises LookupError after the timeout. Every call
    raises RendezvousConnectionError if etcd does not answer within the store's timeout and the
    client's `read_timeout`. `add` raises ValueError if the value is no integer.
    """

    def __init__(
        self,
        etcd_client: EtcdConnection,
        etcd_store_prefix: str,
        timeout: timedelta | None = None,
    ) -> None:
        self.client = connection(etcd_client)
        self.prefix = etcd_store_prefix.rstrip("/") + "/"
        calls = _EtcdCalls(self.client, as_key(self.prefix))
        # The connection runs the calls, and turns etcd's errors into those of a rendezvous.
        super().__init__(self.client, AsyncStore(calls, _error_of))
        self._for_torch: list[object] = []
        if timeout is not None:
            self.set_timeout(timeout)

    def add(self, key: str, num: int) -> int:
        """Add to a counter; the new value. The argument has torch's name."""
        return super().add(key, num)

    def wait(self, keys: Sequence[str], override_timeout: timedelta | float | None = None) -> None:
        """Wait until all keys exist. The argument has torch's name."""
        super().wait(keys, override_timeout)

    def for_torch(self) -> Any:
        """The same keys as a torch.distributed.Store, for torch's C++ and PrefixStore.

        Keep a reference to this store while torch uses the other one. Raises RuntimeError without
        torch.
        """
        _torch_bridge.require("a torch.distributed.Store over etcd")
        store = _torch_bridge.store_of(self.client, self._store)
        self._for_torch.append(store)  # kept while this one lives; see store_of
        return store

    def __repr__(self) -> str:
        return f"<EtcdStore {self.prefix!r} at {', '.join(self.client.endpoints)}>"


def _error_of(failure: ops.StoreFailure) -> Exception:
    """As in torch's EtcdStore: LookupError for missing keys, ValueError for a wrong number."""
    match failure.code:
        case ops.TIMEOUT:
            return LookupError(failure.message)
        case ops.NOT_AN_INTEGER | ops.LIMIT:
            return ValueError(failure.message)
    return store_error(failure)


class _NoSumError(Exception):
    """A value is no number, so nothing can be added. It has the failure."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.failure = ops.StoreFailure(code, message)


class _EtcdCalls:
    """The store's calls, for Rallypoint's thread. See StoreCalls.

    They raise a LedgerError if etcd does not answer. EtcdConnection.run turns that into the error
    of a rendezvous.
    """

    def __init__(self, etcd: EtcdConnection, prefix: bytes) -> None:
        self._etcd = etcd
        self._prefix = prefix

    async def call(self, op: ops.StoreOp, timeout_s: float | None) -> ops.StoreResult:
        """One operation."""
        limit_s = math.inf if timeout_s is None else timeout_s
        match op:
            case ops.Get(key):
                found = await self._awaited((key,), limit_s)
                return found if isinstance(found, ops.StoreFailure) else ops.StoreValue(found[0])
            case ops.MultiGet(keys):
                found = await self._awaited(keys, limit_s)
                return found if isinstance(found, ops.StoreFailure) else ops.StoreValue(found)
            case ops.Wait(keys):
                found = await self._awaited(keys, limit_s)
                return found if isinstance(found, ops.StoreFailure) else ops.StoreValue(None)
        work = self._at_once(op)
        try:
            return ops.StoreValue(
                await self._etcd.within(min(limit_s, self._etcd.read_timeout), work)
            )
        except _NoSumError as error:
            return error.failure

    async def _at_once(self, op: ops.StoreOp) -> bytes | int | bool | None:
        """The operations that wait only for etcd's answer."""
        match op:
            case ops.Set(key, value):
                await self._update(key, lambda _: value)
                return None
            case ops.Append(key, value):
                await self._update(key, lambda old: self._value(old) + value)
                return None
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

    async def _awaited(
        self, keys: Sequence[str], timeout_s: float
    ) -> tuple[bytes, ...] | ops.StoreFailure:
        """Wait until all `keys` exist at the same time.

        Returns their values, or the missing keys.
        """
        missing: list[str] | None = None
        try:
            async with asyncio.timeout(None if math.isinf(timeout_s) else timeout_s):
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
                    hint="check that etcd runs, and has a leader",
                ) from error
            shown = tuple(missing[:KEYS_SHOWN_MAX])
            message = _not_there(missing, timeout_s, self._etcd)
            return ops.StoreFailure(ops.TIMEOUT, message, shown, len(missing))

    async def _changed(self, key: str, revision: int) -> None:
        """Wait until something was written to `key` after `revision`."""
        client = await self._etcd.client()
        with contextlib.suppress(EtcdCompactedError):
            watch = client.watch(self._place(key), start_revision=revision + 1)
            async with contextlib.aclosing(watch) as changes:
                await anext(changes)

    async def _range(self, keys: Sequence[str]) -> tuple[dict[str, KeyValue], int]:
        """The existing keys among `keys`, and a revision at which they existed."""
        client = await self._etcd.client()
        found: dict[str, KeyValue] = {}
        revisions: list[int] = []
        for start in range(0, len(keys), _OPS_MAX):
            part = keys[start : start + _OPS_MAX]
            # A read changes nothing, so it is repeated after a lost answer.
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
        """Write the result of `change` on the key's value. Returns what was written.

        The first try assumes that the key is as `found`. None: it does not exist, because most keys
        are written once.
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
            # An absent key compares as empty. If that does not match, `expected` is returned, as in
            # torch.
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
        """Whether a write with a lost answer was done right after revision `before` of its key.

        Reads the key's earlier values in etcd, from the present one back. Raises EtcdUnknownError
        if the key was deleted since, and EtcdRefusedError if these values were compacted.
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
            message = f"the value of key {key!r} is not a decimal integer"
            raise _NoSumError(ops.NOT_AN_INTEGER, message) from None
        if not -_INT64 <= total < _INT64:
            raise _NoSumError(ops.LIMIT, f"the sum {total} of key {key!r} does not fit in 64 bits")
        return b"%d" % total


def _not_there(missing: Sequence[str], timeout_s: float, etcd: EtcdConnection) -> str:
    more = ", ..." if len(missing) > KEYS_SHOWN_MAX else ""
    shown = ", ".join(map(repr, missing[:KEYS_SHOWN_MAX])) + more
    where = ", ".join(etcd.endpoints)
    return f"not in the store at {where} after {timeout_s:g} s: {shown}"


async def _all_of(work: Sequence[Coroutine[Any, Any, _T]]) -> None:
    """Run all of them until the first error. Then the others are cancelled."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        for task in tasks:
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
