"""The keys and values of a round's store: what a call does to them, and how large they are.

`Data.effect_of` decides and changes nothing, `Data.commit` carries out `Write`s and can do so again
from a log. Nothing here waits, and nothing knows which node has called.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias, assert_never, cast

import msgspec

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

# Measured with CPython 3.11 to 3.13, and rounded up.
KEY_BYTES: Final = 150
"""What a key takes besides its text and its value: two objects, and an entry of a dict."""


class Put(msgspec.Struct, frozen=True, array_like=True, tag="put"):
    """`key` now has `value`."""

    key: str
    value: bytes


class Extend(msgspec.Struct, frozen=True, array_like=True, tag="ext"):
    """`value` now stands behind what `key` had, if anything."""

    key: str
    value: bytes


class Drop(msgspec.Struct, frozen=True, array_like=True, tag="drop"):
    """`key` is gone."""

    key: str


Write: TypeAlias = Put | Extend | Drop


class StoreEffect(msgspec.Struct, frozen=True):
    """What a call answers, and what it writes: at most one `Write` per key."""

    result: StoreResult
    writes: tuple[Write, ...] = ()


class Tally:
    """What a store keeps in memory, in bytes; and whether its sessions tell reads from writes."""

    __slots__ = ("kept", "tells_reads")

    def __init__(self) -> None:
        self.kept = 0
        self.tells_reads = False


class Data:
    """Keys and values, and the decision what a call does to them."""

    def __init__(self, limits: StoreLimits, tally: Tally) -> None:
        self._limits = limits
        self._tally = tally
        # A value that was appended to is a bytearray until it is read: copying it whole on each
        # append would make n appends cost n² bytes.
        self.values: dict[str, bytes | bytearray] = {}
        self._growing: dict[str, None] = {}  # The keys of all bytearrays.
        self.bytes = 0

    def usage(self) -> tuple[int, int]:
        return len(self.values), self.bytes

    def growth_of(self, writes: Iterable[Write]) -> int:
        """By how much the footprint grows with these writes."""
        growth = sum(map(self._growth, writes))
        for write in writes:
            if isinstance(write, Drop):
                growth -= KEY_BYTES
            elif write.key not in self.values:
                growth += KEY_BYTES
        return growth

    def items(self) -> list[tuple[str, bytes]]:
        return [(key, bytes(self.values[key])) for key in sorted(self.values)]

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def copy(self) -> dict[str, bytes]:
        """All keys and values, as they are now. Without a step of Python's for each key."""
        for key in list(self._growing):
            self._read(key)
        return cast(dict[str, bytes], self.values.copy())

    def value(self, key: str) -> bytes:
        return self._read(key)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that do not exist, each once, in their order."""
        return [key for key in dict.fromkeys(keys) if key not in self.values]

    def effect_of(self, op: DataOp) -> StoreEffect | None:
        """What `op` would answer and write now; None if it has to wait. Changes nothing."""
        if type(op) is Get:  # the last of the classes below, and one of the most frequent
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
        """Carry out what was decided. Replaying the writes of a log in order gives this data."""
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
                    self._extend(key, value)
                case Drop(key):
                    del self.values[key]
                    self._growing.pop(key, None)
        if len(self.values) != keys:
            self._tally.kept += KEY_BYTES * (len(self.values) - keys)

    def drop_all(self) -> None:
        """Keep nothing any more."""
        self._tally.kept -= self.bytes + KEY_BYTES * len(self.values)
        self.values, self._growing, self.bytes = {}, {}, 0

    def _reading(self, op: Get | Wait | MultiGet) -> StoreEffect:
        match op:
            case Get(key):
                return StoreEffect(StoreValue(self._read(key)))
            case Wait():
                return StoreEffect(StoreValue(None))
            case MultiGet(keys):
                size = sum(len(self.values[key]) for key in keys)
                excess = self._limits.excess("answer_bytes_max", size)
                return StoreEffect(excess or StoreValue(tuple(self._read(key) for key in keys)))

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
        # An absent key compares as empty, but is not: then `expected` comes back, as in torch.
        absent = op.key not in self.values
        if (b"" if absent else self.values[op.key]) == op.expected:
            return self._writing(op.desired, Put(op.key, op.desired))
        return StoreEffect(StoreValue(op.expected if absent else self._read(op.key)))

    def _writing(self, answer: bytes | int | None, *writes: Put | Extend) -> StoreEffect:
        """The effect of an op that writes: nothing at all if a limit stands against it."""
        excess = self._excess(writes)
        return StoreEffect(excess) if excess else StoreEffect(StoreValue(answer), writes)

    def _excess(self, writes: Sequence[Put | Extend]) -> StoreFailure | None:
        largest = max(map(self._length_after, writes), default=0)
        total = self.bytes + sum(map(self._growth, writes))
        count = len(self.values) + sum(write.key not in self.values for write in writes)
        return (
            self._limits.excess("value_bytes_max", largest)
            or self._limits.excess("total_bytes_max", total)
            or self._limits.excess("keys_max", count)
        )

    def _length_after(self, write: Put | Extend) -> int:
        before = len(self.values.get(write.key, b"")) if isinstance(write, Extend) else 0
        return before + len(write.value)

    def _growth(self, write: Write) -> int:
        """By how many bytes `write` makes the data larger."""
        before = self.values.get(write.key)
        held = 0 if before is None else key_bytes(write.key) + len(before)
        if isinstance(write, Drop):
            return -held
        return key_bytes(write.key) + self._length_after(write) - held

    def _extend(self, key: str, value: bytes) -> None:
        current = self.values.get(key, b"")
        if not isinstance(current, bytearray):
            current = self.values[key] = bytearray(current)
            self._growing[key] = None
        current += value

    def _read(self, key: str) -> bytes:
        value = self.values[key]
        if isinstance(value, bytearray):
            value = self.values[key] = bytes(value)
            del self._growing[key]
        return value


_INTEGER: Final = re.compile(rb"[+-]?[0-9]{1,64}")


def _integer(value: bytes | bytearray) -> int | None:
    # int() alone would also take spaces and underscores, and long digits at quadratic cost.
    number = int(value) if _INTEGER.fullmatch(value) else None
    return number if number is not None and is_int64(number) else None
