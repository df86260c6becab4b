"""Values for the fuzzer, made from types: most of them right, some at a bound, some wrong.

A maker reads the annotations of the shipped messages, so that a field that is added is fuzzed too.
It gives what msgspec encodes: lists, dicts, numbers, texts, bytes and, for bytes that no encoder
would write, `msgspec.Raw`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final

import msgspec
from msgspec import inspect

Make = Callable[[Random], Any]
Pools = Mapping[str, Make]
"""For a field's name: values that mean something where the message arrives."""

INTS: Final = (0, 1, 2, 3, -1, 5, 100, 4_096, 65_535, 2**31, 2**63 - 1, -(2**63), 2**64 - 1)
FLOATS: Final = (
    *(0.0, -0.0, 1.0, -1.0, 0.01, 1e-9, 5.0, 1e308, 1e-320),
    *(math.inf, -math.inf, math.nan),
)
TEXTS: Final = (
    *("", "a", "n0", "n1", "a/b", "..", "../..", "%2e", " ", "\0", "\n", "\r\n", "\x1b[2J", "\x9b"),
    *("\u202e", "\ufeff", "\ufffd", "\U0001f600" * 3, "{", "0", "-1", "1e999", "nan", "café"),
    "x" * 41,
)
BYTES: Final = (b"", b"1", b"-5", b"12x", b" 1", b"9" * 64, b"0" * 100, b"\xff", b"\0" * 40)

_STRANGE: Final = tuple(
    msgspec.Raw(each)
    for each in (
        b"\xc1",  # never used
        b"\xd9\x02\xff\xfe",  # a text that is no UTF-8
        b"\xa3\xed\xa0\x80",  # a lone surrogate
        b"\xdb\xff\xff\xff\xff",  # a text, an array, a map, bytes of 4 GiB
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc7\xff\x01",  # extensions
        b"\xd6\xff\xff\xff\xff\xff",
        b"\xc7\x0c\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xcf" + b"\xff" * 8,
        b"\xd3\x80" + b"\0" * 7,
        b"\xcb\x7f\xf0" + b"\0" * 6,
        b"\xcb\x7f\xf8" + b"\0" * 6,
        b"\x81\xc0\xc0",
        b"\x82\xa1a\x01\xa1a\x02",  # a key twice
        b"\x91" * 40 + b"\xc0",
        b"\x91" * 2_000 + b"\xc0",
        b"\x81\xa1a" * 1_200 + b"\xc0",
        b"",
    )
)


