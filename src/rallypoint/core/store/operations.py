"""The calls of a round's store, their answers, and the limits of both.

Only values are here: no keys, no waits, no remembered answers. Nodes, agents and workers need no
other file of this package.
"""

from __future__ import annotations

from typing import Final, TypeAlias, assert_never, cast

from rallypoint.core.values import FrozenStruct

# ---- calls -------------------------------------------------------------------------------------


class Operation(FrozenStruct, frozen=True):
    """Base of all calls; on the wire an array that begins with the tag."""


class Set(Operation, frozen=True, tag="set"):
    """Store `value` under `key`, in place of any value before. Answers None."""

    key: str
    value: bytes


class Get(Operation, frozen=True, tag="get"):
    """Answer the value of `key`, once it exists."""

    key: str


class Add(Operation, frozen=True, tag="add"):
    """Add `amount` to the decimal integer of `key` (0 if absent or empty). Answers the sum.

    Fails with `not_an_integer`, or with `limit` if the sum does not fit into 64 bits.
    """

    key: str
    amount: int


class CompareSet(Operation, frozen=True, tag="cas"):
    """Replace `expected` by `desired`. Answers `desired` if it did, else the current value.

    An absent key is set if `expected` is empty; otherwise `expected` comes back, as in torch.
    """

    key: str
    expected: bytes
    desired: bytes


class Append(Operation, frozen=True, tag="app"):
    """Add `value` at the end of the value of `key`, or set it if it is absent. Answers None."""

    key: str
    value: bytes


class Wait(Operation, frozen=True, tag="wait"):
    """Answer None once all `keys` exist at the same time."""

    keys: tuple[str, ...]


class Check(Operation, frozen=True, tag="chk"):
    """Answer at once whether all `keys` exist."""

    keys: tuple[str, ...]


class MultiGet(Operation, frozen=True, tag="mget"):
    """Answer the values of `keys`, in their order, once all exist at the same time."""

    keys: tuple[str, ...]


class MultiSet(Operation, frozen=True, tag="mset"):
    """Store each value under its key, all or none. If a key occurs twice, its last value counts."""

    keys: tuple[str, ...]
    values: tuple[bytes, ...]


class DeleteKey(Operation, frozen=True, tag="del"):
    """Remove `key`. Answers whether it was there."""

    key: str


class NumKeys(Operation, frozen=True, tag="num"):
    """Answer the number of keys."""


class Barrier(Operation, frozen=True, tag="bar"):
    """Worker `rank` waits at barrier `name`. Answers None once every rank of the round waits there.

    The name can be used again at once. If a rank calls again while its call waits (a worker gave up
    and tries again), the new call replaces the older one, which is answered `timeout`.
    """

    name: str
    rank: int


DataOp: TypeAlias = (
    Set | Get | Add | CompareSet | Append | Wait | Check | MultiGet | MultiSet | DeleteKey | NumKeys
)
StoreOp: TypeAlias = DataOp | Barrier
READS: Final = frozenset({Get, MultiGet, Wait, Check, NumKeys})
"""The calls that change nothing. They can be repeated without harm."""

# ---- answers -----------------------------------------------------------------------------------

TIMEOUT: Final = "timeout"
NOT_AN_INTEGER: Final = "not_an_integer"
LIMIT: Final = "limit"
ROUND_ENDED: Final = "round_ended"
BAD_REQUEST: Final = "bad_request"


class StoreValue(FrozenStruct, frozen=True, tag="ok"):
    """A call's result; its type is the call's."""

    value: bytes | int | bool | tuple[bytes, ...] | None


class StoreFailure(FrozenStruct, frozen=True, tag="no"):
    """Why a call failed.

    `code` is one of TIMEOUT, NOT_AN_INTEGER, LIMIT, ROUND_ENDED and BAD_REQUEST. For a timeout,
    `missing` has the keys that do not exist, or the ranks that are not at the barrier: `node-3`, or
    `node-3 (rank 25)` for a node with several workers. It has at most NAMES_SHOWN_MAX names;
    `missing_count` is the full number.
    """

    code: str
    message: str
    missing: tuple[str, ...] = ()
    missing_count: int = 0


