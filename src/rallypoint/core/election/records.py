"""The values of the election's registers, and their bytes.

The package's docstring says what a lease and a head are for. This file does not decide who writes a
register, or when.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any, ClassVar, Final, TypeVar

import msgspec

from rallypoint.core.blame import NO_BLAME, Blame
from rallypoint.core.orders import NO_ORDERS, Orders
from rallypoint.core.past import NO_PAST, Past
from rallypoint.core.reasons import OTHER_FORMAT_HINT
from rallypoint.core.values import (
    Address,
    CloseRecord,
    FrozenStruct,
    Marks,
    NodeId,
    RoundHead,
    RoundMember,
    RoundRecord,
    RunSettings,
    Stamp,
    repr_without,
)

FORMERS_KEPT: Final = 6
"""How many of its former owners a head names."""
FORMAT: Final = 2
"""The format that this release writes, and the only one that it reads."""

Counter = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


Seconds = Annotated[float, msgspec.Meta(gt=0, le=31_536_000)]


class _Kept(FrozenStruct, frozen=True, kw_only=True):
    as_read: tuple[bytes, ...] = ()


class Kept(_Kept, frozen=True):
    """Base of the values that another release may have written.

    A newer release of the same format may add fields at the end, here and in the values inside. A
    release that does not know these fields must not remove them. So `as_read` keeps the bytes of
    all fields if they hold more than this release knows. `encode` writes those bytes again for each
    field that was not changed. `as_read` is empty if there is nothing to keep.
    """

    format: int


class LeaseState(enum.StrEnum):
    """What a lease says about its process. The last two are final."""

    SERVING = "serving"
    MOVING = "moving"
    """The process is ending. Its runs may be taken over at once, without waiting for the ttl."""
    REVOKED = "revoked"


class Lease(Kept, frozen=True):
    """The lease of a coordinator process. No two writes of it have the same (process, beat).

    `only_run`: the only run that an embedded coordinator serves; "" is any run.
    `token`: the token that opens a connection, for nodes that were given none. So a process that
    can read the ledger can join the runs.
    `ttl_s`: the seconds without a renewal after which others may revoke the lease. Every reader
    uses this value: while settings are changed, processes with different ones share a ledger.
    `node`: the node that hosts the coordinator, and ends with it; None for `rallypoint serve`.
    `is_early`: the lease was revoked before its ttl had passed, because the process had ended, as
    far as others saw. If it is alive after all, it may still answer reads until its next renewal.
    """

    process: str
    beat: Counter
    state: LeaseState = LeaseState.SERVING
    addresses: tuple[Address, ...] = ()
    revoked_by: str = ""
    only_run: str = ""
    token: str = ""
    ttl_s: Seconds = 5.0
    node: NodeId | None = None
    is_early: bool = False

    def __repr__(self) -> str:
        return repr_without(self, "token")


class Chunk(FrozenStruct, frozen=True, order=True):
    """A part of a member table, in its own register. `core/tables.py` says how it is named."""

    term: Counter
    serial: Counter
    rows: Counter
    digest: Annotated[bytes, msgspec.Meta(max_length=32)]


class Table(FrozenStruct, frozen=True):
    """The member table of a round, in node-rank order: its rows, or the chunks that have them."""

    rows: tuple[RoundMember, ...] = ()
    chunks: tuple[Chunk, ...] = ()


class RunState(FrozenStruct, frozen=True):
    """What a new owner of a run starts from: the run's head and its member table, joined.

    `floor`: all rounds of this run have higher numbers. `past`: the last rounds, for people.
    """

    term: int
    settings: RunSettings | None = None
    round: RoundRecord | None = None
    close: CloseRecord | None = None
    restarts: int = 0
    floor: int = 0
    marks: Marks = Marks()
    past: Past = NO_PAST
    orders: Orders = NO_ORDERS
    blame: Blame = NO_BLAME

    @property
    def number(self) -> int:
        """The number of the last committed round; before the first round, that of the floor."""
        return self.round.head.number if self.round else self.floor


class RunRegister(Kept, frozen=True):
    """The head of a run: everything except the member table, which may be in chunks.

    No two writes have the same (owner, term, sequence).

    `owner`: a process; "" after the last owner has resigned.
    `floor`: the floor of the ledger when the run began. Its rounds have higher numbers (R1).
    `marks`: what is known about the members of the round. They count only if they have the round's
    number: a release without marks may have written the round.
    `past`: the last rounds, for people.
    `unsure_s`: for so many seconds after it has begun, the owner of this term cannot rely on the
    time alone that no former owner answers reads; 0: it can. See `ownership`.
    `formers`: the last processes that owned the run before, the newest last. Their events of it are
    under their names, for people. No decision depends on it.
    `orders`: those of operators. `settings` are what the nodes ask for.
    `blame`: what the failures of the program have cost.
    """

    ledger_id: str
    run_id: str
    term: Counter
    owner: str
    sequence: Counter = 0
    settings: RunSettings | None = None
    round: RoundHead | None = None
    table: Table | None = None
    close: CloseRecord | None = None
    restarts: Counter = 0
    floor: Counter = 0
    marks: Marks = Marks()
    past: Past = NO_PAST
    unsure_s: float = 0.0
    formers: Annotated[tuple[str, ...], msgspec.Meta(max_length=64)] = ()
    orders: Orders = NO_ORDERS
    blame: Blame = NO_BLAME

    @property
    def number(self) -> int:
        """The number of the last committed round; before the first round, that of the floor."""
        # R1: the next number is above this one.
        return self.round.number if self.round else self.floor

    def sealed(self, process: str, floor: Floor, early: Lease | None = None) -> RunRegister:
        """The head with which this process takes the run over: its term is above all others (R5).

        `floor`: the ledger's, if the run may have begun there before. `early`: the last owner's
        lease, if it was revoked before its ttl had passed.
        """
        return msgspec.structs.replace(
            self,
            format=FORMAT,
            # R5: above its own term and the ledger's floor.
            term=max(self.term, floor.term) + 1,
            owner=process,
            formers=self._formers(),
            # R1: owner, term and sequence together are used once.
            sequence=0,
            # R1: rounds begin above all that were removed.
            floor=max(self.floor, floor.number),
            unsure_s=max(self.unsure_s, early.ttl_s if early is not None else 0.0),
        )

    def following(self, changed: RunRegister) -> RunRegister:
        """The head that the same owner writes next, in the same term: the rest is of `changed`."""
        return msgspec.structs.replace(
            changed,
            format=FORMAT,
            ledger_id=self.ledger_id,
            run_id=self.run_id,
            # R5: in the term in which it was sealed.
            term=self.term,
            owner=self.owner,
            # R1: no two writes have the same bytes.
            sequence=self.sequence + 1,
        )

    def freed(self) -> RunRegister:
        """The head with which the owner resigns."""
        return msgspec.structs.replace(self.following(self), owner="", formers=self._formers())

    def _formers(self) -> tuple[str, ...]:
        """The former owners when the present one is none any more."""
        if not self.owner:
            return self.formers
        others = (each for each in self.formers if each != self.owner)
        return (*others, self.owner)[-FORMERS_KEPT:]

    def state(self, members: tuple[RoundMember, ...]) -> RunState:
        """The whole state of the run, given the rows of its member table."""
        record = RoundRecord(self.round, members) if self.round is not None else None
        return RunState(
            self.term,
            self.settings,
            record,
            self.close,
            self.restarts,
            self.floor,
            self.marks,
            self.past,
            self.orders,
            self.blame,
        )

    @property
    def stamp(self) -> Stamp:
        """The stamp of this owner's messages."""
        return Stamp(self.ledger_id, self.term, self.number)


