"""`EtcdLedger`: the engine over etcd v3. Registers are keys, their versions etcd's revisions.

    <prefix>/ledger             the marker: it names the ledger that has this prefix
    <prefix>/r/<register>       a sealed record
    <prefix>/l/<log>/<index>    a sealed record; the name of the log is quoted

Each write is one transaction, conditional on the marker and on the data that it changes. So a write
that a frozen member does late fails, and after an unknown outcome the same write can be sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import urllib.parse
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from rallypoint.errors import (
    LedgerError,
    LedgerForeignError,
    LedgerLimitError,
    LedgerReplacedError,
    UsageError,
)
from rallypoint.ledger import record_format
from rallypoint.ledger.contract import (
    AppendOutcome,
    Changed,
    Conflict,
    Created,
    Durability,
    Exists,
    Gap,
    Ledger,
    LedgerLimits,
    SwapOutcome,
    Swapped,
    Unknown,
    Versioned,
    check_name,
)
from rallypoint.ledger.etcd.client import EtcdClient
from rallypoint.ledger.etcd.gateway import Gateway
from rallypoint.ledger.etcd.options import EtcdOptions
from rallypoint.ledger.etcd.txn import (
    compare,
    compare_absent,
    compare_value,
    decided,
    delete,
    get,
    put,
)
from rallypoint.ledger.etcd.wire import (
    EtcdCompactedError,
    EtcdRefusedError,
    KeyValue,
    RangeResult,
    not_etcd,
    prefix_end,
)
from rallypoint.ledger.keys import record_name
from rallypoint.ledger.marker import decode, new_marker

DEFAULT_PREFIX: Final = "/rallypoint"
_PAGE: Final = 128
_REMOVALS_MAX: Final = 20
"""How often a removal is tried. It fails if the data was changed since it was read."""
_RETRY_S: Final = 0.05


class EtcdLedger(Ledger):
    """A ledger under a prefix of an etcd cluster, from etcd 3.4 on.

    Raises:
        UsageError: from the constructor, for a malformed prefix or no endpoint.
    """

    is_durable = True
    durability = Durability.REPLICATED
    has_log = True
    can_watch = True
    # etcd takes requests of up to 1.5 MiB, and answers a few hundred writes a second on an
    # ordinary disk (etcd.io/docs: "request size limit", "hardware").
    limits = LedgerLimits(value_bytes_max=1 << 20, record_bytes_max=1 << 20, writes_per_s=100.0)

    def __init__(
        self,
        options: EtcdOptions,
        prefix: str = DEFAULT_PREFIX,
        *,
        gateway: Gateway | None = None,
    ) -> None:
        """`gateway`: what carries the requests; None: HTTP."""
        trimmed = prefix.rstrip("/")
        if not trimmed or "\0" in trimmed:
            raise UsageError(
                f"{prefix!r} cannot be a prefix for a ledger in etcd",
                hint=f"name one that nothing else uses, such as {DEFAULT_PREFIX}",
            )
        self.ledger_id = ""
        self._prefix = trimmed
        self._root = trimmed.encode() + b"/"
        self._marker = self._root + b"ledger"
        self._marker_value = b""
        self._client = EtcdClient(options, gateway)

    async def open(self) -> None:
        """See Ledger.open."""
        if self.ledger_id:
            return
        await self._client.open()
        try:
            # Read before the first write, because a failed read has a known cause.
            await self._client.range(self._marker, keys_only=True)
            self.ledger_id, self._marker_value = await self._find_or_make()
        finally:
            if not self.ledger_id:
                await self._client.aclose()

    async def _find_or_make(self) -> tuple[str, bytes]:
        """The id and the marker of the ledger. A new marker is written only if no key exists."""
        ledger_id, value = new_marker("etcd")
        result, _ = await decided(
            self._client,
            [compare_absent(self._root, prefix_end(self._root))],
            [put(self._marker, value)],
            [get(self._marker), get(self._root, prefix_end(self._root), limit=1, keys_only=True)],
        )
        if result.succeeded:
            return ledger_id, value
        found = result.range(0).kvs
        if not found:
            raise self._foreign(result.range(1).kvs)
        return self._marker_in(found[0]), found[0].value

    async def find(self) -> str:
        """The id of the ledger under the prefix; "" if `open` would make a new one.

        Writes nothing. Raises as `open`. Close the ledger afterwards, as after `open`.
        """
        await self._client.open()
        found = (await self._client.range(self._marker)).kvs
        if found:
            return self._marker_in(found[0])
        others = await self._client.range(
            self._root, prefix_end(self._root), limit=1, keys_only=True
        )
        if others.kvs:
            raise self._foreign(others.kvs)
        return ""

    async def aclose(self) -> None:
        """See Ledger.aclose."""
        self.ledger_id = ""
        await self._client.aclose()

    # -- registers ------------------------------------------------------------------------------

    async def read(self, key: str) -> Versioned | None:
        """See Ledger.read."""
        return self._first(await self._client.range(self._register(key)))

    async def swap(self, key: str, expected: int | None, value: bytes) -> SwapOutcome:
        """See Ledger.swap."""
        self.check_value(key, value)
        place, nonce = self._register(key), record_format.new_nonce()
        try:
            result, unsure = await decided(
                self._client,
                [self._ours(), compare(place, "mod_revision", expected or 0)],
                [put(place, record_format.seal(value, nonce))],
                [get(place), get(self._marker)],
            )
            if result.succeeded:
                return Swapped(result.header.revision)
            self._refuse_replaced(result.range(1))
            found = result.range(0).kvs
            if unsure and found and record_format.unseal(found[0].value, key).nonce == nonce:
                return Swapped(found[0].mod_revision)
            if unsure:
                # An earlier try may have been done, and another write may have followed it.
                return Unknown("the answer was lost, and the register has changed since")
            return Conflict(self._first(result.range(0)))
        except LedgerLimitError:
            raise
        except LedgerError as error:
            return Unknown(error.message, error)

    async def delete(self, key: str, version: int | None = None) -> bool:
        """See Ledger.delete.

        It is conditional, so that a late one does not delete a newer register.
        """
        place = self._register(key)
        for _ in range(_REMOVALS_MAX):
            found = (await self._client.range(place, keys_only=True)).kvs
            if not found:
                return True
            if version not in (None, found[0].mod_revision):
                return False
            condition = compare(place, "mod_revision", found[0].mod_revision)
            result, _ = await decided(self._client, [self._ours(), condition], [delete(place)])
            if result.succeeded:
                return True
            self._refuse_replaced(await self._client.range(self._marker))
            await asyncio.sleep(_RETRY_S)
        raise _not_removed(f"register {key!r}")

    async def keys(self, prefix: str = "") -> tuple[str, ...]:
        """See Ledger.keys."""
        start = self._root + b"r/"
        found = await self._all(start + prefix.encode(), keys_only=True)
        # etcd orders by bytes, which for UTF-8 is the order of the characters.
        return tuple(self._text(each, each.key[len(start) :]) for each in found)

    async def changed(self, key: str, version: int | None, timeout_s: float) -> Changed | None:
        """See Ledger.changed. It watches. After silence, one more read decides."""
        place = self._register(key)
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            now = await self._client.range(place)
            current = self._first(now)
            if (current.version if current else None) != version:
                return Changed(current)
            if asyncio.get_running_loop().time() >= deadline:
                return None
            with contextlib.suppress(TimeoutError, EtcdCompactedError):
                async with asyncio.timeout_at(deadline):
                    return await self._watched(key, now.header.revision + 1)

    async def _watched(self, key: str, start_revision: int) -> Changed:
        watch = self._client.watch(self._register(key), start_revision=start_revision)
        async with contextlib.aclosing(watch) as changes:
            async for events in changes:
                last = events[-1]
                return Changed(None if last.type == "DELETE" else self._versioned(last.kv))
        raise AssertionError("a watch does not end")

    # -- the log ----------------------------------------------------------------------------------

    async def append(self, log: str, index: int, value: bytes) -> AppendOutcome:
        """See Ledger.append."""
        self.check_record(log, index, value)
        place, nonce = self._record(log, index), record_format.new_nonce()
        conditions = [self._ours(), compare(place, "create_revision", 0)]
        if index > 0:
            before = self._record(log, index - 1)
            conditions.append(compare(before, "create_revision", 0, result="GREATER"))
        try:
            result, unsure = await decided(
                self._client,
                conditions,
                [put(place, record_format.seal(value, nonce))],
                [get(place), get(self._marker)],
            )
            if result.succeeded:
                return Created()
            self._refuse_replaced(result.range(1))
            found = result.range(0).kvs
            if not found:
                return Unknown("the answer was lost, and the log is gone") if unsure else Gap()
            opened = record_format.unseal(found[0].value, f"{log}[{index}]")
            return Created() if unsure and opened.nonce == nonce else Exists(opened.value)
        except LedgerLimitError:
            raise
        except LedgerError as error:
            return Unknown(error.message, error)

    async def records(
        self, log: str, start: int = 0, limit: int | None = None
    ) -> tuple[tuple[int, bytes], ...]:
        """See Ledger.records."""
        found = await self._all(self._log(log), self._record(log, start), limit)
        read = []
        for index, each in enumerate(found, start):
            where = f"etcd's key {each.key.decode(errors='replace')}"
            if each.key != self._record(log, index):
                raise LedgerForeignError(
                    f"{where} follows record {index - 1} of log {log!r}, and is not a record",
                    hint=f"check whether another program writes below {self._prefix}",
                )
            read.append((index, record_format.unseal(each.value, where).value))
        return tuple(read)

    async def drop_log(self, log: str) -> None:
        """See Ledger.drop_log. Conditional, like `delete`."""
        first, start = self._record(log, 0), self._log(log)
        for _ in range(_REMOVALS_MAX):
            found = (await self._client.range(first, keys_only=True)).kvs
            if not found:
                return
            condition = compare(first, "create_revision", found[0].create_revision)
            removal = delete(start, prefix_end(start))
            result, _ = await decided(self._client, [self._ours(), condition], [removal])
            if result.succeeded:
                return
            self._refuse_replaced(await self._client.range(self._marker))
            await asyncio.sleep(_RETRY_S)
        raise _not_removed(f"log {log!r}")

    async def logs(self, prefix: str = "") -> tuple[str, ...]:
        """See Ledger.logs. It makes one read for each log of any length."""
        start = self._root + b"l/"
        # Each character is quoted separately, so a name begins with `prefix` if its quoted form
        # does.
        at = start + urllib.parse.quote(prefix, safe="").encode()
        end, found = prefix_end(at), []
        while True:
            page = (await self._client.range(at, end, limit=1, keys_only=True)).kvs
            if not page:
                break
            quoted = page[0].key[len(start) :].split(b"/")[0]
            found.append(urllib.parse.unquote(self._text(page[0], quoted)))
            at = prefix_end(start + quoted + b"/")
        return tuple(sorted(log for log in found if log.startswith(prefix)))

    # -- helpers --------------------------------------------------------------------------------

    async def _all(
        self, prefix: bytes, start: bytes = b"", count: int | None = None, **options: Any
    ) -> list[KeyValue]:
        """All keys below a prefix; with `count`, one page of at most that many.

        They are read in pages, because etcd limits the size of an answer.
        """
        at, end, limit = start or prefix, prefix_end(prefix), min(_PAGE, count or _PAGE)
        found: list[KeyValue] = []
        while True:
            try:
                page = await self._client.range(at, end, limit=limit, **options)
            except EtcdRefusedError as error:
                if "larger than max" not in error.message or limit == 1:
                    raise
                limit //= 2
                continue
            found += page.kvs
            if count is not None or not page.more:
                return found
            if not page.kvs:
                raise not_etcd(self._client.options.endpoints[0], "more keys, but none of them")
            at = page.kvs[-1].key + b"\0"

    def _ours(self) -> dict[str, Any]:
        """The condition that the prefix still has the ledger that was opened.

        It compares the marker's value, which no other ledger has. A revision may occur again in
        another cluster.
        """
        return compare_value(self._marker, self._marker_value)

    def _refuse_replaced(self, marker: RangeResult) -> None:
        if not marker.kvs or marker.kvs[0].value != self._marker_value:
            raise LedgerReplacedError(
                f"{self._prefix!r} in etcd no longer holds ledger {self.ledger_id}",
                hint="it was removed, restored or replaced: start this process again",
            )

    def _marker_in(self, found: KeyValue) -> str:
        if not record_format.is_sealed(found.value):
            raise self._foreign([found])
        opened = record_format.unseal(found.value, f"etcd's key {self._marker.decode()}")
        try:
            return decode(opened.value).ledger_id
        except msgspec.MsgspecError as error:
            raise self._foreign([found]) from error

    def _foreign(self, found: Sequence[KeyValue]) -> LedgerForeignError:
        example = found[0].key.decode(errors="replace") if found else "another key"
        return LedgerForeignError(
            f"the prefix {self._prefix!r} in etcd holds something else: {example}",
            hint="name a prefix that nothing else uses",
        )

    def _text(self, found: KeyValue, name: bytes) -> str:
        """A part of a key as text."""
        try:
            return name.decode()
        except UnicodeDecodeError as error:
            raise self._foreign([found]) from error

    def _register(self, key: str) -> bytes:
        check_name(key)
        return self._root + b"r/" + key.encode()

    def _log(self, log: str) -> bytes:
        check_name(log)
        # The name is quoted, so that a list of the keys of one log never has keys of another.
        return self._root + b"l/" + urllib.parse.quote(log, safe="").encode() + b"/"

    def _record(self, log: str, index: int) -> bytes:
        return self._log(log) + record_name(index).encode()

    def _first(self, found: RangeResult) -> Versioned | None:
        return self._versioned(found.kvs[0]) if found.kvs else None

    def _versioned(self, found: KeyValue) -> Versioned:
        opened = record_format.unseal(
            found.value, f"etcd's key {found.key.decode(errors='replace')}"
        )
        return Versioned(opened.value, found.mod_revision)


def _not_removed(what: str) -> LedgerError:
    return LedgerError(
        f"{what} could not be removed from etcd: it was another one each time",
        hint="check whether a proxy in front of etcd gives old answers; it is removed later",
    )
