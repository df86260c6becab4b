"""How a durable engine stores each value: sealed, with a format, a nonce and a checksum.

    bytes  0-3    "RLPT"
           4-5    format
           6-13   nonce: drawn by the writer for this write
          14-21   checksum of all else (BLAKE2b, 8 bytes)
          22-     the value

The checksum shows whether the record is damaged. After an unknown outcome, the nonce shows whether
a record is the writer's own, or has the same value by another writer. This file must not use the
meaning of a value.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

import msgspec

from rallypoint import runtime
from rallypoint.core.reasons import OTHER_FORMAT_HINT
from rallypoint.errors import LedgerCorruptError, LedgerFormatError

FORMAT: Final = 2
"""The format that this release writes, and the only one that it reads. Format 2 quotes the ids of
runs in names."""
DAMAGED_HINT: Final = (
    "stop every process that uses this ledger, keep a copy of it, and restore it from a backup; "
    "nothing has been changed"
)
MAGIC: Final = b"RLPT"
NONCE_BYTES: Final = 8
_HEAD: Final = struct.Struct(f">4sH{NONCE_BYTES}s8s")
OVERHEAD_BYTES: Final = _HEAD.size


class Opened(msgspec.Struct, frozen=True):
    """The content of a sealed record."""

    value: bytes
    nonce: bytes


def new_nonce() -> bytes:
    """A random nonce, for one write."""
    return runtime.here().token_bytes(NONCE_BYTES)


def seal(value: bytes, nonce: bytes, *, format: int = FORMAT) -> bytes:
    """The value as a sealed record."""
    return _HEAD.pack(MAGIC, format, nonce, _checksum(format, nonce, value)) + value


def unseal(sealed: bytes, where: str) -> Opened:
    """The value and nonce of a sealed record. `where` names the record in messages.

    Raises:
        LedgerFormatError: another release wrote the record, in its own format.
        LedgerCorruptError: the record is damaged.
    """
    if len(sealed) < _HEAD.size:
        raise _corrupt(where, f"it has {len(sealed)} bytes, fewer than any record")
    magic, format, nonce, checksum = _HEAD.unpack_from(sealed)
    if magic != MAGIC:
        raise _corrupt(where, f"it begins with {magic!r}, not with {MAGIC!r}")
    if format not in (0, FORMAT):
        # Before the checksum, because another format may have another checksum.
        by = "a newer" if format > FORMAT else "an older"
        raise LedgerFormatError(
            f"{where} was written in format {format} by {by} release; this release reads only "
            f"format {FORMAT}",
            hint=OTHER_FORMAT_HINT,
        )
    value = sealed[_HEAD.size :]
    if format != FORMAT or checksum != _checksum(format, nonce, value):
        raise _corrupt(where, "its checksum does not match its content")
    return Opened(value, nonce)


def is_sealed(data: bytes) -> bool:
    """Whether these bytes begin like a sealed record, which may be damaged."""
    return data.startswith(MAGIC)


def _checksum(format: int, nonce: bytes, value: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=8)
    digest.update(struct.pack(">H", format))
    digest.update(nonce)
    digest.update(value)
    return digest.digest()


def _corrupt(where: str, what: str) -> LedgerCorruptError:
    return LedgerCorruptError(
        f"{where} is damaged: {what}",
        hint=DAMAGED_HINT,
    )
