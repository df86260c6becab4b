"""The public key and the validity of a certificate, from its DER, without a library.

A node needs only this of a certificate before TLS itself checks it, and importing `cryptography`
would take longer than to meet a coordinator. Source: RFC 5280, section 4.1, and X.690.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Final

_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_FIELDS_BEFORE_KEY: Final = 5
"""serialNumber, signature, issuer, validity, subject."""
ENDS_SOON_S: Final = 3 * 86_400.0
"""How long before its end somebody has to know of it, in seconds."""
_FIELDS_BEFORE_VALIDITY: Final = 3
_TIMES: Final = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}
"""UTCTime and GeneralizedTime, as RFC 5280, 4.1.2.5, allows them. %y is below 69 until 2068."""


def public_key_hash(certificate: bytes) -> str:
    """SHA-256 of the certificate's SubjectPublicKeyInfo, in hexadecimal digits.

    Raises ValueError for bytes that are no certificate.
    """
    at, end = _after(certificate, _FIELDS_BEFORE_KEY)
    _, key_end = _inside(certificate, at, end, _SEQUENCE)
    return hashlib.sha256(certificate[at:key_end]).hexdigest()


def validity(certificate: bytes) -> tuple[float, float]:
    """From when until when the certificate counts, in seconds since 1970.

    Raises ValueError for bytes that are no certificate.
    """
    at, end = _after(certificate, _FIELDS_BEFORE_VALIDITY)
    at, end = _inside(certificate, at, end, _SEQUENCE)
    found = []
    for _ in range(2):
        if at >= end or certificate[at] not in _TIMES:
            raise ValueError(_NONE)
        form = _TIMES[certificate[at]]
        first, at = _inside(certificate, at, end, certificate[at])
        text = certificate[first:at].decode("ascii", "replace")
        found.append(dt.datetime.strptime(text, form).replace(tzinfo=dt.UTC).timestamp())
    return found[0], found[1]


def _after(certificate: bytes, fields: int) -> tuple[int, int]:
    """Where the field after so many of them begins, and where all of them end."""
    begin, end = _inside(certificate, 0, len(certificate), _SEQUENCE)
    at, end = _inside(certificate, begin, end, _SEQUENCE)
    if at < end and certificate[at] == _VERSION:
        _, at = _inside(certificate, at, end, _VERSION)
    for _ in range(fields):
        if at >= end:
            raise ValueError(_NONE)
        _, at = _inside(certificate, at, end, certificate[at])
    return at, end


def _inside(data: bytes, at: int, limit: int, tag: int) -> tuple[int, int]:
    """Where the content of the element at `at` begins and ends. `limit`: the end of its parent."""
    if at + 2 > limit or data[at] != tag:
        raise ValueError(_NONE)
    size, begin = data[at + 1], at + 2
    if size & 0x80:
        count = size & 0x7F
        if not 1 <= count <= 4 or begin + count > limit:
            raise ValueError(_NONE)
        size, begin = int.from_bytes(data[begin : begin + count], "big"), begin + count
    if begin + size > limit:
        raise ValueError(_NONE)
    return begin, begin + size


_NONE: Final = "these bytes are no certificate"
