"""TLS by certificates of one's own public key infrastructure (PKI), in place of the token's CA.

For `rallypoint serve` at a name for which an organisation, or a public authority, has issued a
certificate. The client compares the name, as browsers do. Files are PEM, and are read again once
they have changed, so that a renewed certificate needs no restart.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from rallypoint.core.reasons import tidy
from rallypoint.security import tls
from rallypoint.security.access import SYSTEM, CertificateFileError, Certificates
from rallypoint.security.claims import time_text
from rallypoint.security.der import validity
from rallypoint.security.files import signature

_SHOWN_MAX: Final = 3

_contexts: dict[tuple[Certificates, tuple[object, ...]], ssl.SSLContext] = {}
_CONTEXTS_MAX: Final = 16


def client(files: Certificates, name: str) -> tls.Client:
    """How to dial a server that must have a certificate for this name or address.

    It may block as long as a file system does. Raises CertificateFileError.
    """
    key = (files, tuple(signature(Path(each)) for each in files.files))
    context = _contexts.get(key)
    if context is None:
        while len(_contexts) >= _CONTEXTS_MAX:
            del _contexts[next(iter(_contexts))]
        context = _contexts[key] = _client_context(files)
    return tls.Client(context, name.partition("%")[0])


S = TypeVar("S", bound=ssl.SSLSocket)


def secured(
    files: Certificates, name: str, connect: Callable[[], socket.socket], kind: type[S]
) -> S:
    """A connection that blocks, to a server with a certificate for this name.

    `connect` returns a connected socket; `kind`: the class of the result. Raises
    CertificateFileError, and OSError.
    """
    context = _client_context(files)
    context.sslsocket_class = kind
    found = context.wrap_socket(connect(), server_hostname=name.partition("%")[0])
    assert isinstance(found, kind)
    return found


def _client_context(files: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if files.ca == SYSTEM:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _trust(context, files.ca)
    _show(context, files)
    return context


def server_context(files: Certificates, client_ca: str | None = None) -> ssl.SSLContext:
    """Shows the certificate of `files`. `client_ca`: a file with the authorities of clients.

    A client may show a certificate of them, and need not: the coordinator decides for each request
    what it may do. Raises CertificateFileError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # as tls.server_context
    _show(context, files)
    if client_ca is not None:
        _trust(context, client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def check(files: Certificates, client_ca: str | None = None) -> None:
    """Raises CertificateFileError if these files cannot be used."""
    _client_context(files)
    if client_ca is not None:
        _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), client_ca)


def fingerprint(certificate: bytes) -> str:
    """The SHA-256 of a certificate (DER), as `openssl x509 -fingerprint -sha256` shows it."""
    return hashlib.sha256(certificate).hexdigest().upper()


def own_certificate(files: Certificates) -> bytes:
    """The certificate (DER) that this process shows. Raises CertificateFileError."""
    assert files.cert is not None
    try:
        text = Path(files.cert).read_text(encoding="ascii", errors="replace")
        begin = text.index(ssl.PEM_HEADER)
        end = text.index(ssl.PEM_FOOTER, begin) + len(ssl.PEM_FOOTER)
        return ssl.PEM_cert_to_DER_cert(text[begin:end])
    except (OSError, ValueError) as error:
        raise CertificateFileError(f"{files.cert!r} cannot be read: {_why(error)}") from None


def out_of_date(files: Certificates) -> str:
    """Why this process's certificate does not count now; "" if it does."""
    try:
        begin, end = validity(own_certificate(files))
    except ValueError as error:
        return f"it cannot be read any more: {error}"
    now = dt.datetime.now(dt.UTC).timestamp()
    if now > end:
        return f"it has expired, on {time_text(end)}"
    if now < begin:
        return f"it is valid only from {time_text(begin)} on"
    return ""


def names_of(certificate: bytes) -> list[str]:
    """The hosts that a certificate (DER) is for, as text; the first few. Loads `cryptography`."""
    from cryptography import x509

    try:
        found = x509.load_der_x509_certificate(certificate)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return []
    hosts = names.get_values_for_type(x509.DNSName)
    addresses = names.get_values_for_type(x509.IPAddress)
    return [tidy(str(each), 100) for each in (*hosts, *addresses)][:_SHOWN_MAX]


def trusted_words(files: Certificates) -> str:
    """Which authorities are trusted, in words, with the fingerprints of the first few."""
    if files.ca == SYSTEM:
        return "the authorities of this machine"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        _trust(context, files.ca)
    except CertificateFileError as error:
        return str(error)
    known = [fingerprint(each)[:16] for each in context.get_ca_certs(binary_form=True)]
    more = f" and {len(known) - _SHOWN_MAX} more" if len(known) > _SHOWN_MAX else ""
    return f"{files.ca} (SHA-256 {', '.join(known[:_SHOWN_MAX])}{more})"


def _trust(context: ssl.SSLContext, path: str) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise CertificateFileError(f"{path!r} has no certificates in PEM: {_why(error)}") from None
    except (OSError, ValueError) as error:
        raise CertificateFileError(f"{path!r} cannot be read: {_why(error)}") from None
    if not context.get_ca_certs():
        raise CertificateFileError(f"{path!r} has no certificate of an authority")


def _show(context: ssl.SSLContext, files: Certificates) -> None:
    if files.cert is None:
        return

    def no_password() -> str:
        raise CertificateFileError(
            f"the private key in {files.key or files.cert!r} is encrypted, and nobody can type its "
            "password here"
        )

    for each in (files.cert, files.key):
        _check_readable(each)
    try:
        context.load_cert_chain(files.cert, files.key, no_password)
    except ssl.SSLError as error:
        where = files.cert if files.key is None else f"{files.cert} and {files.key}"
        raise CertificateFileError(f"the certificate of {where} {_misfit(error)}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, CertificateFileError):
            raise
        raise CertificateFileError(f"{files.cert!r} cannot be read: {_why(error)}") from None


def _check_readable(path: str | None) -> None:
    if path is None:
        return
    try:
        with Path(path).open("rb"):
            return
    except (OSError, ValueError) as error:
        raise CertificateFileError(f"{path!r} cannot be read: {_why(error)}") from None


def _misfit(error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return "does not belong to the private key"
    return f"and its private key cannot be used: {_why(error)}"


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "no PEM").replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)
