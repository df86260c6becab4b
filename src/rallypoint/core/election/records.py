"""What the two kinds of register hold, and their bytes. See `election` for what they mean."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Final, TypeVar

import msgspec

from rallypoint.core.past import NO_PAST, Past
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
)

FORMAT: Final = 2
"""The format of what is written, and the only one that this release reads."""

Counter = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


Seconds = Annotated[float, msgspec.Meta(gt=0, le=31_536_000)]


class _Kept(FrozenStruct, frozen=True, kw_only=True):
    as_read: tuple[bytes, ...] = ()


class Kept(_Kept, frozen=True):
    """Base of the values that one release writes over those of another.

    A newer release of the same format may add fields at the end, here and in the values that are
    inside. A release that does not know them must not remove them. So `as_read` keeps each field's
    bytes if they hold more than this release knows, and `encode` writes the bytes of every field
    that was not changed as they were. It is empty where there is nothing to keep.
    """

    format: int


class LeaseState(enum.StrEnum):
    """What a lease says of its process. The last two are final."""

    SERVING = "serving"
    MOVING = "moving"
    """The process is going, and has let go of its runs: no need to wait for the ttl."""
    REVOKED = "revoked"


class Lease(Kept, frozen=True):
    """A coordinator process's lease. (process, beat) is its writer's nonce and sequence.

    `only_run`: the one run that a node's own coordinator serves; "" is any run. `token`: what it
    asks nodes for that have been given none; whoever may read the ledger may join its runs.
    `ttl_s`: after how long without a renewal, in seconds, others may revoke it. Everybody goes by
    the lease's own value: processes with different settings share a ledger while they change.
    `node`: the node that hosts the coordinator, which ends with it; None for `rallypoint serve`.
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

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        shown["token"] = "set" if self.token else ""
        return f"Lease({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


class Chunk(FrozenStruct, frozen=True, order=True):
    """A part of a member table, in a register of its own. See `tables` for its name."""

    term: Counter
    serial: Counter
    rows: Counter
    digest: Annotated[bytes, msgspec.Meta(max_length=32)]


class Table(FrozenStruct, frozen=True):
    """The member table of a round, in node-rank order: its rows, or the chunks that hold them."""

    rows: tuple[RoundMember, ...] = ()
    chunks: tuple[Chunk, ...] = ()


class RunState(FrozenStruct, frozen=True):
    """What a new owner of a run goes on from: the run's head and its member table, put together.

    `floor`: no round of this run has a number up to this one. `past`: for people.
    """

    term: int
    settings: RunSettings | None = None
    round: RoundRecord | None = None
    close: CloseRecord | None = None
    restarts: int = 0
    floor: int = 0
    marks: Marks = Marks()
    past: Past = NO_PAST

    @property
    def number(self) -> int:
        """The number of the last committed round; that of the floor before the first."""
        return self.round.head.number if self.round else self.floor


class RunRegister(Kept, frozen=True):
    """The head of a run: everything but the member table, which may be kept apart in chunks.

    (owner, term, sequence) is its writer's nonce and sequence. `owner` is a process, or "" when the
    last one has let go. `floor`: the run began when runs up to this number had been removed from
    the ledger, so its own rounds have higher ones (R1). `marks`: what is known of the round's
    members. They count only if they name the round's number, as a release that does not know them
    may have written the round. `past`: its last rounds, for people.
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

    @property
    def number(self) -> int:
        """The number of the last committed round; that of the floor before the first."""
        return self.round.number if self.round else self.floor

    def state(self, members: tuple[RoundMember, ...]) -> RunState:
        """The whole of it, with the rows of the table."""
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
        )

    @property
    def stamp(self) -> Stamp:
        """What messages of this owner carry."""
        return Stamp(self.ledger_id, self.term, self.number)


class Floor(Kept, frozen=True):
    """The highest term and round number of all runs that were removed from a ledger.

    One for the whole ledger: one for each run would grow for ever. A run that begins, begins above
    it, so that no token (term, number) comes twice for one id of a run (R1, R13).
    """

    term: Counter = 0
    number: Counter = 0

    def raised(self, register: RunRegister) -> Floor:
        """At or above the last token of this run, and never lower than before."""
        term = max(self.term, register.term)
        number = max(self.number, register.number)
        return msgspec.structs.replace(self, term=term, number=number)


NO_FLOOR: Final = Floor(FORMAT)
"""What holds until a run was removed."""


class UnreadableError(Exception):
    """A register's bytes are not ours, damaged, or of another format. The text says which."""


class OtherFormatError(UnreadableError):
    """A release that is older or newer wrote it, in a format that this one does not read."""

    hint: Final = (
        "use the release that wrote it; or stop every process of that release and give this "
        "release a ledger of its own (another folder, or another prefix in etcd)"
    )


_T = TypeVar("_T", bound=Kept)


def encode(value: Kept) -> bytes:
    """The bytes of a register's value, and with it what a newer release had written there."""
    fields = _fields(value)
    if value.as_read:
        before = _fields(_known(value.as_read, type(value)))
        kept = list(map(msgspec.Raw, value.as_read))
        for i in range(min(len(fields), len(kept))):
            fields[i] = kept[i] if fields[i] == before[i] else fields[i]
        fields += kept[len(fields) :]
    return msgspec.msgpack.encode(fields)


def decode_lease(data: bytes) -> Lease:
    """A lease. Raises UnreadableError, and nothing else, whatever the bytes are."""
    return _decode(data, Lease)


def decode_run(data: bytes) -> RunRegister:
    """A run's register. Raises UnreadableError, and nothing else, whatever the bytes are."""
    return _decode(data, RunRegister)


def decode_floor(data: bytes) -> Floor:
    """The ledger's floor. Raises UnreadableError, and nothing else, whatever the bytes are."""
    return _decode(data, Floor)


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
        raise _unreadable(data, kind.__name__, error) from error
    # Another release may only have added fields: what can be read need not be all there is.
    if value.format != FORMAT:
        raise OtherFormatError(_other_format(value.format))
    # A field's default may be left out, so what matters is whether anything would be lost.
    return value if encode(value) == data else msgspec.structs.replace(value, as_read=fields)


def _unreadable(data: bytes, kind: str, error: Exception) -> UnreadableError:
    try:
        (found,) = msgspec.msgpack.decode(data, type=list)[:1] or (None,)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
        return UnreadableError(f"this is no {kind} of Rallypoint: {error}")
    if not isinstance(found, int) or isinstance(found, bool):
        return UnreadableError(f"this is no {kind} of Rallypoint: it has no format")
    if found != FORMAT:
        return OtherFormatError(_other_format(found))
    return UnreadableError(f"this {kind} is damaged: {error}")


def _other_format(found: int) -> str:
    by = "a newer release" if found > FORMAT else "an older release" if found > 0 else "no release"
    return f"format {found} was written by {by}; this one reads format {FORMAT} alone"
