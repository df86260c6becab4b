"""How to dial a coordinator: the token to send, and whose certificates to trust.

Quick to import: what it means is done in tls.py and pki.py.
"""

from __future__ import annotations

from typing import Final

import msgspec

SYSTEM: Final = "system"
"""For `ca`: the authorities that this machine trusts."""


class Certificates(msgspec.Struct, frozen=True):
    """Whom this process trusts, and what it shows.

    `ca`: a file with the trusted authorities, or SYSTEM. `cert`, `key`: files with this process's
    own certificate (with its chain) and its private key; None: it shows none. `key` None: it is in
    the file `cert`.
    """

    ca: str = SYSTEM
    cert: str | None = None
    key: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """All files of it."""
        found = (None if self.ca == SYSTEM else self.ca, self.cert, self.key)
        return tuple(each for each in found if each is not None)


class CertificateFileError(ValueError):
    """A file of certificates cannot be used. The text says which, and why."""


class Access(msgspec.Struct, frozen=True):
    """How to dial a coordinator: the token to send, and by which certificates it proves itself.

    `own`: the PKI's; None: those of the CA that the token names, or no TLS if it names none.
    `name`: the host as it was given, which a certificate of a PKI must name.
    """

    token: str = ""
    own: Certificates | None = None
    name: str = ""

    def __repr__(self) -> str:
        return f"Access({'set' if self.token else 'none'}, {self.own!r}, {self.name!r})"

    def to(self, name: str) -> Access:
        """The same for a host of this name."""
        return self if self.own is None else msgspec.structs.replace(self, name=name)


NO_ACCESS: Final = Access()
