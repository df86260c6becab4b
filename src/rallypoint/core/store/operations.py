"""What can be asked of a round's store, what it answers, and the limits of both.

Values only: nothing here keeps a key, waits, or remembers an answer. A node, an agent and a worker
need nothing else of the store than this file.
"""

from __future__ import annotations

from typing import Final, TypeAlias, assert_never, cast

import msgspec

# ---- calls -------------------------------------------------------------------------------------


class _Op(msgspec.Struct, frozen=True, array_like=True):
    """Base of all calls; on the wire an array that begins with the tag."""


class Set(_Op, frozen=True, tag="set"):
    """Store `value` under `key`, whatever was there. Answers None."""

    key: str
    value: bytes


class Get(_Op, frozen=True, tag="get"):
    """Answer the value of `key`, once it exists."""

    key: str


class Add(_Op, frozen=True, tag="add"):
    """Add `amount` to the decimal integer of `key` (0 if absent or empty). Answers the sum.

    Fails with `not_an_integer`, or with `limit` where the sum does not fit into 64 bits.
    """

    key: str
    amount: int


class CompareSet(_Op, frozen=True, tag="cas"):
    """Replace `expected` by `desired`. Answers `desired` if it did, else the current value.

    An absent key is set if `expected` is empty; otherwise `expected` comes back, as in torch.
    """

    key: str
    expected: bytes
    desired: bytes


class Append(_Op, frozen=True, tag="app"):
    """Put `value` behind the value of `key`, or set it if it is absent. Answers None."""

    key: str
    value: bytes


class Wait(_Op, frozen=True, tag="wait"):
    """Answer None once all `keys` exist at the same time."""

    keys: tuple[str, ...]


class Check(_Op, frozen=True, tag="chk"):
    """Answer at once whether all `keys` exist."""

    keys: tuple[str, ...]


class MultiGet(_Op, frozen=True, tag="mget"):
    """Answer the values of `keys`, in their order, once all exist at the same time."""

    keys: tuple[str, ...]


class MultiSet(_Op, frozen=True, tag="mset"):
    """Store each value under its key, all or none; of a key named twice the last counts."""

    keys: tuple[str, ...]
    values: tuple[bytes, ...]


class DeleteKey(_Op, frozen=True, tag="del"):
    """Remove `key`. Answers whether it was there."""

    key: str


class NumKeys(_Op, frozen=True, tag="num"):
    """Answer how many keys there are."""


class Barrier(_Op, frozen=True, tag="bar"):
    """Worker `rank` has come to barrier `name`: answers None once every rank of the round has.

    The name can be used again at once. A rank that calls again while its call waits (its worker
    gave up and tries anew) takes over its own place; the older call is answered `timeout`.
    """

    name: str
    rank: int


DataOp: TypeAlias = (
    Set | Get | Add | CompareSet | Append | Wait | Check | MultiGet | MultiSet | DeleteKey | NumKeys
)
StoreOp: TypeAlias = DataOp | Barrier
READS: Final = frozenset({Get, MultiGet, Wait, Check, NumKeys})
"""The calls that change nothing, so that they can be made again."""

# ---- answers -----------------------------------------------------------------------------------

TIMEOUT: Final = "timeout"
NOT_AN_INTEGER: Final = "not_an_integer"
LIMIT: Final = "limit"
ROUND_ENDED: Final = "round_ended"
BAD_REQUEST: Final = "bad_request"


class StoreValue(msgspec.Struct, frozen=True, array_like=True, tag="ok"):
    """A call's result; its type is the call's."""

    value: bytes | int | bool | tuple[bytes, ...] | None


class StoreFailure(msgspec.Struct, frozen=True, array_like=True, tag="no"):
    """Why a call failed. `code` is one of the constants of this module.

    `missing` names, for a timeout, the keys that do not exist or the ranks that did not come, as
    `node-3` or, where a node has several workers, `node-3 (rank 25)`. It holds at most
    NAMES_SHOWN_MAX names, `missing_count` says how many there are.
    """

    code: str
    message: str
    missing: tuple[str, ...] = ()
    missing_count: int = 0