StoreResult: TypeAlias = StoreValue | StoreFailure


class Answer(FrozenStruct, frozen=True):
    """The answer to a request of `node`."""

    node: str
    request_id: int
    result: StoreResult


# ---- limits ------------------------------------------------------------------------------------


class StoreLimits(FrozenStruct, frozen=True, kw_only=True):
    """The limits of one round's store, so that no peer can exhaust the coordinator.

    The length of a key is that of its UTF-8. `total_bytes_max` counts keys and values.
    `answer_bytes_max` limits a multi_get, which could name one large value thousands of times. For
    `waiting_bytes_per_node_max`, a key that a call waits for counts with its length and
    `waits.WAITING_KEY_BYTES`. A call is unacknowledged while it waits, and while its answer is
    remembered because the node may ask again. Above its `unacknowledged_bytes_per_node_max`, new
    calls of a node are refused. `unlogged_bytes_max` limits the writes that are not in the log of a
    durable store yet (while its ledger is unreachable), and `unlogged_answers_max` the answers that
    wait for them.

    Raises:
        ValueError: from the constructor, for a limit below 1.
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

    def excess(self, **asked: int) -> StoreFailure | None:
        """The failure of a call that asks for more than a limit allows; None if it fits.

        `asked` has an amount for each limit that counts, by its name. The first excess is returned.
        """
        for name, amount in asked.items():
            allowed: int = getattr(self, name)
            if amount > allowed:
                return StoreFailure(LIMIT, f"{name} is {allowed}, and this call needs {amount}")
        return None


DEFAULT_LIMITS: Final = StoreLimits()

# ---- the keys of a call, and why it is refused -------------------------------------------------

_OF_ONE_KEY: Final = frozenset({Set, Get, Add, CompareSet, Append, DeleteKey})
UTF8_BYTES_MAX: Final = 4
"""The most bytes of one character."""
_SHOWN_CHARACTERS_MAX: Final = 64


def keys_of(op: StoreOp) -> tuple[str, ...]:
    """The keys that a call names. A barrier's name counts as one: the same limits hold for it."""
    if type(op) in _OF_ONE_KEY:  # Nearly every call. A `match` would try class after class.
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


def refusal(op: StoreOp, limits: StoreLimits) -> StoreFailure | None:
    """Why a store with these limits refuses this call, with any data; None if it may apply it."""
    problem = malformed(op)
    if problem is not None:
        return problem
    keys = keys_of(op)
    if len(keys) == 1 and UTF8_BYTES_MAX * len(keys[0]) <= limits.key_bytes_max:
        return None  # Nearly every call. Its key need not be measured.
    longest = max(map(key_bytes, keys), default=0)
    return limits.excess(keys_per_call_max=len(keys), key_bytes_max=longest)


def malformed(op: StoreOp) -> StoreFailure | None:
    """Why every store refuses this call; None if a store may apply it."""
    if isinstance(op, MultiSet) and len(op.keys) != len(op.values):
        message = f"{len(op.keys)} keys, but {len(op.values)} values"
        return StoreFailure(BAD_REQUEST, message)
    if isinstance(op, Add) and not is_int64(op.amount):
        return StoreFailure(BAD_REQUEST, "the amount does not fit into 64 bits")
    return None


def is_int64(number: int) -> bool:
    """Whether the number fits into a signed integer of 64 bits."""
    return -(2**63) <= number < 2**63


def key_bytes(key: str) -> int:
    """The length of a key in UTF-8."""
    return len(key) if key.isascii() else len(key.encode("utf-8", "surrogatepass"))


def listed(what: str, total: int, count: int, names: tuple[str, ...]) -> str:
    """For a message: "2 of 9 keys do not exist: a, b". `names` may be the first of `count`."""
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return f"{count} of {total} {what}: {', '.join(map(shown, names))}{more}"


def shown(name: str) -> str:
    """A name for a message: cut if it is very long, and quoted if it has unprintable characters."""
    text = name if name.isprintable() and name else repr(name)
    if len(text) <= _SHOWN_CHARACTERS_MAX:
        return text
    return f"{text[:_SHOWN_CHARACTERS_MAX]}..."
