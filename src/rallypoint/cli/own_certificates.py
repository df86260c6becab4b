"""The certificates of a PKI that `rallypoint serve` uses: from its options, or the environment."""

from __future__ import annotations

from typing import Final

import msgspec

from rallypoint import settings
from rallypoint.errors import UsageError
from rallypoint.security.access import Certificates


class OwnCertificates(msgspec.Struct, frozen=True):
    """The files of a PKI: this coordinator's own, and the authorities of its clients."""

    certificates: Certificates | None = None
    client_ca: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """All of them."""
        own = () if self.certificates is None else self.certificates.files
        return own if self.client_ca is None else (*own, self.client_ca)


NO_CERTIFICATES: Final = OwnCertificates()


def own_certificates(
    tls_cert: str | None, tls_key: str | None, client_ca: str | None
) -> OwnCertificates:
    """The files of the options, or of the environment. Raises UsageError if one cannot be used."""
    cert, key, clients, ca = (
        settings.resolve(name, given).value
        for name, given in (
            ("tls_cert", tls_cert),
            ("tls_key", tls_key),
            ("client_ca", client_ca),
            ("tls_ca", None),
        )
    )
    found = settings.certificates(ca, cert, key)
    if cert is None and clients is not None:
        raise UsageError(
            "--client-ca is given without --tls-cert: clients show certificates only by TLS",
            hint="add --tls-cert and --tls-key, the coordinator's own certificate",
        )
    settings.check_certificates(found, clients)
    return OwnCertificates(found, clients)
