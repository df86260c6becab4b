"""Makes certificates: a small authority (CA) for one cluster, and those of its coordinators.

Keys are of the curve P-256, which every TLS 1.3 implementation has, so that a handshake costs
little. A certificate counts from LEEWAY before its start to LEEWAY after its end, because the
clocks of two machines differ: certificates are the one thing that depends on the time of day (R9).

`cryptography` is imported by the calls that need it, because it takes 70 ms, and nodes do not need
it.
"""

from __future__ import annotations

import datetime as dt
import functools
import secrets
from typing import TYPE_CHECKING, Final

from rallypoint.security.claims import LEEWAY_S, Claim, check_name, signed
from rallypoint.security.der import public_key_hash
from rallypoint.security.roles import Role, check_pattern
from rallypoint.security.token_form import SECRET_BYTES, Identity, written, written_claim

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

LEEWAY: Final = dt.timedelta(seconds=LEEWAY_S)
"""How far two clocks may differ."""
CA_VALID: Final = dt.timedelta(days=3650)
LEAF_VALID: Final = dt.timedelta(days=90)
"""How long the certificate of a `serve` counts. It makes a new one long before."""
HOST_TOKEN_VALID: Final = dt.timedelta(days=30)
"""How long a token of the role host counts, unless another time is given."""
CLAIM_VALID: Final = dt.timedelta(days=30)
"""How long a claim counts, unless another time is given."""
CLAIM_ID_BYTES: Final = 6
_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the group of P-256 (SEC 2, 2.4.2)."""
HOST_URI: Final = "spiffe://rallypoint/host"
HOST_NAME: Final = "rallypoint"
"""The names (SAN) in the certificate of a coordinator. Nodes do not look at them. Other programs,
such as Prometheus, compare a name: they have to expect this one, whatever the host.
"""


class Authority:
    """A CA with its private key."""

    def __init__(self, certificate: x509.Certificate, key: EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def new(cls, now: dt.datetime | None = None) -> Authority:
        """A new CA. `now`: when it begins to count; None: now."""
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        name = f"Rallypoint CA {secrets.token_hex(4)}"
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        builder = (
            _builder(now or _now(), CA_VALID)
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        )
        return cls(_signed(builder, key), key)

    @classmethod
    def read(cls, certificate: bytes, key: bytes) -> Authority:
        """A CA from two PEM texts. Raises ValueError if they do not belong together."""
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        found = x509.load_pem_x509_certificate(certificate)
        try:
            secret = serialization.load_pem_private_key(key, password=None)
        except TypeError:
            raise ValueError("the key has a passphrase, which cannot be asked for") from None
        if not isinstance(secret, ec.EllipticCurvePrivateKey):
            raise ValueError("the key is not of an elliptic curve")
        if found.public_key() != secret.public_key():
            raise ValueError("the key does not belong to the certificate")
        return cls(found, secret)

    @property
    def ca(self) -> str:
        """The name of the CA in tokens."""
        return public_key_hash(self.der)

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        from cryptography.hazmat.primitives.serialization import Encoding

        return self._certificate.public_bytes(Encoding.DER)

    def pem(self) -> tuple[bytes, bytes]:
        """The certificate and the private key in PEM."""
        from cryptography.hazmat.primitives import serialization as form

        certificate = self._certificate.public_bytes(form.Encoding.PEM)
        return certificate, self._key.private_bytes(
            form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
        )

    def identity(
        self, valid: dt.timedelta = LEAF_VALID, now: dt.datetime | None = None
    ) -> Identity:
        """A new certificate for a coordinator, with a new key. `valid`: for how long it counts."""
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization as form
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key = ec.generate_private_key(ec.SECP256R1())
        common_name = x509.NameAttribute(x509.NameOID.COMMON_NAME, "Rallypoint coordinator")
        server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        names = x509.SubjectAlternativeName(
            [x509.UniformResourceIdentifier(HOST_URI), x509.DNSName(HOST_NAME)]
        )
        own_id = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        signer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own_id)
        builder = (
            _builder(now or _now(), valid)
            .subject_name(x509.Name([common_name]))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(server, critical=False)
            .add_extension(names, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(signer, critical=False)
        )
        leaf = _signed(builder, self._key)
        private = key.private_bytes(
            form.Encoding.DER, form.PrivateFormat.PKCS8, form.NoEncryption()
        )
        return Identity(self.der, leaf.public_bytes(form.Encoding.DER), private)

    def claim(
        self,
        roles: tuple[Role, ...],
        runs: str,
        valid: dt.timedelta,
        now: dt.datetime | None = None,
        *,
        name: str = "",
    ) -> tuple[Claim, str]:
        """A new signed claim, and its text. `valid`: for how long it counts, from now on.

        Raises ValueError for a pattern of runs or a name that is none.
        """
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        begins = now or _now()
        ends = begins + valid
        made = Claim(
            secrets.token_hex(CLAIM_ID_BYTES),
            roles,
            check_pattern(runs),
            int(begins.timestamp()),
            int(ends.timestamp()),
            check_name(name),
        )

        def sign(payload: str) -> bytes:
            found = self._key.sign(signed(self.ca, payload), ec.ECDSA(hashes.SHA256()))
            return _canonical(self._key.curve.name, found)

        return made, written_claim(self.ca, made, sign)


def has_signed(ca_certificate: bytes, what: bytes, signature: bytes) -> bool:
    """Whether the CA with this certificate (DER) has signed this. About 0.1 ms.

    Of the two signatures that anybody can make of one, only the canonical one counts.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = _public_key(ca_certificate)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        key.verify(signature, what, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return _canonical(key.curve.name, signature) == signature


def _canonical(curve: str, signature: bytes) -> bytes:
    """The signature with the lower one of the two s that are valid.

    The CAs of Rallypoint are of P-256. With another curve the signature stays as it is.
    """
    from cryptography.hazmat.primitives.asymmetric import utils

    if curve != "secp256r1":
        return signature
    r, s = utils.decode_dss_signature(signature)
    return utils.encode_dss_signature(r, min(s, _P256_ORDER - s))


@functools.lru_cache(maxsize=16)
def _public_key(certificate: bytes) -> object:
    from cryptography import x509

    return x509.load_der_x509_certificate(certificate).public_key()


def new_host_token(valid: dt.timedelta = CA_VALID) -> str:
    """A token with a CA of its own: all who have it can join, and be the coordinator.

    The CA's key is forgotten, so no other token can name the same CA.
    """
    authority = Authority.new()
    return written(authority.ca, new_secret(), authority.identity(valid))


def new_secret() -> str:
    """256 random bits as text."""
    return secrets.token_urlsafe(SECRET_BYTES)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _builder(now: dt.datetime, valid: dt.timedelta) -> x509.CertificateBuilder:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - LEEWAY)
        .not_valid_after(now + valid + LEEWAY)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _signed(builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey) -> x509.Certificate:
    from cryptography.hazmat.primitives import hashes

    return builder.sign(key, hashes.SHA256())
