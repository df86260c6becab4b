"""What the two kinds of register hold, and their bytes. See `election` for what they mean."""

from __future__ import annotations

import enum
from typing import Annotated, Final

import msgspec

from rallypoint.core.values import (
    Address,
    CloseRecord,
    RoundRecord,
    RunSettings,
    Stamp,
    Value,
)

FORMAT: Final = 1
"""The format of what is written. A reader refuses a newer one."""

Counter = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class LeaseState(enum.StrEnum):
    """What a lease says of its process. The last two are final."""

    SERVING = "serving"
    MOVING = "moving"
    """The process is going, and has let go of its runs: no need to wait for the ttl."""
    REVOKED = "revoked"


class Lease(Value, frozen=True):
    """A coordinator process's lease. (process, beat) is its writer's nonce and sequence.

    `only_run`: the one run that a node's own coordinator serves; "" is any run. `token`: what it
    asks nodes for that have been given none; whoever may read the ledger may join its runs.
    """

    format: int
    process: str
    beat: Counter
    state: LeaseState = LeaseState.SERVING
    addresses: tuple[Address, ...] = ()
    revoked_by: str = ""
    only_run: str = ""
    token: str = ""

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        shown["token"] = "set" if self.token else ""
        return f"Lease({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


class RunRegister(Value, frozen=True):
    """A run's register. (owner, term, sequence) is its writer's nonce and sequence.

    `owner` is a process, or "" when the last one has let go.
    """

    format: int
    ledger_id: str
    run_id: str
    term: Counter
    owner: str
    sequence: Counter = 0
    settings: RunSettings | None = None
    round: RoundRecord | None = None
    close: CloseRecord | None = None
    restarts: Counter = 0

    @property
    def number(self) -> int:
        """The number of the last committed round; 0 before the first."""
        return self.round.head.number if self.round else 0

    @property
    def stamp(self) -> Stamp:
        """What messages of this owner carry."""
        return Stamp(self.ledger_id, self.term, self.number)


class UnreadableError(Exception):
    """A register's bytes are not ours, damaged, or of a newer format. The text says which."""


def encode(value: Lease | RunRegister) -> bytes:
    """The bytes of a register's value."""
    return msgspec.msgpack.encode(value)


def decode_lease(data: bytes) -> Lease:
    """A lease. Raises UnreadableError, and nothing else, whatever the bytes are."""
    lease = _decode(data, Lease)
    assert isinstance(lease, Lease)
    return lease


def decode_run(data: bytes) -> RunRegister:
    """A run's register. Raises UnreadableError, and nothing else, whatever the bytes are."""
    register = _decode(data, RunRegister)
    assert isinstance(register, RunRegister)
    return register


def _decode(data: bytes, kind: type[Lease] | type[RunRegister]) -> Lease | RunRegister:
    try:
        value = msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableError(_why_unreadable(data, kind.__name__, error)) from error
    # A newer release may only have added fields: what can be read need not be all there is.
    if not 1 <= value.format <= FORMAT:
        raise UnreadableError(_other_format(value.format))
    return value


def _why_unreadable(data: bytes, kind: str, error: Exception) -> str:
    try:
        (found,) = msgspec.msgpack.decode(data, type=list)[:1] or (None,)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
        return f"this is no {kind} of Rallypoint: {error}"
    if not isinstance(found, int) or isinstance(found, bool):
        return f"this is no {kind} of Rallypoint: it has no format"
    if not 1 <= found <= FORMAT:
        return _other_format(found)
    return f"this {kind} is damaged: {error}"


def _other_format(found: int) -> str:
    by = "a newer release" if found > FORMAT else "no release"
    return f"format {found} was written by {by}; this one reads 1 to {FORMAT}"
