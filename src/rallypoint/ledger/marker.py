"""The marker of a durable ledger: its id, written once when the ledger is made.

A file ledger has it in a file, etcd under a key. It is never changed. An engine that finds another
marker than the one it opened works on another ledger.
"""

from __future__ import annotations

import msgspec

from rallypoint import runtime
from rallypoint.ledger import record_format


class Marker(msgspec.Struct, frozen=True):
    """The content of the marker."""

    ledger_id: str
    engine: str = ""


def new_marker(engine: str) -> tuple[str, bytes]:
    """The id of a new ledger, and its marker in a sealed record."""
    marker = Marker(runtime.token_hex(8), engine)
    sealed = record_format.seal(msgspec.msgpack.encode(marker), record_format.new_nonce())
    return marker.ledger_id, sealed


def decode(value: bytes) -> Marker:
    """The marker in a record's value. Raises msgspec.MsgspecError for other values."""
    return msgspec.msgpack.decode(value, type=Marker)
