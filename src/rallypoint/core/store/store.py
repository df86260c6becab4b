"""The key-value store of one round, with the semantics of torch.distributed.Store, and barriers.

A deterministic machine: calls and times go in, answers come out, and the same inputs in the same
order give the same answers. What a call does to the data is decided apart from who waits and who
is answered: `_Data.effect_of` decides and changes nothing, `_Data.commit` carries out `Write`s and
can do so again from a log. Sockets, durability and the choice of the round belong to the layers
above. For the layer that makes it durable the store lists what each call wrote and was answered
(`take_settled`), repeats that (`redo`), and lists all that it holds (`snapshot`, `load`).

Where torch's stores differ among themselves, HashStore is followed, but for one thing: `add` on a
value that only begins like an integer ("12x") is an error here, not 12.
"""

from __future__ import annotations

import enum
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Final, TypeAlias, assert_never, cast

import msgspec

from rallypoint.core.values import NAMES_SHOWN_MAX

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

# ---- what is kept, in memory -------------------------------------------------------------------

# Measured with CPython 3.11 to 3.13, and rounded up.
KEY_BYTES: Final = 150
"""What a key takes besides its text and its value: two objects, and an entry of a dict."""
CALL_BYTES: Final = 220
"""What a call takes besides its answer, until that is acknowledged."""
WAITING_CALL_BYTES: Final = 250
"""What a call that waits takes besides that and its keys: its deadline, its place in a line."""
WAITING_KEY_BYTES: Final = 350
"""What a key takes that is waited for, besides its text."""
OPEN_ID_BYTES: Final = 100
"""What the number of a request takes that an acknowledgement leaves open."""
REMEMBERED_READ_BYTES_MAX: Final = 1024
"""The answer of a read that is larger is not kept: a node that asks again has the call made again.
Thousands of them would keep alive what was overwritten long ago."""

# ---- the data: deciding, then writing ----------------------------------------------------------


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


class AsStored(msgspec.Struct, frozen=True, array_like=True, tag="as"):
    """The result is the value that `key` has after the writes: it need not be written twice."""

    key: str


class Settled(msgspec.Struct, frozen=True, array_like=True, tag="did"):
    """What a call wrote and what it was answered: all that is needed to repeat both (R10, R11)."""

    node: str
    request_id: int
    result: StoreValue | StoreFailure | AsStored
    writes: tuple[Write, ...] = ()


class Acknowledged(msgspec.Struct, frozen=True, array_like=True, tag="ack"):
    """Of a snapshot: the node has the answers up to this id, but for those `still_open`.

    With more than fit into one item there are several, for the same `up_to`.
    """

    node: str
    up_to: int
    still_open: tuple[int, ...] = ()


class MoreBytes(msgspec.Struct, frozen=True, array_like=True, tag="more"):
    """Of a snapshot: what follows the bytes that this call was answered in an item before."""

    node: str
    request_id: int
    value: bytes


SnapshotItem: TypeAlias = Put | Extend | Acknowledged | Settled | MoreBytes


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


class _Data:
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
            message = f"the value of key {_shown(key)} is not a 64-bit decimal integer"
            return StoreEffect(StoreFailure(NOT_AN_INTEGER, message))
        total = current + amount
        if not _is_int64(total):
            message = f"the sum {total} of key {_shown(key)} does not fit into 64 bits"
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
        held = 0 if before is None else _key_bytes(write.key) + len(before)
        if isinstance(write, Drop):
            return -held
        return _key_bytes(write.key) + self._length_after(write) - held

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


# ---- who waits, and who was answered -----------------------------------------------------------


class _Call:
    """A call that was admitted. It is compared by identity."""

    __slots__ = ("deadline_s", "missing", "node", "op", "request_id", "serial", "timeout_s")

    def __init__(
        self, node: str, request_id: int, op: StoreOp, timeout_s: float | None, serial: int
    ) -> None:
        self.node = node
        self.request_id = request_id
        self.op = op
        self.timeout_s = timeout_s
        self.serial = serial
        self.deadline_s: float | None = None
        self.missing = 0  # how many keys it still waits for


class _AskAgain(enum.Enum):
    """What stands for the answer of a large read: who asks again has the call made again."""

    ASK_AGAIN = enum.auto()


