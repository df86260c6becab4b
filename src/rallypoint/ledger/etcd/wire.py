"""The answers of etcd's JSON gateway as types, and the errors for its refusals.

The gateway maps etcd's protobuf to JSON. Bytes are base64 (msgspec decodes it), 64-bit numbers are
strings (decoded leniently), and fields that are zero or empty are left out.
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
    """A request for a change got no answer: the change may have been made, or may be made later."""


class EtcdCompactedError(LedgerError):
    """etcd has compacted the revision from which to watch: read again."""


class EtcdTokenError(LedgerAccessError):
    """etcd does not accept the token: authenticate again."""


class EtcdRefusedError(LedgerError):
    """etcd refused for a reason without its own class. `code` is gRPC's."""

    def __init__(self, message: str, *, hint: str = "", code: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class Header(msgspec.Struct, frozen=True):
    """Part of every answer: the store's revision after the request, and the member that answers."""

    revision: int = 0
    cluster_id: int = 0
    member_id: int = 0


class KeyValue(msgspec.Struct, frozen=True):
    """A key. `version` counts its changes since it was created."""

    key: bytes = b""
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    version: int = 0
    lease: int = 0


class RangeResult(msgspec.Struct, frozen=True):
    """Keys in order. `more`: there are more than the limit."""

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
    """The answer to one operation of a transaction."""

    response_range: RangeResult | None = None
    response_put: PutResult | None = None
    response_delete_range: DeleteResult | None = None


class TxnResult(msgspec.Struct, frozen=True):
    """`succeeded`: whether the conditions held, and so which branch was done."""

    header: Header = Header()
    succeeded: bool = False
    responses: tuple[Answer, ...] = ()

    def range(self, index: int) -> RangeResult:
        """The answer to operation `index` of the branch, which is a range."""
        return self.responses[index].response_range or RangeResult()


class Lease(msgspec.Struct, frozen=True):
    """A lease. `TTL` is in seconds; 0 if it has ended."""

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
    """A line of a watch: a result, or an error (whose fields differ between releases)."""

    result: WatchResult | None = None
    error: Any = None


class Status(msgspec.Struct, frozen=True, rename="camel"):
    """The state of one member. `leader` is a member's id; 0 if it knows of none."""

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
"""gRPC's codes for which etcd has certainly done nothing. With all others (unavailable, deadline
exceeded, internal, ...) the request may still be done: "request timed out" is one of them."""


_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that it cannot decode."""


def decode(data: bytes, type: type[T], endpoint: str) -> T:
    """Decode an answer. Raises LedgerForeignError if it cannot be read."""
    try:
        return msgspec.json.decode(data, type=type, strict=False)
    except _UNREADABLE as error:
        raise not_etcd(endpoint, f"an answer that cannot be read ({error})") from error


def refusal(status: int, data: bytes, endpoint: str) -> LedgerError | None:
    """The error for an answer other than 200; None if the request may have been done."""
    try:
        problem = msgspec.json.decode(data, type=Problem, strict=False)
    except _UNREADABLE:
        return None if status in (502, 503, 504) else not_etcd(endpoint, f"HTTP {status}")
    said = problem.message or problem.error
    return said_no(problem.code, said, endpoint) if problem.code in _REFUSALS else None


def said_no(code: int, said: str, endpoint: str) -> LedgerError:
    """The error for a refusal with this code and text."""
    if code == _UNAUTHENTICATED or "auth token" in said or "auth store is old" in said:
        return EtcdTokenError(f"etcd at {endpoint} does not accept this token: {said}")
    if "user name is empty" in said:
        return LedgerAccessError(
            f"etcd at {endpoint} asks for a user: {said}",
            hint="name a user, and give the password in a file or in the environment",
        )
    if code == _PERMISSION_DENIED:
        return LedgerAccessError(
            f"etcd at {endpoint} does not permit this to the user: {said}",
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
    """The error for an endpoint that is not etcd."""
    return LedgerForeignError(
        f"the server at {endpoint} is not etcd 3.4 or later: it answers with {what}",
        hint="name etcd's client port (2379 by default), and TLS if that port uses it",
    )


def range_problem(found: RangeResult, key: bytes, range_end: bytes) -> str:
    """What is wrong with the answer to a range; "" if nothing is.

    A caller that reads page by page ends only if each page has keys of the range, in order.
    """
    before = b""
    for each in found.kvs:
        is_inside = each.key >= key and (each.key < range_end or range_end == b"\0")
        if not (is_inside if range_end else each.key == key):
            return "a key that was not asked for"
        if each.key <= before:
            return "keys that are not in order"
        before = each.key
    return ""


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that begin with `prefix`."""
    for at in range(len(prefix) - 1, -1, -1):
        if prefix[at] < 0xFF:
            return prefix[:at] + bytes((prefix[at] + 1,))
    return b"\0"
