"""What is around every value that a durable engine keeps: a format, a nonce and a checksum.

    bytes  0-3    "RLPT"
           4-5    format
           6-13   nonce: drawn by the writer for this write
          14-21   checksum of all else (BLAKE2b, 8 bytes)
          22-     the value

The checksum tells a damaged record from a whole one; the nonce tells one's own write from another's
with the same bytes, after an unknown outcome. What the value means is nobody's business here.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from typing import Final

import msgspec

from rallypoint.errors import LedgerCorruptError, LedgerFormatError

FORMAT: Final = 2
"""What this release writes, and all that it reads. Format 2 quotes the ids of runs in names."""
OTHER_FORMAT_HINT: Final = (
    "use the release that wrote it; or stop every process of that release and give this release a "
    "ledger of its own (another folder, or another prefix in etcd)"
)
MAGIC: Final = b"RLPT"
NONCE_BYTES: Final = 8
_HEAD: Final = struct.Struct(f">4sH{NONCE_BYTES}s8s")
OVERHEAD_BYTES: Final = _HEAD.size


class Opened(msgspec.Struct, frozen=True):
    """What was in an envelope."""

    value: bytes
    nonce: bytes


def new_nonce() -> bytes:
    """A nonce that nobody else draws."""
    return secrets.token_bytes(NONCE_BYTES)


def seal(value: bytes, nonce: bytes, *, format: int = FORMAT) -> bytes:
    """The value in its envelope."""
    return _HEAD.pack(MAGIC, format, nonce, _checksum(format, nonce, value)) + value


def unseal(sealed: bytes, where: str) -> Opened:
    """Take a value out. `where` names it for people.

    Raises LedgerFormatError if another release wrote it, LedgerCorruptError if it is damaged.
    """
    if len(sealed) < _HEAD.size:
        raise _corrupt(where, f"it has {len(sealed)} bytes, less than any record")
    magic, format, nonce, checksum = _HEAD.unpack_from(sealed)
    if magic != MAGIC:
        raise _corrupt(where, f"it begins with {magic!r}, and every record with {MAGIC!r}")
    if format not in (0, FORMAT):
        # Before the checksum: another format may have another one.
        by = "a newer" if format > FORMAT else "an older"
        raise LedgerFormatError(
            f"{where} was written in format {format} by {by} release, and this one reads format "
            f"{FORMAT} alone",
            hint=OTHER_FORMAT_HINT,
        )
    value = sealed[_HEAD.size :]
    if format != FORMAT or checksum != _checksum(format, nonce, value):
        raise _corrupt(where, "its checksum does not fit its content")
    return Opened(value, nonce)


def is_sealed(data: bytes) -> bool:
    """Whether this looks like a record of ours at all, whole or not."""
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
        hint="stop every process that uses this ledger, keep a copy of it, and restore it from a "
        "backup; nothing has been changed",
    )
