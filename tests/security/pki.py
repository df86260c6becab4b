"""A small public key infrastructure for tests: authorities, and certificates of theirs as files."""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAY = dt.timedelta(days=1)


class Issuer:
    """An authority, in a folder of its own. `file`: its certificate."""

    def __init__(self, folder: Path, name: str = "Example CA") -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        builder = self._builder(self._name, self._key, -DAY, 30 * DAY).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.file = folder / "ca.pem"
        self.file.write_bytes(
            builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )

    def issue(
        self,
        file: str,
        *hosts: str,
        uris: tuple[str, ...] = (),
        common_name: str = "",
        begins: dt.timedelta = -DAY,
        ends: dt.timedelta = DAY,
        password: bytes = b"",
    ) -> tuple[Path, Path]:
        """Write a certificate for these hosts and URIs, and its key. Returns both files.

        `begins`, `ends`: from now on.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [*map(_host, hosts)]
        names += map(x509.UniformResourceIdentifier, uris)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name or "leaf")])
        builder = self._builder(subject, key, begins, ends)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        cert, secret = self._folder / f"{file}.pem", self._folder / f"{file}.key"
        cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        how: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password:
            how = serialization.BestAvailableEncryption(password)
        secret.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)
        )
        return cert, secret

    def _builder(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        begins: dt.timedelta,
        ends: dt.timedelta,
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + ends)
        )


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
