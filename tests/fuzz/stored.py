"""Bytes that are read back: registers, logs, chunks, envelopes, files; and what engines answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any, Final

import msgspec

from rallypoint.client.transport import _status_error
from rallypoint.coordinator import log_records
from rallypoint.core import tables
from rallypoint.core.election import records
from rallypoint.core.values import Address, RoundMember
from rallypoint.errors import LedgerError
from rallypoint.launch import failures
from rallypoint.ledger import keys, record_format, single_value
from rallypoint.ledger.etcd import wire as etcd_wire
from rallypoint.wire import messages as wire
from tests.fuzz.making import Make, Maker, bent, packed
from tests.fuzz.watching import Watch, must

INPUTS: Final = 2_000

Read = Callable[[bytes], object]


class _Reader:
    """How bytes of one kind are read, made and refused."""

    def __init__(
        self,
        read: Read,
        kind: Any,
        *declared: type[Exception],
        packs: Callable[[Any], bytes] = packed,
        again: Callable[[Any], bytes] | None = None,
    ) -> None:
        self.read = read
        self.kind = kind
        self.declared = declared
        self.packs = packs
        self.again = again


def _chunk(data: bytes) -> object:
    digest = tables._digest(data)
    chunk = records.Chunk(1, 1, 2, digest)
    return tables.members_of(records.Table(chunks=(chunk,)), {chunk: data})


def _sealed(data: bytes) -> object:
    return record_format.unseal(data, "the record")


def _register_map(data: bytes) -> object:
    return single_value.decode(data, "the backend")


def _answer(kind: type[Any]) -> Read:
    return lambda data: etcd_wire.decode(data, kind, "10.0.0.1:2379")


def _refusal(data: bytes) -> object:
    return etcd_wire.refusal(503, data, "10.0.0.1:2379")


def _status(data: bytes) -> object:
    from websockets.datastructures import Headers
    from websockets.http11 import Response

    for status in (401, 404, 502):
        answer = _status_error(Address("h", 1), Response(status, "no", Headers(), data))
        must(isinstance(answer, Exception), "a refusal is an error")
    return None


def _error_file(data: bytes) -> object:
    return failures._recorded_error(data.decode(errors="replace"))


def _as_json(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (TypeError, UnicodeEncodeError, ValueError):
        return b'{"header":'


def _in_envelope(value: Any) -> bytes:
    return record_format.seal(packed(value), b"12345678")


_JSON_ODD: Final = (
    *(b"[" * 5_000, b'{"a":' * 5_000, b'"\xff"', b'"\\ud800"', b"1e999", b"9" * 5_000, b"", b"\0"),
    *(b'{"header":{"revision":"9999999999999999999999"}}', b'{"kvs":[{"key":"!"}]}', b"null"),
    *(
        b'{"responses":' + b"[" * 2_000,
        b'{"error":' + b"[" * 2_000,
        b"\xef\xbb\xbf{}",
        b"-",
        b"nul",
    ),
)

READERS: Final[dict[str, _Reader]] = {
    "lease": _Reader(
        records.decode_lease, records.Lease, records.UnreadableError, again=records.encode
    ),
    "run": _Reader(
        records.decode_run,
        records.RunRegister,
        records.UnreadableError,
        again=records.encode,
    ),
    "floor": _Reader(
        records.decode_floor, records.Floor, records.UnreadableError, again=records.encode
    ),
    "chunk": _Reader(_chunk, tables._Rows, records.UnreadableError),
    "record": _Reader(
        log_records.decode_record, log_records.Record, log_records.UnreadableLogError
    ),
    "envelope": _Reader(_sealed, RoundMember, LedgerError, packs=_in_envelope),
    "register map": _Reader(_register_map, single_value.RegisterMap, LedgerError),
    "txn": _Reader(_answer(etcd_wire.TxnResult), etcd_wire.TxnResult, LedgerError, packs=_as_json),
    "range": _Reader(
        _answer(etcd_wire.RangeResult), etcd_wire.RangeResult, LedgerError, packs=_as_json
    ),
    "watch": _Reader(
        _answer(etcd_wire.WatchStream), etcd_wire.WatchStream, LedgerError, packs=_as_json
    ),
    "refusal": _Reader(_refusal, etcd_wire.Problem, LedgerError, packs=_as_json),
    "status": _Reader(_status, etcd_wire.Problem, packs=_as_json),
    "error file": _Reader(_error_file, etcd_wire.Problem, packs=_as_json),
    "message": _Reader(wire.decode_from_coordinator, wire.FromCoordinator, wire.MalformedError),
}
_NAMES: Final = tuple(READERS)


@cache
def _maker(name: str) -> Make:
    pools: dict[str, Make] = {
        "format": lambda rng: rng.choice((2, 2, 2, 2, 1, 3, 0, -1)),
        "as_read": lambda rng: [],
    }
    return Maker(READERS[name].kind, pools, 0.01).make


def _some_name(rng: Random) -> str:
    parts = (
        "chunks/",
        "stores/",
        "a/",
        "1",
        "2-3",
        "-",
        ".",
        "9" * 5_000,
        "1.2.3.4",
        "\u0663",
        "~",
    )
    return "".join(rng.choice(parts) for _ in range(rng.randrange(6)))


def _names(rng: Random) -> None:
    """Names that another program may have written: read as ours, or as none."""
    name = _some_name(rng)
    keys.chunk_of(name)
    keys.log_of(name)
    keys.run_key_of_log(name)
    run_id = name or "x"
    must("/" not in keys.quoted(run_id), "a run's id is one part of a name")
    must(len(keys.run_key(run_id).encode()) < 200, "a run's name is short")


def made(rng: Random) -> tuple[str, bytes]:
    """One input: the name of its reader, and the bytes."""
    name = rng.choice(_NAMES)
    reader = READERS[name]
    data = reader.packs(_maker(name)(rng))
    if rng.random() < 0.4:
        data = bent(data, rng)
    if reader.packs is _as_json and rng.random() < 0.1:
        data = rng.choice(_JSON_ODD)
    return name, data


def check(name: str, data: bytes) -> None:
    """Read it. Raises errors that are not declared."""
    reader = READERS[name]
    try:
        found = reader.read(data)
    except reader.declared as error:
        must(len(str(error)) < 20_000, f"{name}: an error of {len(str(error))} characters")
        return
    if reader.again is not None:
        # A value that was read and not changed is written as it was.
        kept = reader.again(found)
        must(reader.again(reader.read(kept)) == kept, f"{name}: {data!r} is written otherwise")


def one(rng: Random) -> None:
    """One input. Raises errors that are not declared."""
    if rng.random() < 0.1:
        _names(rng)
    check(*made(rng))


def episode(rng: Random, watch: Watch) -> int:
    for _ in range(INPUTS):
        one(rng)
    return INPUTS
