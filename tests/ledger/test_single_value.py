"""Many registers in one value: each has its own versions, and none is used twice."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.errors import LedgerCorruptError, LedgerError, LedgerFormatError
from rallypoint.ledger.contract import Conflict, Versioned
from rallypoint.ledger.single_value import Placed, RegisterMap, decode, encode

EMPTY = RegisterMap.empty("ledger")


def put(register_map: RegisterMap, key: str, value: bytes) -> RegisterMap:
    current = register_map.read(key)
    placed = register_map.swap(key, current.version if current else None, value)
    assert isinstance(placed, Placed)
    return placed.register_map


def test_a_swapped_value_is_read():
    placed = EMPTY.swap("a", None, b"1")
    assert isinstance(placed, Placed)
    assert placed.register_map.read("a") == Versioned(b"1", placed.version)
    assert EMPTY.read("a") is None


@pytest.mark.parametrize("expected", [None, 7])
def test_a_swap_that_names_another_version_is_in_conflict(expected: int | None):
    register_map = put(EMPTY, "a", b"1")
    assert register_map.swap("a", expected, b"2") == Conflict(register_map.read("a"))


def test_a_swap_of_a_missing_register_is_in_conflict():
    assert EMPTY.swap("a", 1, b"2") == Conflict(None)


def test_a_registers_version_changes_with_its_own_writes_only():
    register_map = put(EMPTY, "a", b"1")
    before = register_map.read("a")
    register_map = put(put(register_map, "b", b"1"), "b", b"2")
    assert register_map.read("a") == before


def test_a_recreated_register_does_not_repeat_versions():
    register_map = put(EMPTY, "a", b"1")
    gone = register_map.delete("a")
    assert gone is not None
    assert gone.read("a") is None
    again = put(gone, "a", b"1")
    assert again.read("a") != register_map.read("a")


def test_no_two_writes_leave_the_same_bytes():
    # An engine that compares values, not versions, would take the one for the other.
    seen = [encode(EMPTY)]
    register_map = EMPTY
    for _ in range(3):
        register_map = put(register_map, "a", b"1")
        seen.append(encode(register_map))
        gone = register_map.delete("a")
        assert gone is not None
        register_map = gone
        seen.append(encode(register_map))
    assert len(set(seen)) == len(seen)


def test_deleting_a_missing_register_needs_no_write():
    assert EMPTY.delete("a") is None


def test_registers_are_listed_in_order():
    register_map = put(put(put(EMPTY, "run/b", b""), "lease/x", b""), "run/a", b"")
    assert register_map.keys("run/") == ("run/a", "run/b")
    assert len(register_map.keys()) == 3


def test_an_encoded_map_decodes_to_the_same():
    register_map = put(put(EMPTY, "a", b"\x00"), "b", b"")
    assert decode(encode(register_map), "here") == register_map


@pytest.mark.parametrize("data", [b"", b"pickle", msgspec.msgpack.encode([0, "ledger"])])
def test_bytes_that_are_no_map_are_refused(data: bytes):
    with pytest.raises(LedgerCorruptError, match="here"):
        decode(data, "here")


@pytest.mark.parametrize("format", [1, 3])
def test_another_format_is_refused(format: int):
    other = msgspec.msgpack.encode([format, "ledger", 5, {}, "more"])
    with pytest.raises(LedgerFormatError, match=f"format {format}"):
        decode(other, "here")


@given(st.binary(max_size=100))
def test_any_bytes_raise_only_errors_of_ours(data: bytes):
    with contextlib.suppress(LedgerError):
        decode(data, "here")
