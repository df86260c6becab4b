"""The keys and values of a round's store, the effect of a call on them, and their size.

`Data.effect_of` computes a call's answer and writes, and changes nothing. `Data.commit` carries out
the writes of a call, or those of a log. This file must not handle nodes or waiting calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, TypeAlias, assert_never, cast

from rallypoint.core.store.operations import (
    LIMIT,
    NOT_AN_INTEGER,
    Add,
    Append,
    Check,
    CompareSet,
    DataOp,
    DeleteKey,
    Get,
    MultiGet,
    MultiSet,
    NumKeys,
    Set,
    StoreFailure,
    StoreLimits,
    StoreResult,
    StoreValue,
    Wait,
    is_int64,
    key_bytes,
    keys_of,
    shown,
)
from rallypoint.core.values import FrozenStruct

# Measured with CPython 3.11 to 3.13, and rounded up.
KEY_BYTES: Final = 150
"""Memory of a key besides its text and its value: two objects, and an entry of a dict."""


class Put(FrozenStruct, frozen=True, tag="put"):
    """`key` now has `value`."""

    key: str
    value: bytes


class Extend(FrozenStruct, frozen=True, tag="ext"):
    """`value` was added at the end of the value of `key`, or is its first value."""

    key: str
    value: bytes


class Drop(FrozenStruct, frozen=True, tag="drop"):
    """`key` was removed."""

    key: str


Write: TypeAlias = Put | Extend | Drop


class StoreEffect(FrozenStruct, frozen=True):
    """A call's answer and its writes: at most one `Write` for each key."""

    result: StoreResult
    writes: tuple[Write, ...] = ()


class Tally:
    """Counts that all parts of one store share.

    `kept`: the memory of the store, in bytes. `tells_reads`: whether sessions note which answers
    are those of reads, for a snapshot.
    """

    __slots__ = ("kept", "tells_reads")

    def __init__(self) -> None:
        self.kept = 0
        self.tells_reads = False


