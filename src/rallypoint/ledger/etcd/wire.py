"""What etcd's JSON gateway says, as types; and what its refusals mean.

The gateway maps etcd's protobuf to JSON: bytes are base64 (msgspec does that), 64-bit numbers are
strings (decoded leniently), and what is zero or empty is left out.
Source: etcd, api/etcdserverpb/rpc.proto and api/v3rpc/rpctypes/error.go.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from rallypoint.core.values import repr_without
from rallypoint.errors import (
    LedgerAccessError,
    LedgerError,
    LedgerForeignError,
    LedgerFullError,
    LedgerLimitError,
    LedgerUnreachableError,
)

T = TypeVar("T")


class EtcdUnknownError(LedgerUnreachableError):
    """A request that changes something got no answer: it may have been done, or be done yet."""


class EtcdCompactedError(LedgerError):
    """The revision to watch from was compacted away: read anew."""


class EtcdTokenError(LedgerAccessError):
    """The token has expired or was never there; authenticate again."""


class EtcdRefusedError(LedgerError):
    """etcd said no, for a reason that has no class of its own. `code` is gRPC's."""

    def __init__(self, message: str, *, hint: str = "", code: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class Header(msgspec.Struct, frozen=True):
    """Every answer's: the store's revision after the request."""

    revision: int = 0
    cluster_id: int = 0
    member_id: int = 0


class KeyValue(msgspec.Struct, frozen=True):
    """A key as it stands. `version` counts its changes since it was created."""

    key: bytes = b""
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    version: int = 0
    lease: int = 0


class RangeResult(msgspec.Struct, frozen=True):
    """Keys in order; `more` says that there were more than the limit."""

    header: Header = Header()
    kvs: tuple[KeyValue, ...] = ()
    more: bool = False
    count: int = 0


class DeleteResult(msgspec.Struct, frozen=True):
    header: Header = Header()
    deleted: int = 0


class PutResult(msgspec.Struct, frozen=True):
    header: Header = Header()


class Answer(msgspec.Struct, frozen=True):
    """One operation's within a transaction: of the kind that was asked."""

    response_range: RangeResult | None = None
    response_put: PutResult | None = None
    response_delete_range: DeleteResult | None = None


class TxnResult(msgspec.Struct, frozen=True):
    """`succeeded`: whether the comparisons held, and so which branch was done."""

    header: Header = Header()
    succeeded: bool = False
    responses: tuple[Answer, ...] = ()

    def range(self, index: int) -> RangeResult:
        """The answer to the range that was the branch's operation `index`."""
        return self.responses[index].response_range or RangeResult()


class Lease(msgspec.Struct, frozen=True):
    """A lease; `TTL` in seconds, 0 if it has ended."""

    ID: int = 0
    TTL: int = 0


class LeaseStream(msgspec.Struct, frozen=True):
    result: Lease = Lease()


class Event(msgspec.Struct, frozen=True):
    """A change of a key. `type` is PUT (left out) or DELETE."""

    kv: KeyValue = KeyValue()
    type: str = "PUT"


class WatchResult(msgspec.Struct, frozen=True):
    header: Header = Header()
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""
    events: tuple[Event, ...] = ()


class WatchStream(msgspec.Struct, frozen=True):
    """A line of a watch: a result, or an error (an object whose fields differ by release)."""

    result: WatchResult | None = None
    error: Any = None


class Status(msgspec.Struct, frozen=True, rename="camel"):
    """One member's state. `leader` is a member's id, 0 if it sees none."""

    header: Header = Header()
    version: str = ""
    leader: int = 0
    db_size: int = 0


class Member(msgspec.Struct, frozen=True):
    ID: int = 0
    name: str = ""
    clientURLs: tuple[str, ...] = ()


class Members(msgspec.Struct, frozen=True):
    header: Header = Header()
    members: tuple[Member, ...] = ()


class Token(msgspec.Struct, frozen=True):
    token: str = ""

    def __repr__(self) -> str:
        return repr_without(self, "token")


class Problem(msgspec.Struct, frozen=True):
    """A refusal. `code` is gRPC's."""

    code: int = 0
    message: str = ""
    error: str = ""


_INVALID_ARGUMENT, _PERMISSION_DENIED, _RESOURCE_EXHAUSTED = 3, 7, 8
_FAILED_PRECONDITION, _OUT_OF_RANGE, _UNAUTHENTICATED, _NOT_FOUND = 9, 11, 16, 5
_REFUSALS: Final = frozenset(
    {_INVALID_ARGUMENT, _PERMISSION_DENIED, _RESOURCE_EXHAUSTED, _FAILED_PRECONDITION}
    | {_OUT_OF_RANGE, _UNAUTHENTICATED, _NOT_FOUND}
)
"""gRPC's codes with which etcd has certainly done nothing. All others (unavailable, deadline
exceeded, internal, ...) leave it open: "request timed out" is one that may still be applied."""


_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what was expected."""


def decode(data: bytes, type: type[T], endpoint: str) -> T:
    """An answer as its type. Raises LedgerForeignError."""
    try:
        return msgspec.json.decode(data, type=type, strict=False)
    except _UNREADABLE as error:
        raise not_etcd(endpoint, f"an answer that cannot be read ({error})") from error


def refusal(status: int, data: bytes, endpoint: str) -> LedgerError | None:
    """What an answer other than 200 means; None if it leaves open whether anything was done."""
    try:
        problem = msgspec.json.decode(data, type=Problem, strict=False)
    except _UNREADABLE:
        return None if status in (502, 503, 504) else not_etcd(endpoint, f"HTTP {status}")
    said = problem.message or problem.error
    return said_no(problem.code, said, endpoint) if problem.code in _REFUSALS else None


def said_no(code: int, said: str, endpoint: str) -> LedgerError:
    """The error for a refusal that etcd gives in these words."""
    if code == _UNAUTHENTICATED or "auth token" in said or "auth store is old" in said:
        return EtcdTokenError(f"etcd at {endpoint} does not know this token: {said}")
    if "user name is empty" in said:
        return LedgerAccessError(
            f"etcd at {endpoint} asks for a user: {said}",
            hint="name a user, and give its password in a file or in the environment",
        )
    if code == _PERMISSION_DENIED:
        return LedgerAccessError(
            f"etcd at {endpoint} lets this user not do it: {said}",
            hint="grant the user read and write on the whole prefix",
        )
    if "invalid user ID or password" in said:
        return LedgerAccessError(
            f"etcd at {endpoint} refuses the user or the password", hint="check both"
        )
    if "space exceeded" in said or "no space" in said.lower():
        return LedgerFullError(
            f"etcd at {endpoint} is full: {said}",
            hint="compact and defragment etcd, then disarm its NOSPACE alarm; nothing is lost",
        )
    if "too large" in said:
        return LedgerLimitError(
            f"etcd at {endpoint} refuses a request of this size: {said}",
            hint="start etcd with a larger --max-request-bytes, 1.5 MiB at least",
        )
    return EtcdRefusedError(f"etcd at {endpoint} refuses: {said}", code=code)


def not_etcd(endpoint: str, what: str) -> LedgerForeignError:
    """The error for something else that listens there."""
    return LedgerForeignError(
        f"what listens at {endpoint} answers with {what}, as no etcd from 3.4 on does",
        hint="name etcd's client port (2379 by default), and TLS if that port speaks it",
    )


def prefix_end(prefix: bytes) -> bytes:
    """Where the keys that begin with `prefix` end."""
    for at in range(len(prefix) - 1, -1, -1):
        if prefix[at] < 0xFF:
            return prefix[:at] + bytes((prefix[at] + 1,))
    return b"\0"