class Floor(Kept, frozen=True):
    """The highest term and the highest round number of all runs that were removed from a ledger.

    A new run begins above it, so that no fencing token (term, number) is used twice with one run id
    (R1, R13). There is one floor for the whole ledger, since one for each id would grow for ever.
    """

    term: Counter = 0
    number: Counter = 0

    def raised(self, register: RunRegister) -> Floor:
        """The floor, raised to at least the last token of this run."""
        # R13: a token is never used again.
        term = max(self.term, register.term)
        # R13: nor is a number used again.
        number = max(self.number, register.number)
        return msgspec.structs.replace(self, term=term, number=number)


NO_FLOOR: Final = Floor(FORMAT)
"""The floor of a ledger from which no run was removed."""


class Mistake(Kept, frozen=True):
    """A coordinator was alive when its lease was revoked early.

    While the ledger has this register, no lease is revoked before its ttl has passed: something
    refuses connections for coordinators that are alive. `process`: the last such coordinator.
    """

    process: str


class UnreadableError(Exception):
    """A register's bytes are not Rallypoint's, are damaged, or have another format.

    The text says which. `hint`: what to do.
    """

    hint: ClassVar[str] = "another release or program may have written it; nothing has been changed"


class OtherFormatError(UnreadableError):
    """An older or newer release wrote the register, in a format that this one does not read."""

    hint = OTHER_FORMAT_HINT