class _Session:
    """What is remembered of one incarnation of a node, so that a resend is applied once (R11)."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        # By request id: a call that waits, an answer in case it is asked for again, or None for
        # a call that was cancelled.
        self.calls: dict[int, _Call | Answer | _AskAgain | None] = {}
        self._reads: set[int] = set()  # Those of `calls` that were reads, and were answered.
        self.waiting = 0
        self.waiting_bytes = 0
        self.answer_bytes = 0
        # Ids up to `floor` are acknowledged, but for those in `open`; larger ones are in the heap.
        self._floor: float = -math.inf
        self._open: dict[int, None] = {}
        self._ids: list[int] = []

    def admit(self, call: _Call) -> None:
        self.calls[call.request_id] = call
        self._tally.kept += CALL_BYTES
        if call.request_id > self._floor:
            heappush(self._ids, call.request_id)

    def has_seen(self, request_id: int) -> bool:
        acknowledged = request_id <= self._floor and request_id not in self._open
        return acknowledged or request_id in self.calls

    def may_ask_again(self, request_id: int) -> bool:
        return self.calls.get(request_id) is _AskAgain.ASK_AGAIN

    def remembered(self, request_id: int) -> list[Answer]:
        call = self.calls.get(request_id)
        return [call] if isinstance(call, Answer) else []

    def remember(self, answer: Answer, op: StoreOp | None = None) -> None:
        size = _result_bytes(answer.result)
        if size > REMEMBERED_READ_BYTES_MAX and type(op) in READS:
            self.calls[answer.request_id] = _AskAgain.ASK_AGAIN
            return
        if self._tally.tells_reads and type(op) in READS:
            self._reads.add(answer.request_id)
        self.calls[answer.request_id] = answer
        if size:
            self.answer_bytes += size
            self._tally.kept += size

    def restore(self, answer: Answer) -> None:
        """Remember an answer that was given by another coordinator."""
        known = self.calls.get(answer.request_id)
        if isinstance(known, Answer):
            size = _result_bytes(known.result)
            self.answer_bytes -= size
            self._tally.kept -= size
        else:
            self._tally.kept += CALL_BYTES
            if answer.request_id > self._floor:
                heappush(self._ids, answer.request_id)
        self.remember(answer)

    def restore_acknowledged(self, up_to: int, still_open: Iterable[int]) -> None:
        """Take what `acknowledged` said, before any answer is restored; in one go or in several."""
        self._floor = up_to
        before = len(self._open)
        self._open.update(dict.fromkeys(still_open))
        self._tally.kept += OPEN_ID_BYTES * (len(self._open) - before)

    def acknowledged(self) -> tuple[int, tuple[int, ...]] | None:
        """What `close` was told last; None if nothing was."""
        return None if self._floor == -math.inf else (int(self._floor), tuple(self._open))

    def written(self) -> list[Answer]:
        """The remembered answers of calls that were no reads."""
        answers = (each for each in self.calls.values() if isinstance(each, Answer))
        return [each for each in answers if each.request_id not in self._reads]

    def close(self, up_to: int, still_open: Iterable[int]) -> list[int]:
        """Move the floor, and return the ids that are known here and have become closed."""
        if up_to < self._floor:
            return []  # overtaken by a later acknowledgement
        stays = {i: None for i in still_open if i in self._open or self._floor < i <= up_to}
        closed = [i for i in self._open if i not in stays]
        while self._ids and self._ids[0] <= up_to:
            closed.append(heappop(self._ids))
        if len(stays) != len(self._open):
            self._tally.kept += OPEN_ID_BYTES * (len(stays) - len(self._open))
        self._floor, self._open = up_to, stays
        return [i for i in closed if i in self.calls and i not in stays]

    def forget(self, request_id: int) -> None:
        call = self.calls.pop(request_id)
        self._tally.kept -= CALL_BYTES
        if isinstance(call, Answer):
            size = _result_bytes(call.result)
            if size:
                self.answer_bytes -= size
                self._tally.kept -= size
            if self._reads:
                self._reads.discard(request_id)

    def kept(self) -> int:
        """What is in the tally for this session, once none of its calls waits."""
        own = CALL_BYTES * len(self.calls) + OPEN_ID_BYTES * len(self._open)
        return own + self.answer_bytes

    def picture(self, node: str) -> SessionPicture:
        known = sorted(
            (i, c if isinstance(c, Answer) else None)
            for i, c in self.calls.items()
            if not isinstance(c, _Call)
        )
        return SessionPicture(node, self._floor, tuple(sorted(self._open)), tuple(known))


class _Barrier:
    """One generation of a barrier: it lives while somebody waits at it."""

    def __init__(self) -> None:
        self.arrived: dict[int, _Call] = {}
        # Ranks that came and timed out. They have to come again, but who times out after them is
        # told of those that never came: they are the cause.
        self.gave_up: dict[int, None] = {}
        # The first ranks that never came, where known: N timeouts in a row search for them once.
        self.absent: tuple[int, ...] | None = None

    def place(self, rank: int, call: _Call) -> None:
        self.arrived[rank] = call
        self.gave_up.pop(rank, None)
        self.absent = None

    def withdraw(self, rank: int, call: _Call) -> None:
        if self.arrived.get(rank) is call:  # else it gave up, or a newer call took its place
            del self.arrived[rank]
            self.absent = None

    def give_up(self, rank: int) -> None:
        del self.arrived[rank]
        self.gave_up[rank] = None


class _Seats:
    """Which node has which worker ranks."""

    def __init__(self, seats: Sequence[tuple[str, int, int]]) -> None:
        self._seats = sorted(seats, key=lambda seat: seat[1])
        self._firsts = [first for _, first, _ in self._seats]
        self._workers = {name: (first, workers) for name, first, workers in seats}
        self.size = sum(workers for _, _, workers in seats)
        self._check()

    def __contains__(self, node: str) -> bool:
        return node in self._workers

    def has(self, node: str, rank: int) -> bool:
        first, workers = self._workers[node]
        return first <= rank < first + workers

    def label(self, rank: int) -> str:
        """A rank as a person wants to read it."""
        name, _, workers = self._seats[bisect_right(self._firsts, rank) - 1]
        return name if workers == 1 else f"{name} (rank {rank})"

    def _check(self) -> None:
        # R3: each rank once, from 0 on.
        expected = 0
        for name, first, workers in self._seats:
            if first != expected or workers < 1:
                raise ValueError(f"seat {name!r} has {workers} workers from rank {first} on")
            expected += workers
        if len(self._workers) != len(self._seats):
            raise ValueError("a node has two seats")


# ---- the store ---------------------------------------------------------------------------------


class SessionPicture(msgspec.Struct, frozen=True):
    """What is remembered of a node: acknowledged ids, and the answers.

    None: it cancelled, or it was a large read, which it may ask again.
    """

    node: str
    acknowledged: float
    still_open: tuple[int, ...]
    answered: tuple[tuple[int, Answer | None], ...]


class StorePicture(msgspec.Struct, frozen=True):
    """A round's store at one moment, hashable and in a canonical order.

    `waiting` has (node, request id, call, deadline), in the order in which the waits began;
    `barriers` has (name, ranks that wait, ranks that gave up).
    """

    data: tuple[tuple[str, bytes], ...]
    waiting: tuple[tuple[str, int, StoreOp, float | None], ...]
    barriers: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    sessions: tuple[SessionPicture, ...]
    ended: str | None


class RoundStore:
    """The store of one round.

    `seats` has (name, first worker rank, number of workers) of each node of the round; R4: nobody
    else is served. A call costs O(1) amortised and per key that it names, and O(log n) for its
    deadline; a barrier of N arrivals O(N) in all. Not thread-safe.

    Raises ValueError if the seats' ranks are not 0 ... size - 1, each once.
    """

    def __init__(
        self, seats: Sequence[tuple[str, int, int]], limits: StoreLimits = DEFAULT_LIMITS
    ) -> None:
        self._limits = limits
        self.tally = self._tally = Tally()
        self._seats = _Seats(seats)
        self._sessions: dict[str, _Session] = {}  # of who has called: a new round costs nothing
        self._data = _Data(limits, self._tally)
        self._waits: dict[_Call, None] = {}  # in the order in which they began
        # A key that is here does not exist, and no call is under a key that it has seen exist.
        self._by_key: dict[str, dict[_Call, None]] = {}
        self._barriers: dict[str, _Barrier] = {}
        self._deadlines: list[tuple[float, int, _Call]] = []  # a heap; some no longer wait
        self._calls_admitted = 0
        self._ended: str | None = None
        self._settled: list[Settled] | None = None

    def apply(
        self, node: str, request_id: int, op: StoreOp, timeout_s: float | None, now_s: float
    ) -> list[Answer]:
        """Apply a call once, and return the answers that it brings about: its own first.

        R11: a repeat of an answered request brings the same answer again, but a read of more than
        REMEMBERED_READ_BYTES_MAX is made again; a repeat of one that waits, was cancelled or was
        acknowledged brings nothing. Ids are per incarnation of a node
        and may come in any order. `timeout_s` counts from `now_s`; None waits as long as the
        round lasts.

        A refusal because too much is unacknowledged is the one answer that is not remembered:
        nothing was applied, and the request may be sent again.
        """
        session = self._session_of(node)
        if session is None:
            message = f"node {_shown(node)} is not in this round"
            return [Answer(node, request_id, StoreFailure(BAD_REQUEST, message))]
        is_again = session.has_seen(request_id)
        if is_again and not session.may_ask_again(request_id):
            return session.remembered(request_id)
        refusal = self._closing() or (None if is_again else self._overload(session))
        if refusal:
            return [Answer(node, request_id, refusal)]
        self._calls_admitted += 1
        call = _Call(node, request_id, op, timeout_s, self._calls_admitted)
        if is_again:
            session.calls[request_id] = call
        else:
            session.admit(call)
        return self._begin(call, now_s)

    def acknowledge(self, node: str, up_to_request_id: int, still_open: Sequence[int] = ()) -> None:
        """The node has the answers up to this id, but for those `still_open`: forget them.

        What is acknowledged is never applied again, nor answered. A long wait keeps a low id open;
        `still_open` lets all the others be acknowledged meanwhile. A call that still waits and is
        acknowledged all the same is cancelled. Late acknowledgements (a lower id) do nothing.
        """
        session = self._session_of(node)
        if session is None:
            return
        for request_id in session.close(up_to_request_id, still_open):
            self.cancel(node, request_id)
            session.forget(request_id)

    def has_seen(self, node: str, request_id: int) -> bool:
        """Whether the request would be a repeat: it was applied, cancelled or acknowledged."""
        session = self._sessions.get(node)
        return session is not None and session.has_seen(request_id)

    def cancel(self, node: str, request_id: int) -> None:
        """Withdraw a call that waits: it gets no answer, and a repeat is not applied.

        Nothing happens if it does not wait (any more).
        """
        session = self._sessions.get(node)
        call = session.calls.get(request_id) if session else None
        if session and isinstance(call, _Call):
            self._leave(call)
            session.calls[request_id] = None

    def forget_node(self, node: str) -> None:
        """Another incarnation takes the node's place: drop the old one's waits and memory."""
        session = self._sessions.get(node)
        if session is None:
            return
        for call in list(session.calls.values()):
            if isinstance(call, _Call):
                self._leave(call)
        self._tally.kept -= session.kept()
        del self._sessions[node]

    def next_deadline_s(self) -> float | None:
        """When `expire` will have something to do, unless an answer comes first; None: never."""
        while self._deadlines and self._deadlines[0][2] not in self._waits:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def expire(self, now_s: float) -> list[Answer]:
        """Answer `timeout`, and what was missing, to the calls whose deadline is not after now."""
        answers: list[Answer] = []
        while (deadline_s := self.next_deadline_s()) is not None and deadline_s <= now_s:
            answers.append(self._time_out(heappop(self._deadlines)[2]))
        return answers

    def end(self, message: str) -> list[Answer]:
        """The round is over: answer `round_ended` to all that wait, and to whoever calls later.

        What was answered before is still remembered; the data is dropped. Idempotent: the first
        message stays.
        """
        if self._ended is not None:
            return []
        self._ended = message
        self._settled = None
        self._data.drop_all()
        failure = StoreFailure(ROUND_ENDED, message)
        return [self._settle(call, failure) for call in list(self._waits)]

    def usage(self) -> tuple[int, int]:
        """How many keys there are, and how many bytes keys and values have."""
        return self._data.usage()

    def footprint(self) -> int:
        """About how many bytes of memory all takes that is stored, awaited or remembered. O(1)."""
        return self._tally.kept

    def growth_of(self, op: StoreOp) -> int:
        """By how much the footprint would grow with this call until it is acknowledged, at most.

        0 or less where it only reads or removes. Costs what the call does.
        """
        if _shape_objection(op):
            return 0
        effect = None if isinstance(op, Barrier) else self._data.effect_of(op)
        if effect is None:
            return WAITING_CALL_BYTES + _waiting_bytes(op)
        answer = 0 if type(op) in READS else _result_bytes(effect.result)
        return self._data.growth_of(effect.writes) + answer

    @property
    def limits(self) -> StoreLimits:
        """What this store holds at most."""
        return self._limits

    def remembers(self, node: str, request_id: int) -> bool:
        """Whether the answer to this request is kept, as its node may ask for it again."""
        session = self._sessions.get(node)
        if session is None:
            return False
        is_kept = isinstance(session.calls.get(request_id), Answer)
        return is_kept or session.may_ask_again(request_id)

    # -- for the layer that makes the store durable ----------------------------------------------

    def note_settled(self) -> None:
        """From now on keep what `take_settled` returns."""
        self._settled = []
        self._tally.tells_reads = True

    def take_settled(self) -> list[Settled]:
        """What was answered since the last time, but for reads: those can be asked again.

        In order. What one call brought about (a barrier's release) stands or falls together.
        """
        settled = self._settled
        if not settled:
            return []
        self._settled = []
        return settled

    def redo(self, settled: Settled) -> None:
        """Do once more what another coordinator's store did. It is a store nobody has called."""
        self._data.commit(settled.writes)
        session, result = self._session_of(settled.node), settled.result
        if isinstance(result, AsStored):
            result = StoreValue(self._data.value(result.key))
        if session is not None:
            session.restore(Answer(settled.node, settled.request_id, result))

    def snapshot(self, item_bytes_max: int) -> Iterator[SnapshotItem]:
        """All that the store holds now, whatever is done to it while the items are taken.

        Calls that wait are not in it: a node asks again for whatever it has no answer to. To call
        this costs O(keys + answers), little for each key, and each item O(its size). No item needs
        more than `item_bytes_max`, if each key does with some to spare.
        """
        sessions = [(n, s.acknowledged(), s.written()) for n, s in self._sessions.items()]
        return _snapshot_items(self._data.copy(), sessions, item_bytes_max)

    def load(self, items: Iterable[SnapshotItem]) -> None:
        """Take a whole snapshot. It is a store nobody has called."""
        for item in items:
            match item:
                case Put() | Extend():
                    self._data.commit((item,))
                case Settled():
                    self.redo(item)
                case Acknowledged(node, up_to, still_open):
                    session = self._session_of(node)
                    if session is not None:
                        session.restore_acknowledged(up_to, still_open)
                case MoreBytes(node, request_id, value):
                    self._lengthen(node, request_id, value)

    def _lengthen(self, node: str, request_id: int, more: bytes) -> None:
        session = self._session_of(node)
        for answer in session.remembered(request_id) if session else ():
            assert session is not None
            assert isinstance(answer.result, StoreValue)
            assert isinstance(answer.result.value, bytes)
            session.restore(Answer(node, request_id, StoreValue(answer.result.value + more)))

    def freeze(self) -> StorePicture:
        """The store as a hashable value; O(size)."""
        return StorePicture(
            data=tuple(self._data.items()),
            waiting=tuple((c.node, c.request_id, c.op, c.deadline_s) for c in self._waits),
            barriers=tuple(
                (name, tuple(sorted(barrier.arrived)), tuple(sorted(barrier.gave_up)))
                for name, barrier in sorted(self._barriers.items())
            ),
            sessions=tuple(s.picture(node) for node, s in sorted(self._sessions.items())),
            ended=self._ended,
        )

    # -- a call's way through the store

    def _session_of(self, node: str) -> _Session | None:
        session = self._sessions.get(node)
        if session is None and node in self._seats:
            session = self._sessions[node] = _Session(self._tally)
        return session

    def _closing(self) -> StoreFailure | None:
        return None if self._ended is None else StoreFailure(ROUND_ENDED, self._ended)

    def _overload(self, session: _Session) -> StoreFailure | None:
        count, size = len(session.calls) + 1, session.answer_bytes
        return self._limits.excess(
            "unacknowledged_calls_per_node_max", count
        ) or self._limits.excess("unacknowledged_bytes_per_node_max", size)

    def _begin(self, call: _Call, now_s: float) -> list[Answer]:
        objection = self._objection(call)
        if objection:
            return [self._settle(call, objection)]
        if isinstance(call.op, Barrier):
            return self._wait(call, now_s) or self._arrive(call, call.op)
        effect = self._data.effect_of(call.op)
        if effect is None:
            return self._wait(call, now_s) or self._watch(call)
        self._data.commit(effect.writes)
        return [self._settle(call, effect.result, effect.writes), *self._wake(effect.writes)]

    def _objection(self, call: _Call) -> StoreFailure | None:
        """What is wrong with a call, whatever the data."""
        if call.timeout_s is not None and math.isnan(call.timeout_s):
            return StoreFailure(BAD_REQUEST, "the timeout is not a number")
        if isinstance(call.op, Barrier) and not self._seats.has(call.node, call.op.rank):
            message = f"rank {call.op.rank} is not a rank of node {_shown(call.node)}"
            return StoreFailure(BAD_REQUEST, message)
        return _shape_objection(call.op) or self._key_objection(keys_of(call.op))

    def _key_objection(self, keys: tuple[str, ...]) -> StoreFailure | None:
        if len(keys) == 1 and UTF8_BYTES_MAX * len(keys[0]) <= self._limits.key_bytes_max:
            return None  # as nearly always: this is done for every call
        longest = max(map(_key_bytes, keys), default=0)
        return self._limits.excess("keys_per_call_max", len(keys)) or self._limits.excess(
            "key_bytes_max", longest
        )

    def _settle(self, call: _Call, result: StoreResult, writes: tuple[Write, ...] = ()) -> Answer:
        """End a call, waiting or not: each admitted call gets here at most once."""
        if call in self._waits:
            self._leave(call)
        answer = Answer(call.node, call.request_id, result)
        self._sessions[call.node].remember(answer, call.op)
        if self._settled is not None and type(call.op) not in READS:
            told = self._told(call.op, result)
            self._settled.append(Settled(call.node, call.request_id, told, writes))
        return answer

    def _told(self, op: StoreOp, result: StoreResult) -> StoreResult | AsStored:
        """The result as it is logged: a value that is in the store is not written once more."""
        if isinstance(op, CompareSet) and isinstance(result, StoreValue) and op.key in self._data:
            return AsStored(op.key)
        return result

    # -- waiting

    def _wait(self, call: _Call, now_s: float) -> list[Answer]:
        """Count the call among those that wait, or refuse it: then the answer says so."""
        session = self._sessions[call.node]
        footprint = _waiting_bytes(call.op)
        refusal = self._limits.excess(
            "waiting_calls_per_node_max", session.waiting + 1
        ) or self._limits.excess("waiting_bytes_per_node_max", session.waiting_bytes + footprint)
        if refusal:
            return [self._settle(call, refusal)]
        session.waiting += 1
        session.waiting_bytes += footprint
        self._tally.kept += WAITING_CALL_BYTES + footprint
        self._waits[call] = None
        self._set_deadline(call, now_s)
        return []

    def _set_deadline(self, call: _Call, now_s: float) -> None:
        if call.timeout_s is None or call.timeout_s == math.inf:
            return
        call.deadline_s = now_s + max(call.timeout_s, 0.0)
        heappush(self._deadlines, (call.deadline_s, call.serial, call))
        # Calls that were answered in time leave their entry behind. Sweeping when these are the
        # most keeps the heap within a constant of the waits, at an amortised cost of O(1).
        if len(self._deadlines) > 2 * len(self._waits) + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[2] in self._waits]
            heapify(self._deadlines)

    def _leave(self, call: _Call) -> None:
        """The call waits no more, for whichever reason."""
        session = self._sessions[call.node]
        footprint = _waiting_bytes(call.op)
        session.waiting -= 1
        session.waiting_bytes -= footprint
        self._tally.kept -= WAITING_CALL_BYTES + footprint
        del self._waits[call]
        if isinstance(call.op, Barrier):
            self._withdraw(call, call.op)
        elif call.missing:
            self._unwatch(call)

    def _time_out(self, call: _Call) -> Answer:
        after = f"after {call.timeout_s:g} s: "
        if not isinstance(call.op, Barrier):
            return self._settle(call, self._keys_missing(after, call.op))
        barrier = self._barriers[call.op.name]
        failure = self._ranks_missing(after, call.op.name, barrier)
        barrier.give_up(call.op.rank)
        return self._settle(call, failure)

    # -- waiting for keys

    def _watch(self, call: _Call) -> list[Answer]:
        missing = self._data.missing(keys_of(call.op))
        for key in missing:
            self._by_key.setdefault(key, {})[call] = None
        call.missing = len(missing)
        return []

    def _unwatch(self, call: _Call) -> None:
        for key in keys_of(call.op):
            waiters = self._by_key.get(key)
            if waiters is not None:
                waiters.pop(call, None)
                if not waiters:
                    del self._by_key[key]

    def _wake(self, writes: Iterable[Write]) -> list[Answer]:
        """Answer those for whom the last missing key was written."""
        answers: list[Answer] = []
        for write in writes:
            for call in () if isinstance(write, Drop) else self._by_key.pop(write.key, ()):
                call.missing -= 1
                if not call.missing:
                    answers += self._try_again(call)
        return answers

    def _try_again(self, call: _Call) -> list[Answer]:
        # A key that was there when the call began to wait may have been deleted since; then the
        # call waits for that one. So deleting costs nothing, however many wait for other keys.
        assert not isinstance(call.op, Barrier)
        effect = self._data.effect_of(call.op)
        return self._watch(call) if effect is None else [self._settle(call, effect.result)]

    def _keys_missing(self, after: str, op: DataOp) -> StoreFailure:
        keys = keys_of(op)
        missing = self._data.missing(keys)
        count, names = len(missing), tuple(missing[:NAMES_SHOWN_MAX])
        message = f"{after}{_listed('keys do not exist', len(set(keys)), count, names)}"
        return StoreFailure(TIMEOUT, message, names, count)

    # -- waiting at a barrier

    def _arrive(self, call: _Call, op: Barrier) -> list[Answer]:
        barrier = self._barriers.setdefault(op.name, _Barrier())
        replaced = barrier.arrived.get(op.rank)
        barrier.place(op.rank, call)
        if replaced is not None:
            # As many have come as before, so nobody is released.
            after = f"a newer call of rank {op.rank} took over: "
            return [self._settle(replaced, self._ranks_missing(after, op.name, barrier))]
        full = len(barrier.arrived) == self._seats.size
        return self._release(barrier, call) if full else []

    def _release(self, barrier: _Barrier, last: _Call) -> list[Answer]:
        others = [call for call in barrier.arrived.values() if call is not last]
        return [self._settle(call, StoreValue(None)) for call in (last, *others)]

    def _withdraw(self, call: _Call, op: Barrier) -> None:
        barrier = self._barriers[op.name]
        barrier.withdraw(op.rank, call)
        if not barrier.arrived:
            del self._barriers[op.name]

    def _ranks_missing(self, after: str, name: str, barrier: _Barrier) -> StoreFailure:
        count = self._seats.size - len(barrier.arrived) - len(barrier.gave_up)
        ranks = self._absent(barrier)
        if not count:
            count, ranks = len(barrier.gave_up), tuple(islice(barrier.gave_up, NAMES_SHOWN_MAX))
        names = tuple(map(self._seats.label, ranks))
        what = f"ranks are not at barrier {_shown(name)}"
        message = f"{after}{_listed(what, self._seats.size, count, names)}"
        return StoreFailure(TIMEOUT, message, names, count)

    def _absent(self, barrier: _Barrier) -> tuple[int, ...]:
        if barrier.absent is None:
            came = (barrier.arrived, barrier.gave_up)
            never = (r for r in range(self._seats.size) if not any(r in ranks for ranks in came))
            barrier.absent = tuple(islice(never, NAMES_SHOWN_MAX))
        return barrier.absent


