"""Why one request to one endpoint of etcd failed: never sent, lost, or a bad endpoint.

The client uses these three to decide whether to try the next endpoint or to raise. `wire` has the
refusals in etcd's answers.
"""

from __future__ import annotations

import os
import socket
import ssl

from rallypoint.errors import LedgerAccessError, LedgerError


class NotSentError(Exception):
    """The request was certainly not sent."""


class LostError(Exception):
    """The request may have been sent, but there is no answer with its outcome."""


class BadEndpointError(Exception):
    """This endpoint cannot be used. Another one may be good."""

    def __init__(self, error: LedgerError) -> None:
        super().__init__(error.message)
        self.error = error


def certificate_error(
    url: str, error: Exception, ca_file: str | None, cert_file: str | None
) -> LedgerAccessError:
    """The error for a failed TLS handshake: which side rejected the other, and what to change.

    `ca_file` and `cert_file` are the options of the client.
    """
    words = system_words(error)
    if isinstance(_system_error(error), ssl.SSLCertVerificationError):
        ca = ca_file or "the authorities of this system"
        return LedgerAccessError(
            f"the certificate of etcd at {url} is not trusted: {words}",
            hint=f"it was checked against {ca}; give the file of etcd's own CA as ca=FILE, and "
            "name the host as the certificate names it",
        )
    if "alert" in words:
        what = (
            f"rejected the client certificate {cert_file}"
            if cert_file
            else "requires a client certificate"
        )
        return LedgerAccessError(
            f"etcd at {url} {what}: {words}",
            hint="give cert=FILE and key=FILE of a certificate signed by a CA that etcd trusts",
        )
    return LedgerAccessError(
        f"no TLS connection to etcd at {url}: {words}", hint="check that this port uses TLS"
    )


def system_words(error: BaseException) -> str:
    """The system's text of an error, without numbers, addresses and lines of source code."""
    system = _system_error(error)
    match system:
        case ssl.SSLCertVerificationError() if system.verify_message:
            return str(system.verify_message)
        case ssl.SSLError() if system.reason:
            return str(system.reason).replace("_", " ").lower()
        case socket.gaierror() if system.strerror:
            return system.strerror
        case OSError() if system.errno is not None and system.errno > 0:
            return os.strerror(system.errno)  # asyncio replaces the system's text by its own
    return str(system) or type(system).__name__


def _system_error(error: BaseException) -> BaseException:
    """The error of the system inside an error of aiohttp."""
    for name in ("certificate_error", "os_error"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return inner
    return error
