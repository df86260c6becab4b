"""Large messages in pieces: the bytes of `messages.encode`, but never all of them at once.

The last field of these messages is one value or several. So the bytes are a short head, and then
each value after its own header (the `bin` and `array` formats of msgpack).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from rallypoint.core.store import StoreResult, StoreValue
from rallypoint.core.values import FrozenStruct
from rallypoint.wire import local
from rallypoint.wire import messages as wire

LARGE_FROM_BYTES: Final = 64 * 1024
"""A smaller answer is encoded as a whole, which costs less."""
_NIL: Final = b"\xc0"


class Parts(FrozenStruct, frozen=True):
    """A message of `size` bytes: `head`, and then the values, each after its own header.

    `is_raw`: the values have no headers.
    """

    size: int
    head: bytes
    values: tuple[bytes, ...]
    is_raw: bool = False

    def pieces(self, bytes_max: int) -> Iterator[bytes | memoryview]:
        """The bytes of the message, in order: at most `bytes_max` of a value at a time."""
        gathered = bytearray(self.head)
        for value in self.values:
            if not self.is_raw:
                gathered += _bin_header(len(value))
            if len(gathered) + len(value) <= bytes_max:
                gathered += value
                continue
            yield bytes(gathered)
            gathered.clear()
            view = memoryview(value)
            for begin in range(0, len(value), bytes_max):
                yield view[begin : begin + bytes_max]
        if gathered:
            yield bytes(gathered)


def is_large(result: StoreResult) -> bool:
    """Whether to make the answer with this result in pieces."""
    value = result.value if type(result) is StoreValue else None
    if type(value) is bytes:
        return len(value) >= LARGE_FROM_BYTES
    return type(value) is tuple and sum(map(len, value)) >= LARGE_FROM_BYTES


def answer_parts(message: wire.StoreAnswer) -> Parts:
    """An answer whose result `is_large`."""
    assert isinstance(message.result, StoreValue)
    value = message.result.value
    empty = wire.StoreAnswer(message.stamp, message.request_id, StoreValue(None))
    head = _head(empty)
    if isinstance(value, tuple):
        return _parts(head + _array_header(len(value)), value)
    assert isinstance(value, bytes)
    return _parts(head, (value,))


def local_answer_parts(answer: local.Answer) -> Parts:
    """The same for a message to a worker, with the length of its frame."""
    assert isinstance(answer.result, StoreValue)
    value = answer.result.value
    empty = local.encode(local.Answer(answer.request_id, StoreValue(None)))
    head = empty[local.LENGTH.size :].removesuffix(_NIL)
    if isinstance(value, tuple):
        body = _parts(head + _array_header(len(value)), value)
    else:
        assert isinstance(value, bytes)
        body = _parts(head, (value,))
    length = local.LENGTH.pack(body.size)
    return Parts(body.size + len(length), length + body.head, body.values)


def members_parts(message: wire.EncodedMembers) -> Parts:
    """A member table that is already encoded."""
    rows = bytes(message.members)
    head = _head(msgspec.structs.replace(message, members=msgspec.Raw(_NIL)))
    return Parts(len(head) + len(rows), head, (rows,), is_raw=True)


def request_id_of(start: bytes) -> int | None:
    """The request id of the store call that begins with these bytes; None if that is not known."""
    try:
        count, at = _read_array(start, 0)
        tag, at = _read_text(start, at)
        if count < 4 or tag != b"call":
            return None
        fields, at = _read_array(start, at)
        if fields != 3:
            return None
        _, at = _read_text(start, at)
        for _ in range(2):
            _, at = _read_number(start, at)
        return _read_number(start, at)[0]
    except (IndexError, struct.error):
        return None


def _read_array(data: bytes, at: int) -> tuple[int, int]:
    """An array's length, and where its first element is. Raises IndexError for anything else."""
    if data[at] & 0xF0 == 0x90:
        return data[at] & 0x0F, at + 1
    if data[at] == 0xDC:
        return int(struct.unpack_from("!H", data, at + 1)[0]), at + 3
    raise IndexError


def _read_text(data: bytes, at: int) -> tuple[bytes, int]:
    if data[at] & 0xE0 == 0xA0:
        size, begin = data[at] & 0x1F, at + 1
    elif data[at] == 0xD9:
        size, begin = data[at + 1], at + 2
    else:
        raise IndexError
    return data[begin : begin + size], begin + size


_NUMBERS: Final = {0xCC: "!B", 0xCD: "!H", 0xCE: "!I", 0xCF: "!Q"}
_NUMBERS_SIGNED: Final = {0xD0: "!b", 0xD1: "!h", 0xD2: "!i", 0xD3: "!q"}


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    first = data[at]
    if first < 0x80:
        return first, at + 1
    if first >= 0xE0:
        return first - 0x100, at + 1
    kind = _NUMBERS.get(first) or _NUMBERS_SIGNED.get(first)
    if kind is None:
        raise IndexError
    return int(struct.unpack_from(kind, data, at + 1)[0]), at + 1 + struct.calcsize(kind)


def _head(message: wire.Message) -> bytes:
    """All bytes of a message except its last field, which is None."""
    return wire.encode(message).removesuffix(_NIL)


def _parts(head: bytes, values: tuple[bytes, ...]) -> Parts:
    size = len(head) + sum(len(_bin_header(len(value))) + len(value) for value in values)
    return Parts(size, head, values)


def _bin_header(size: int) -> bytes:
    if size < 1 << 8:
        return struct.pack("!BB", 0xC4, size)
    if size < 1 << 16:
        return struct.pack("!BH", 0xC5, size)
    return struct.pack("!BI", 0xC6, size)


def _array_header(count: int) -> bytes:
    if count < 16:
        return bytes((0x90 | count,))
    if count < 1 << 16:
        return struct.pack("!BH", 0xDC, count)
    return struct.pack("!BI", 0xDD, count)