class Data:
    """Keys and values."""

    def __init__(self, limits: StoreLimits, tally: Tally) -> None:
        self._limits = limits
        self._tally = tally
        # After an append, a value is a bytearray until it is read. If each append copied the whole
        # value, n appends would copy n² bytes.
        self.values: dict[str, bytes | bytearray] = {}
        self._growing: dict[str, None] = {}  # The keys of all bytearrays.
        self.bytes = 0

    def usage(self) -> tuple[int, int]:
        """The number of keys, and the bytes of keys and values."""
        return len(self.values), self.bytes

    def growth_of(self, writes: Iterable[Write]) -> int:
        """The memory that these writes add to the data, in bytes. It may be negative."""
        growth = sum(map(self._growth, writes))
        for write in writes:
            if isinstance(write, Drop):
                growth -= KEY_BYTES
            elif write.key not in self.values:
                growth += KEY_BYTES
        return growth

    def items(self) -> list[tuple[str, bytes]]:
        """All keys and values, in the order of the keys."""
        return [(key, bytes(self.values[key])) for key in sorted(self.values)]

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def copy(self) -> dict[str, bytes]:
        """A copy of all keys and values. No Python code runs for each key."""
        for key in list(self._growing):
            self.value(key)
        return cast(dict[str, bytes], self.values.copy())

    def value(self, key: str) -> bytes:
        """The value of a key that exists."""
        value = self.values[key]
        if isinstance(value, bytearray):
            value = self.values[key] = bytes(value)
            del self._growing[key]
        return value

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The `keys` that do not exist, each once, in their order."""
        return [key for key in dict.fromkeys(keys) if key not in self.values]

    def effect_of(self, op: DataOp) -> StoreEffect | None:
        """The answer and writes of `op` now; None if it has to wait. Changes nothing."""
        if type(op) is Get:  # One of the most frequent calls, but the last in the `match`.
            return self._reading(op) if op.key in self.values else None
        match op:
            case Set(key, value):
                return self._writing(None, Put(key, value))
            case Add(key, amount):
                return self._adding(key, amount)
            case CompareSet():
                return self._comparing(op)
            case Append(key, value):
                return self._writing(None, Extend(key, value))
            case MultiSet(keys, values):
                last = dict(zip(keys, values, strict=True))
                return self._writing(None, *(Put(key, value) for key, value in last.items()))
            case DeleteKey(key):
                there = key in self.values
                return StoreEffect(StoreValue(there), (Drop(key),) if there else ())
            case Check(keys):
                return StoreEffect(StoreValue(not self.missing(keys)))
            case NumKeys():
                return StoreEffect(StoreValue(len(self.values)))
            case Get() | Wait() | MultiGet():
                return None if self.missing(keys_of(op)) else self._reading(op)
            case _:
                assert_never(op)

    def commit(self, writes: Iterable[Write]) -> None:
        """Carry out these writes. All writes of a log, in their order, produce the same data."""
        keys = len(self.values)
        for write in writes:
            growth = self._growth(write)
            if growth:
                self.bytes += growth
                self._tally.kept += growth
            match write:
                case Put(key, value):
                    self.values[key] = value
                    if self._growing:
                        self._growing.pop(key, None)
                case Extend(key, value):
                    current = self.values.get(key, b"")
                    if not isinstance(current, bytearray):
                        current = self.values[key] = bytearray(current)
                        self._growing[key] = None
                    current += value
                case Drop(key):
                    del self.values[key]
                    self._growing.pop(key, None)
        if len(self.values) != keys:
            self._tally.kept += KEY_BYTES * (len(self.values) - keys)

    def drop_all(self) -> None:
        """Remove all keys and values."""
        self._tally.kept -= self.bytes + KEY_BYTES * len(self.values)
        self.values, self._growing, self.bytes = {}, {}, 0

    def _reading(self, op: Get | Wait | MultiGet) -> StoreEffect:
        """The effect of a call that reads keys. All of them exist."""
        match op:
            case Get(key):
                return StoreEffect(StoreValue(self.value(key)))
            case Wait():
                return StoreEffect(StoreValue(None))
            case MultiGet(keys):
                size = sum(len(self.values[key]) for key in keys)
                excess = self._limits.excess(answer_bytes_max=size)
                return StoreEffect(excess or StoreValue(tuple(self.value(key) for key in keys)))

    def _adding(self, key: str, amount: int) -> StoreEffect:
        current = _integer(self.values.get(key) or b"0")
        if current is None:
            message = f"the value of key {shown(key)} is not a 64-bit decimal integer"
            return StoreEffect(StoreFailure(NOT_AN_INTEGER, message))
        total = current + amount
        if not is_int64(total):
            message = f"the sum {total} of key {shown(key)} does not fit into 64 bits"
            return StoreEffect(StoreFailure(LIMIT, message))
        return self._writing(total, Put(key, b"%d" % total))

    def _comparing(self, op: CompareSet) -> StoreEffect:
        # An absent key equals an empty `expected`. If `expected` is not empty, it is the answer, as
        # in torch.
        absent = op.key not in self.values
        if (b"" if absent else self.values[op.key]) == op.expected:
            return self._writing(op.desired, Put(op.key, op.desired))
        return StoreEffect(StoreValue(op.expected if absent else self.value(op.key)))

    def _writing(self, answer: bytes | int | None, *writes: Put | Extend) -> StoreEffect:
        """The effect of a call that writes: a failure and no write if a limit forbids it."""
        largest, total, count = 0, self.bytes, len(self.values)
        for write in writes:
            before = self.values.get(write.key)
            size = len(write.value)
            if before is not None and isinstance(write, Extend):
                size += len(before)
            largest = max(largest, size)
            total += self._growth(write)
            count += before is None
        excess = self._limits.excess(value_bytes_max=largest, total_bytes_max=total, keys_max=count)
        return StoreEffect(excess) if excess else StoreEffect(StoreValue(answer), writes)

    def _growth(self, write: Write) -> int:
        """The bytes of keys and values that `write` adds. It may be negative."""
        before = self.values.get(write.key)
        if before is None:
            return 0 if isinstance(write, Drop) else key_bytes(write.key) + len(write.value)
        if isinstance(write, Put):
            return len(write.value) - len(before)
        if isinstance(write, Extend):
            return len(write.value)
        return -(key_bytes(write.key) + len(before))


_INTEGER: Final = re.compile(rb"[+-]?[0-9]{1,64}")


def _integer(value: bytes | bytearray) -> int | None:
    # int() alone also accepts spaces and underscores, and takes quadratic time for long numbers.
    number = int(value) if _INTEGER.fullmatch(value) else None
    return number if number is not None and is_int64(number) else None