def hostile(rng: Random) -> Any:
    """A value of any type, wherever it is not expected."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(INTS)
    if kind == 1:
        return rng.choice(FLOATS)
    if kind == 2:
        return rng.choice(TEXTS)
    if kind == 3:
        return rng.choice(BYTES)
    if kind == 4:
        return rng.choice((None, True, False, [], {}, [None], {"a": 1}, [[]], {1: 2}))
    if kind == 5:
        return [hostile(rng) for _ in range(rng.randrange(4))]
    if kind == 6:
        return {rng.choice(TEXTS): hostile(rng) for _ in range(rng.randrange(3))}
    return rng.choice(_STRANGE)


class Maker:
    """Makes values of one type. `wrong`: how often a value is of another type, 0 to 1."""

    def __init__(self, type: Any, pools: Pools | None = None, wrong: float = 0.01) -> None:
        self.pools: dict[str, Make] = dict(pools or {})
        self._wrong = wrong
        self._made: dict[Any, Make] = {}
        self.make = self._of(inspect.type_info(type))

    def _of(self, info: inspect.Type) -> Make:
        right = self._right(info)
        wrong = self._wrong

        def make(rng: Random) -> Any:
            return hostile(rng) if rng.random() < wrong else right(rng)

        return make

    def _right(self, info: inspect.Type) -> Make:
        match info:
            case inspect.IntType():
                return _int(info)
            case inspect.FloatType():
                return lambda rng: rng.choice(FLOATS) if rng.random() < 0.7 else rng.random() * 10
            case inspect.StrType():
                return _text(info)
            case inspect.BytesType():
                return _bytes(info)
            case inspect.BoolType():
                return lambda rng: rng.random() < 0.5
            case inspect.NoneType():
                return lambda rng: None
            case inspect.EnumType():
                values = [each.value for each in info.cls]
                return lambda rng: rng.choice(values)
            case inspect.LiteralType():
                return lambda rng: rng.choice(info.values)
            case inspect.VarTupleType() | inspect.ListType():
                return self._items(info)
            case inspect.TupleType():
                parts = [self._of(each) for each in info.item_types]
                return lambda rng: [part(rng) for part in parts]
            case inspect.DictType():
                return self._mapping(info)
            case inspect.UnionType():
                kinds = [self._of(each) for each in info.types]
                return lambda rng: rng.choice(kinds)(rng)
            case inspect.StructType():
                return self._struct(info)
            case _:
                return hostile

    def _items(self, info: inspect.VarTupleType | inspect.ListType) -> Make:
        item, most = self._of(info.item_type), info.max_length

        def make(rng: Random) -> list[Any]:
            count = rng.choice((0, 0, 1, 1, 2, 3, 9))
            if most is not None and most <= 64 and rng.random() < 0.02:
                count = most + rng.randrange(2)
            return [item(rng) for _ in range(count)]

        return make

    def _mapping(self, info: inspect.DictType) -> Make:
        key, value = self._of(info.key_type), self._of(info.value_type)

        def make(rng: Random) -> dict[Any, Any]:
            pairs = [(key(rng), value(rng)) for _ in range(rng.choice((0, 0, 1, 2)))]
            return {k: v for k, v in pairs if isinstance(k, str | int | bytes)}

        return make

    def _struct(self, info: inspect.StructType) -> Make:
        if info.cls in self._made:
            return self._made[info.cls]
        built: list[Make] = []
        # A type may hold itself.
        self._made[info.cls] = lambda rng: built[0](rng)
        fields = [(each.encode_name, self._field(each)) for each in info.fields]
        tag = [info.tag] if info.tag is not None else []
        needed = len(tag) + sum(each.required for each in info.fields)

        def as_array(rng: Random) -> list[Any]:
            found = tag + [make(rng) for _, make in fields]
            if rng.random() < 0.05:  # as an older or a newer release would send it
                found = found[: rng.randint(needed, len(found))]
                found += [hostile(rng) for _ in range(rng.choice((0, 0, 1)))]
            return found

        def as_map(rng: Random) -> dict[str, Any]:
            found = {name: make(rng) for name, make in fields}
            return {info.tag_field: info.tag, **found} if tag and info.tag_field else found

        built.append(as_array if info.array_like else as_map)
        return built[0]

    def _field(self, field: inspect.Field) -> Make:
        make, pools, name = self._of(field.type), self.pools, field.name

        def pooled(rng: Random) -> Any:
            pool = pools.get(name)
            return pool(rng) if pool is not None and rng.random() < 0.98 else make(rng)

        return pooled


def _int(info: inspect.IntType) -> Make:
    least = info.ge if info.ge is not None else -(2**63)
    most = info.le if info.le is not None else 2**64 - 1
    within = [each for each in INTS if least <= each <= most] or [int(least)]
    edges = [int(least), int(most), max(-(2**63), int(least) - 1), min(2**64 - 1, int(most) + 1)]
    return lambda rng: rng.choice(within) if rng.random() < 0.95 else rng.choice(edges)


def _text(info: inspect.StrType) -> Make:
    least, most = info.min_length or 0, info.max_length

    def make(rng: Random) -> str:
        text = rng.choice(TEXTS)
        if len(text) < least and rng.random() < 0.9:
            text = "n"
        if most is not None and rng.random() < 0.02:
            text = rng.choice(("x", "\U0001f600", "\n")) * (most + rng.randrange(2))
        return text

    return make


def _bytes(info: inspect.BytesType) -> Make:
    most = info.max_length

    def make(rng: Random) -> bytes:
        if most is not None and rng.random() < 0.05:
            return b"\xff" * (most + rng.randrange(2))
        return rng.choice(BYTES)

    return make


_encoder: Final = msgspec.msgpack.Encoder()


def packed(value: Any) -> bytes:
    """As msgpack, of any type."""
    try:
        return _encoder.encode(value)
    except (TypeError, OverflowError, UnicodeEncodeError):
        return b"\xc1"


def bent(data: bytes, rng: Random) -> bytes:
    """The bytes with some of them changed, lost, doubled or moved."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(found) + 1)
        match rng.randrange(6):
            case 0 if at < len(found):
                found[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(found):
                found[at] = rng.choice((0, 1, 0x7F, 0x80, 0xC0, 0xC1, 0xFF, rng.randrange(256)))
            case 2:
                del found[at:]
            case 3:
                del found[at : at + rng.randrange(1, 9)]
            case 4:
                found[at:at] = rng.randbytes(rng.randrange(1, 5))
            case _:
                found[at:at] = found[max(0, at - rng.randrange(1, 17)) : at]
    return bytes(found)
