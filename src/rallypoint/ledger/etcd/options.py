"""The addresses of etcd, the protocol, certificates and limits."""

from __future__ import annotations

import ssl

import msgspec

from rallypoint.errors import LedgerAccessError
from rallypoint.ledger.etcd.failures import system_words


class EtcdOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The addresses of etcd, and how to connect to them.

    `endpoints` are "host:port". With `tls`, `ca_file` has the trusted authorities (None: those of
    the system), and `cert_file` with `key_file` is the certificate of this client. Times are in
    seconds. `try_timeout_s` limits how long one endpoint may be silent, which is the delay by a
    frozen member. `timeout_s` limits a call. The repr does not show the password.
    """

    endpoints: tuple[str, ...]
    tls: bool = False
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    user: str = ""
    password: str = ""
    try_timeout_s: float = 1.0
    timeout_s: float = 5.0
    watch_idle_s: float = 5.0
    """After this much silence, in seconds, a watch continues at the next endpoint, because this one
    may be frozen.
    """

    def __repr__(self) -> str:
        user = f", user={self.user!r}" if self.user else ""
        return f"EtcdOptions({', '.join(self.endpoints)}, tls={self.tls}{user})"


def tls_context(options: EtcdOptions) -> ssl.SSLContext:
    """The TLS context of these options. Raises LedgerAccessError for files that cannot be used."""
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
        if options.cert_file:
            context.load_cert_chain(options.cert_file, options.key_file)
    except (OSError, ssl.SSLError) as error:
        files = [options.ca_file, options.cert_file, options.key_file]
        raise LedgerAccessError(
            f"the certificate or key for etcd cannot be used: {system_words(error)}",
            hint=f"check {', '.join(filter(None, files))}: readable PEM files, and the key "
            "must be that of the certificate",
        ) from error
    return context