_T = TypeVar("_T", bound=Kept)
_NAMES: Final[dict[type[Kept], str]] = {
    Lease: "lease",
    RunRegister: "run head",
    Floor: "floor",
    Mistake: "record of a mistake",
}
"""For messages."""


def encode(value: Kept) -> bytes:
    """The bytes of a register's value, with the fields that a newer release has added."""
    fields = _fields(value)
    if value.as_read:
        before = _fields(_known(value.as_read, type(value)))
        kept = list(map(msgspec.Raw, value.as_read))
        for i in range(min(len(fields), len(kept))):
            fields[i] = kept[i] if fields[i] == before[i] else fields[i]
        fields += kept[len(fields) :]
    return msgspec.msgpack.encode(fields)


def decode_lease(data: bytes) -> Lease:
    """Decode a lease. Raises UnreadableError for all other bytes, and nothing else."""
    return _decode(data, Lease)


def decode_run(data: bytes) -> RunRegister:
    """Decode a run's head. Raises UnreadableError for all other bytes, and nothing else."""
    return _decode(data, RunRegister)


def decode_floor(data: bytes) -> Floor:
    """Decode the ledger's floor. Raises UnreadableError for all other bytes, and nothing else."""
    return _decode(data, Floor)


def decode_mistake(data: bytes) -> Mistake:
    """Decode the record of a mistake. Raises UnreadableError for all other bytes."""
    return _decode(data, Mistake)


def _fields(value: Kept) -> list[Any]:
    return [getattr(value, name) for name in value.__struct_fields__[:-1]]


def _known(fields: tuple[bytes, ...], kind: type[_T]) -> _T:
    """The value of the fields that this release knows."""
    known = fields[: len(kind.__struct_fields__) - 1]
    return msgspec.msgpack.decode(msgspec.msgpack.encode([*map(msgspec.Raw, known)]), type=kind)


def _decode(data: bytes, kind: type[_T]) -> _T:
    try:
        raw = msgspec.msgpack.decode(data, type=tuple[msgspec.Raw, ...])
        fields = tuple(bytes(each) for each in raw)
        value = _known(fields, kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # R12: bytes that are no value are refused.
        raise _unreadable(data, _NAMES[kind], error) from error
    # R12: so is another format.
    # Checked after the decoding: a value of another format may decode as well, with fields that
    # this release does not know.
    if value.format != FORMAT:
        raise OtherFormatError(_other_format(value.format))
    # Keep the bytes only if this release would lose something by writing the value again.
    return value if encode(value) == data else msgspec.structs.replace(value, as_read=fields)


def _unreadable(data: bytes, kind: str, error: Exception) -> UnreadableError:
    try:
        (found,) = msgspec.msgpack.decode(data, type=list)[:1] or (None,)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
        return UnreadableError(f"this is not a {kind} of Rallypoint: {error}")
    if not isinstance(found, int) or isinstance(found, bool):
        return UnreadableError(f"this is not a {kind} of Rallypoint: it has no format number")
    if found != FORMAT:
        return OtherFormatError(_other_format(found))
    return UnreadableError(f"this {kind} is damaged: {error}")


def _other_format(found: int) -> str:
    by = "a newer release" if found > FORMAT else "an older release" if found > 0 else "no release"
    return f"format {found} was written by {by}; this release reads only format {FORMAT}"
