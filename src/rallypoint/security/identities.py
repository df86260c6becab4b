"""The identities with which one coordinator proves itself, and the TLS context that shows them.

A coordinator has one for each CA that its tokens name, so that tokens of an old and a new CA work
together while nodes change to the new one. A client asks by name (SNI) for the one that it trusts.
Clients that ask for another name get the certificate of one's own PKI, if there is one.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable

import msgspec

from rallypoint.security import pki, tls, token_form
from rallypoint.security.access import SYSTEM, Certificates
from rallypoint.security.der import public_key_hash, validity
from rallypoint.security.token_form import Identity


class NoIdentityError(ValueError):
    """Tokens name a CA, and none of them has a certificate of it."""


class Prepared(msgspec.Struct, frozen=True):
    """The contexts that show the identities of some tokens: see `Identities.prepare`."""

    by_name: dict[str, ssl.SSLContext]
    first: ssl.SSLContext | None
    authorities: tuple[bytes, ...]
    leaves: tuple[bytes, ...]


class Identities:
    """The identities that its tokens carry. Without any, connections are in clear.

    `own`: files with a certificate of a PKI; `client_ca`: a file with the authorities of clients'
    certificates. Owned by one event loop. Raises NoIdentityError; ValueError for a token that is
    damaged, or files that cannot be used.
    """

    def __init__(
        self,
        tokens: Iterable[str],
        own: Certificates | None = None,
        client_ca: str | None = None,
    ) -> None:
        self._own = own
        self._client_ca = client_ca
        self._by_name: dict[str, ssl.SSLContext] = {}
        self._first: ssl.SSLContext | None = None
        self._authorities: tuple[bytes, ...] = ()
        self._leaves: tuple[bytes, ...] = ()
        self.replace(tokens)

    def __bool__(self) -> bool:
        return self._first is not None

    def replace(self, tokens: Iterable[str]) -> None:
        """Use the identities of these tokens for connections that come from now on.

        The files of the PKI are read again, too, in this thread.
        """
        self.use(self.prepare(tokens))

    def prepare(self, tokens: Iterable[str]) -> Prepared:
        """What `use` needs. Any thread may call it.

        It reads the files of the PKI, so it may block as long as a file system does. Raises
        NoIdentityError; ValueError for a damaged token, or files that cannot be used.
        """
        has_own = self._own is not None and self._own.cert is not None
        found = _identities(tokens, may_miss=has_own)
        contexts = {name: tls.server_context(each) for name, each in found.items()}
        leaves = [each.leaf for each in found.values()]
        first = next(iter(contexts.values()), None)
        if self._own is not None and has_own:
            first = pki.server_context(self._own, self._client_ca)
            leaves.append(pki.own_certificate(self._own))
        if first is not None and (len(contexts) > 1 or (contexts and has_own)):
            first.sni_callback = self._choose
        return Prepared(contexts, first, tuple(each.ca for each in found.values()), tuple(leaves))

    def use(self, prepared: Prepared) -> None:
        """Use these for connections that come from now on."""
        self._by_name, self._first = prepared.by_name, prepared.first
        self._authorities, self._leaves = prepared.authorities, prepared.leaves

    @property
    def ends_at(self) -> float | None:
        """When the first of its certificates ends, in seconds since 1970; None without TLS."""
        return min((validity(each)[1] for each in self._leaves), default=None)

    @property
    def authorities(self) -> dict[str, bytes]:
        """The certificate (DER) of each CA, by its name in tokens."""
        return {public_key_hash(each): each for each in self._authorities}

    def server(self) -> ssl.SSLContext | None:
        """The context for a new connection; None: it is in clear."""
        return self._first

    @property
    def asks_for_certificates(self) -> bool:
        """Whether clients may prove themselves by certificates of a PKI."""
        return self._client_ca is not None

    def client_to(self, host: str) -> tls.Client | None:
        """How to ask another coordinator with the same tokens, or of the same PKI. None: in clear.

        It may block as long as a file system does. Raises CertificateFileError.
        """
        if self._authorities:
            return tls.client(self._authorities[0])
        own = self._own
        if own is None:
            return None
        if own.ca == SYSTEM and self._client_ca is not None:
            own = Certificates(self._client_ca, own.cert, own.key)
        return pki.client(own, host)

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        chosen = self._by_name.get(name or "")
        if chosen is not None:
            connection.context = chosen


def _identities(tokens: Iterable[str], *, may_miss: bool) -> dict[str, Identity]:
    """Of each CA, by the name under which clients ask for it.

    `may_miss`: tokens may be of a CA whose certificate this process does not have.
    """
    found: dict[str, Identity] = {}
    without: list[str] = []
    for token in tokens:
        parts = token_form.parse(token)
        if parts is None:
            continue
        if parts.identity is None:
            without.append(parts.ca)
        else:
            found.setdefault(tls.server_name(parts.ca), parts.identity)
    missing = [ca for ca in without if tls.server_name(ca) not in found]
    if missing and not may_miss:
        raise NoIdentityError(missing[0])
    return found