# ---- helpers -----------------------------------------------------------------------------------

_OF_ONE_KEY: Final = frozenset({Set, Get, Add, CompareSet, Append, DeleteKey})
UTF8_BYTES_MAX: Final = 4
_INTEGER: Final = re.compile(rb"[+-]?[0-9]{1,64}")
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


_ITEM_OVERHEAD_BYTES: Final = 64


def _snapshot_items(
    data: dict[str, bytes],
    sessions: list[tuple[str, tuple[int, tuple[int, ...]] | None, list[Answer]]],
    bytes_max: int,
) -> Iterator[SnapshotItem]:
    for key, value in data.items():
        for number, piece in enumerate(_pieces(value, bytes_max - _key_bytes(key))):
            yield Extend(key, piece) if number else Put(key, piece)
    for node, acknowledged, answers in sessions:
        if acknowledged is not None:
            # A number needs 9 bytes at most.
            for ids in _slices(acknowledged[1], max(1, bytes_max // 16)):
                yield Acknowledged(node, acknowledged[0], ids)
        for answer in answers:
            yield from _answer_items(answer, bytes_max - 4 * len(node))


def _answer_items(answer: Answer, bytes_max: int) -> Iterator[SnapshotItem]:
    node, request_id, result = answer.node, answer.request_id, answer.result
    value = result.value if isinstance(result, StoreValue) else None
    if not isinstance(value, bytes):
        yield Settled(node, request_id, result)
        return
    for number, piece in enumerate(_pieces(value, bytes_max)):
        more = MoreBytes(node, request_id, piece)
        yield more if number else Settled(node, request_id, StoreValue(piece))


def _pieces(value: bytes, bytes_max: int) -> Iterator[bytes]:
    """At least one, and each with what an item needs besides within `bytes_max`."""
    room = max(1, bytes_max - _ITEM_OVERHEAD_BYTES)
    for start in range(0, len(value) or 1, room):
        yield value[start : start + room]


def _slices(ids: tuple[int, ...], count: int) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(ids) or 1, count):
        yield ids[start : start + count]


def _shape_objection(op: StoreOp) -> StoreFailure | None:
    if isinstance(op, MultiSet) and len(op.keys) != len(op.values):
        message = f"{len(op.keys)} keys, but {len(op.values)} values"
        return StoreFailure(BAD_REQUEST, message)
    if isinstance(op, Add) and not _is_int64(op.amount):
        return StoreFailure(BAD_REQUEST, "the amount does not fit into 64 bits")
    return None


def _integer(value: bytes | bytearray) -> int | None:
    # int() alone would also take spaces and underscores, and long digits at quadratic cost.
    number = int(value) if _INTEGER.fullmatch(value) else None
    return number if number is not None and _is_int64(number) else None


def _is_int64(number: int) -> bool:
    return -(2**63) <= number < 2**63


def _key_bytes(key: str) -> int:
    return len(key) if key.isascii() else len(key.encode("utf-8", "surrogatepass"))


def _waiting_bytes(op: StoreOp) -> int:
    return sum(_key_bytes(key) + WAITING_KEY_BYTES for key in keys_of(op))


def _result_bytes(result: StoreResult) -> int:
    if isinstance(result, StoreFailure):
        return len(result.message) + sum(map(len, result.missing))
    if isinstance(result.value, tuple):
        return sum(map(len, result.value))
    return len(result.value) if isinstance(result.value, bytes) else 0


def _listed(what: str, total: int, count: int, names: tuple[str, ...]) -> str:
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return f"{count} of {total} {what}: {', '.join(map(_shown, names))}{more}"


def _shown(name: str) -> str:
    """A name for a message: in full unless it is very long, and quoted where it needs it."""
    text = name if name.isprintable() and name else repr(name)
    if len(text) <= _SHOWN_CHARACTERS_MAX:
        return text
    return f"{text[:_SHOWN_CHARACTERS_MAX]}..."