StoreResult: TypeAlias = StoreValue | StoreFailure


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What `node` is to be told about its request."""

    node: str
    request_id: int
    result: StoreResult


# ---- limits ------------------------------------------------------------------------------------


class StoreLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one round's store holds at most, so that no peer can exhaust the coordinator.

    Keys are measured in UTF-8. `total_bytes_max` is over keys and values. `answer_bytes_max` holds
    for a multi_get, which could name one large value thousands of times. A key that is waited for
    counts for `waiting_bytes_per_node_max` with its length and WAITING_KEY_BYTES of bookkeeping.
    Unacknowledged is a call that waits, or whose answer is remembered in case it is resent; a node
    above its `unacknowledged_bytes_per_node_max` has new calls refused. `unlogged_bytes_max` is for
    all writes that the log of a durable store has not taken yet, as while its ledger is away, and
    `unlogged_answers_max` for the answers that wait for them.

    Raises ValueError, from the constructor, for a limit below 1.
    """

    key_bytes_max: int = 4 * 1024
    value_bytes_max: int = 4 * 1024**2
    total_bytes_max: int = 256 * 1024**2
    keys_max: int = 1_000_000
    keys_per_call_max: int = 10_000
    answer_bytes_max: int = 64 * 1024**2
    waiting_calls_per_node_max: int = 10_000
    waiting_bytes_per_node_max: int = 64 * 1024**2
    unacknowledged_calls_per_node_max: int = 20_000
    unacknowledged_bytes_per_node_max: int = 256 * 1024**2
    unlogged_bytes_max: int = 64 * 1024**2
    unlogged_answers_max: int = 200_000

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    def excess(self, name: str, asked: int) -> StoreFailure | None:
        """The failure of a call that asks for more than the limit `name`; None if it fits."""
        allowed: int = getattr(self, name)
        if asked <= allowed:
            return None
        return StoreFailure(LIMIT, f"{name} is {allowed}, and this call came to {asked}")


DEFAULT_LIMITS: Final = StoreLimits()

# ---- what a call names, and what is wrong with it ----------------------------------------------

_OF_ONE_KEY: Final = frozenset({Set, Get, Add, CompareSet, Append, DeleteKey})
UTF8_BYTES_MAX: Final = 4
_SHOWN_CHARACTERS_MAX: Final = 64


def keys_of(op: StoreOp) -> tuple[str, ...]:
    """The keys that a call names; a barrier's name is held to the same limits."""
    if type(op) in _OF_ONE_KEY:  # a `match` would try one class after another, for every call
        return (cast(Get, op).key,)
    match op:
        case NumKeys():
            return ()
        case Barrier(name):
            return (name,)
        case Wait(keys) | Check(keys) | MultiGet(keys) | MultiSet(keys):
            return keys
        case Set(key) | Get(key) | Add(key) | CompareSet(key) | Append(key) | DeleteKey(key):
            return (key,)
        case _:
            assert_never(op)


def shape_objection(op: StoreOp) -> StoreFailure | None:
    if isinstance(op, MultiSet) and len(op.keys) != len(op.values):
        message = f"{len(op.keys)} keys, but {len(op.values)} values"
        return StoreFailure(BAD_REQUEST, message)
    if isinstance(op, Add) and not is_int64(op.amount):
        return StoreFailure(BAD_REQUEST, "the amount does not fit into 64 bits")
    return None


def is_int64(number: int) -> bool:
    return -(2**63) <= number < 2**63


def key_bytes(key: str) -> int:
    return len(key) if key.isascii() else len(key.encode("utf-8", "surrogatepass"))


def listed(what: str, total: int, count: int, names: tuple[str, ...]) -> str:
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return f"{count} of {total} {what}: {', '.join(map(shown, names))}{more}"


def shown(name: str) -> str:
    """A name for a message: in full unless it is very long, and quoted where it needs it."""
    text = name if name.isprintable() and name else repr(name)
    if len(text) <= _SHOWN_CHARACTERS_MAX:
        return text
    return f"{text[:_SHOWN_CHARACTERS_MAX]}..."
