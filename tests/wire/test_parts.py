"""A large message in pieces has the same bytes as the whole message."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rallypoint.core.store import Get, MultiGet, Set, StoreFailure, StoreValue
from rallypoint.core.values import Stamp
from rallypoint.wire import local, parts
from rallypoint.wire import messages as wire

SIZES = (0, 1, 255, 256, 65_535, 65_536, 70_000)
STAMP = Stamp("ledger", 7, 300)


@pytest.mark.parametrize("bytes_max", [1, 1000, 64 * 1024, 1 << 20])
@pytest.mark.parametrize(
    "value",
    [
        *map(bytes, SIZES),
        tuple(map(bytes, SIZES)),
        (b"x" * 1000,) * 15,
        (b"x" * 1000,) * 16,
        (b"",) * 70_000,
        (),
    ],
    ids=lambda value: f"{type(value).__name__} of {len(value)}",
)
def test_the_parts_of_an_answer_are_its_encoding(
    value: bytes | tuple[bytes, ...], bytes_max: int
) -> None:
    if bytes_max == 1 and len(value) > 60_000:
        bytes_max = 100
    answer = wire.StoreAnswer(STAMP, 2**40, StoreValue(value))
    made = parts.answer_parts(answer)
    pieces = [bytes(piece) for piece in made.pieces(bytes_max)]
    assert b"".join(pieces) == wire.encode(answer)
    assert made.size == sum(map(len, pieces))
    assert max(map(len, pieces)) <= max(bytes_max, len(made.head)) + 5


@pytest.mark.parametrize("value", [bytes(100_000), (b"x" * 5000,) * 20], ids=["bytes", "tuple"])
def test_the_parts_of_a_local_answer_are_its_encoding(value: bytes | tuple[bytes, ...]) -> None:
    answer = local.Answer(2**33, StoreValue(value))
    made = parts.local_answer_parts(answer)
    assert b"".join(made.pieces(10_000)) == local.encode(answer)
    assert made.size == len(local.encode(answer))


def test_the_parts_of_a_member_table_are_its_encoding() -> None:
    rows = msgspec.msgpack.encode(["a row"] * 30_000)
    message = wire.EncodedMembers(STAMP, 5, 300, "digest", msgspec.Raw(rows))
    made = parts.members_parts(message)
    assert b"".join(made.pieces(10_000)) == wire.encode(message)
    assert made.size == len(wire.encode(message))


@pytest.mark.parametrize(
    ("value", "is_large"),
    [
        (b"x" * parts.LARGE_FROM_BYTES, True),
        (b"x" * (parts.LARGE_FROM_BYTES - 1), False),
        ((b"x" * 1000,) * 100, True),
        ((b"x",), False),
        (1, False),
        (None, False),
    ],
)
def test_large_values_are_recognized(
    value: bytes | tuple[bytes, ...] | int | None, is_large: bool
) -> None:
    assert parts.is_large(StoreValue(value)) is is_large
    assert not parts.is_large(StoreFailure("limit", "x" * parts.LARGE_FROM_BYTES))


ids = st.integers(-(2**63), 2**63 - 1)


@given(
    st.text(max_size=40),
    st.integers(0, 2**62),
    st.integers(0, 2**62),
    ids,
    st.sampled_from([Set("k", bytes(3000)), Get("k"), MultiGet(("key",) * 500)]),
)
@settings(deadline=None)
def test_the_number_of_a_call_is_in_its_first_bytes(
    ledger_id: str, term: int, number: int, request_id: int, op: Set | Get | MultiGet
) -> None:
    call = wire.StoreCall(Stamp(ledger_id, term, number), request_id, op, 1.0)
    whole = wire.encode(call)
    assert parts.request_id_of(whole[:1024]) == request_id
    for cut in range(20):
        assert parts.request_id_of(whole[:cut]) in (None, request_id)


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_other_bytes_have_no_call_number(data: bytes) -> None:
    assert parts.request_id_of(data) is None or data[1:6] == b"\xa4call"
    assert parts.request_id_of(wire.encode(wire.Heartbeat(STAMP))) is None
    assert parts.request_id_of(wire.encode(wire.StoreCancel(STAMP, 3))) is None
