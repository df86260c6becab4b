"""TLS contexts of both sides. TLS 1.3 only: both sides are ours.

A client that has a token trusts the CA that the token names, and no other. Names in certificates
are not compared: whoever has a certificate of that CA may be a coordinator, at any address.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import os
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from rallypoint.security.der import public_key_hash
from rallypoint.security.token_form import Identity

SERVER_NAME: Final = "{ca}.rallypoint"
"""The name that a client asks for (SNI): a coordinator with certificates of several CAs shows the
one that this client trusts. `ca`: the first 32 digits, because a part of a name has at most 63.
"""
_CA_DIGITS: Final = 32
NO_AUTHORITY: Final = "any.rallypoint"
"""The name to ask for by who only looks: the coordinator shows what it shows by default."""


def server_name(ca: str) -> str:
    """The name by which a client of this CA asks for the coordinator."""
    return SERVER_NAME.format(ca=ca[:_CA_DIGITS])


class Client(msgspec.Struct, frozen=True):
    """How to dial a coordinator by TLS: what to trust, and the name to ask for."""

    context: ssl.SSLContext
    server_name: str

    @property
    def options(self) -> dict[str, Any]:
        """The arguments by which asyncio's and aiohttp's calls connect so."""
        return {"ssl": self.context, "server_hostname": self.server_name}


@functools.lru_cache(maxsize=64)
def client(ca_certificate: bytes) -> Client:
    """As `new_client`; the same each time."""
    return new_client(ca_certificate)


def new_client(ca_certificate: bytes) -> Client:
    """Trusts this CA (DER) and no other. The server needs a certificate for servers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # see above
    context.load_verify_locations(cadata=ca_certificate)
    return Client(context, server_name(public_key_hash(ca_certificate)))


def looking_context() -> ssl.SSLContext:
    """Trusts every server. Only to look at its certificates: nothing may be said through it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def server_context(identity: Identity) -> ssl.SSLContext:
    """Shows this identity. Raises ValueError if it cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # No node comes back often enough to gain by them, and each costs two messages.
    context.num_tickets = 0
    text = b"".join(
        (
            _pem("PRIVATE KEY", identity.key),
            _pem("CERTIFICATE", identity.leaf),
            _pem("CERTIFICATE", identity.ca),
        )
    )
    try:
        with _as_file(text) as path:
            context.load_cert_chain(path)
    except ssl.SSLError as error:
        raise ValueError(f"is not usable: {error.reason or error}") from None
    return context


def _pem(what: str, der: bytes) -> bytes:
    body = base64.encodebytes(der)
    return b"-----BEGIN %s-----\n%s-----END %s-----\n" % (what.encode(), body, what.encode())


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A file with these bytes, for a library that reads nothing else. In memory where possible."""
    try:
        descriptor = os.memfd_create("rallypoint", os.MFD_CLOEXEC)
        path = f"/proc/self/fd/{descriptor}"
    except (AttributeError, OSError):
        descriptor, path = tempfile.mkstemp(prefix="rallypoint-")
    try:
        os.write(descriptor, data)
        yield path
    finally:
        os.close(descriptor)
        if not path.startswith("/proc/"):
            Path(path).unlink()
