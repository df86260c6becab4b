"""The store of a round as one copy would be: what `linearizability` compares calls with.

What must not be here: who made the calls, and how they became known.
"""

from __future__ import annotations

from typing import Any, Final

from rallypoint.core.store import (
    READS,
    Add,
    Append,
    Check,
    CompareSet,
    DeleteKey,
    Get,
    MultiGet,
    MultiSet,
    Set,
    StoreOp,
    StoreValue,
    Wait,
)
from rallypoint.simulation.linearizability import Call

Stored = tuple[tuple[str, bytes], ...]
"""The keys of one family that exist, in order, and their values."""
NOTHING: Final[Stored] = ()


def family(operation: StoreOp) -> str:
    """The keys whose history is one: those that are written together, else one key."""
    keys = getattr(operation, "keys", None)
    key: str = keys[0] if keys else getattr(operation, "key", "")
    return key.partition("/")[0]


def is_free(call: Call) -> bool:
    """Whether it is a read without an answer, which may have any place in the order."""
    return call.is_unknown and type(call.operation) in READS


def changes_nothing(operation: StoreOp, result: StoreValue) -> bool:
    """Whether a call with this answer has changed nothing, whatever was stored before."""
    match operation:
        case CompareSet(desired=desired):
            return result.value != desired
        case DeleteKey():
            return result.value is False
    return type(operation) in READS


def step(stored: Stored, operation: Any, result: StoreValue | None) -> tuple[bool, Stored]:
    """One family of keys: (whether the answer can be, what is stored after it)."""
    match operation:
        case MultiSet(keys=keys, values=values):
            after = stored
            for key, value in zip(keys, values, strict=True):
                after = _with(after, key, value)
            return result in (None, StoreValue(None)), after
        case MultiGet(keys=keys):
            there = dict(stored)
            found = tuple(there.get(key) for key in keys)
            # It waits for all its keys at once.
            return result is None or (None not in found and result.value == found), stored
        case Wait(keys=keys):
            is_there = {key for key, _ in stored}.issuperset(keys)
            return result is None or (is_there and result.value is None), stored
        case Check(keys=keys):
            is_there = {key for key, _ in stored}.issuperset(keys)
            return result in (None, StoreValue(is_there)), stored
    can_be, now = _step_of_a_key(dict(stored).get(operation.key), operation, result)
    return can_be, _with(stored, operation.key, now)


def _with(stored: Stored, key: str, value: bytes | None) -> Stored:
    others = [each for each in stored if each[0] != key]
    return tuple(sorted([*others, (key, value)])) if value is not None else tuple(others)


def _step_of_a_key(
    state: bytes | None, operation: Any, result: StoreValue | None
) -> tuple[bool, bytes | None]:
    """One key: (whether the answer can be, its value after it)."""
    match operation:
        case Add(amount=amount):
            total = int(state or b"0") + amount
            return result in (None, StoreValue(total)), b"%d" % total
        case Set(value=value):
            return result in (None, StoreValue(None)), value
        case Append(value=value):
            return result in (None, StoreValue(None)), (state or b"") + value
        case DeleteKey():
            return result in (None, StoreValue(state is not None)), None
        case CompareSet(expected=expected, desired=desired):
            matches = state == expected if expected else state is None or state == expected
            after = desired if matches else state
            return result in (None, StoreValue(after if after is not None else expected)), after
        case Get():
            # It waits for the key.
            return result is None or (state is not None and result == StoreValue(state)), state
    raise AssertionError(operation)


def shown(call: Call) -> str:
    """For a person."""
    ended = "?" if call.is_unknown else f"{call.ended_s:.3f}"
    return f"{call.caller} {call.began_s:.3f}-{ended} {call.operation} = {call.result}"
