"""The text of a token that names a certificate authority (CA).

    rlp1.<CA>.<secret>              a node's: it proves itself by the secret
    rlp1.<CA>.<secret>.<identity>   a host's: it can also prove that it is a coordinator
    rlp1.<CA>.c.<claim>             a signed claim: its holder has the roles in it (see claims.py)

`<CA>` is the SHA-256 of the CA's public key (its SubjectPublicKeyInfo in DER, as for RFC 7469) in
64 hexadecimal digits. It survives new certificates of the coordinators and of the CA. `<identity>`
has a certificate of that CA with its private key. It is never sent: see `credential`.

A token of another form names no CA. Such a token is sent without TLS, so it is for one machine.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Final

import msgspec

from rallypoint.core.values import repr_without
from rallypoint.security.claims import Claim, decoded, payload_of, read_payload

PREFIX: Final = "rlp1."
LENGTH_MAX: Final = 4096
"""The longest token, in characters. A host's has about 1,300."""
SECRET_BYTES: Final = 32
_FORM: Final = re.compile(r"rlp1\.([0-9a-f]{64})\.([A-Za-z0-9_-]{22,200})(?:\.([A-Za-z0-9_-]+))?")
_CLAIM: Final = re.compile(r"rlp1\.([0-9a-f]{64})\.c\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_HOW: Final = "rlp1.<64 hexadecimal digits>.<secret>, as `rallypoint token new` makes it"


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """What proves that a process may be a coordinator: DER of two certificates and of a key.

    `ca`: of the authority; `leaf`: of the coordinator, signed by it; `key`: the leaf's private key,
    in PKCS #8.
    """

    ca: bytes
    leaf: bytes
    key: bytes

    def __repr__(self) -> str:
        return repr_without(self, "key")


class Signed(msgspec.Struct, frozen=True):
    """A claim, whose signature was not checked yet. `payload`: its text, which is signed."""

    claim: Claim
    payload: str
    signature: bytes

    def __repr__(self) -> str:
        return f"Signed({self.claim!r})"


class Parts(msgspec.Struct, frozen=True):
    """The parts of a token. `identity` None: its holder cannot be a coordinator.

    `signed`: the claim, in place of a secret.
    """

    ca: str
    secret: str
    identity: Identity | None = None
    signed: Signed | None = None

    def __repr__(self) -> str:
        return f"Parts({self.ca!r}, can_host={self.identity is not None})"


def names_ca(token: str) -> bool:
    """Whether a token claims to have this form."""
    return token.startswith(PREFIX)


def parse(token: str) -> Parts | None:
    """The parts of a token; None for a token that names no CA.

    Raises ValueError, which does not show it, for a token that has only the beginning of one.
    """
    if not names_ca(token):
        return None
    found = _FORM.fullmatch(token)
    claim = _CLAIM.fullmatch(token)
    if claim is not None and len(token) <= LENGTH_MAX:
        return Parts(claim[1], "", signed=_signed(claim[2], claim[3]))
    if found is None or len(token) > LENGTH_MAX:
        raise ValueError(f"is not complete: it must be {_HOW} (it is not shown here)")
    ca, secret, text = found.groups()
    return Parts(ca, secret, _identity(text) if text else None)


def _signed(payload: str, signature: str) -> Signed:
    try:
        found = decoded(signature)
    except ValueError:
        raise ValueError("is damaged: it has no signature (it is not shown here)") from None
    return Signed(read_payload(payload), payload, found)


def _identity(text: str) -> Identity:
    try:
        return msgspec.msgpack.decode(decoded(text), type=Identity)
    except (msgspec.DecodeError, ValueError):
        raise ValueError(
            "is damaged: its last part has no certificate (it is not shown here)"
        ) from None


def ca_of(token: str) -> str:
    """The CA that a token names, in 64 digits; "" for one that names none, or is not complete."""
    found = _FORM.fullmatch(token) or _CLAIM.fullmatch(token)
    return found[1] if found is not None else ""


def is_claim(token: str) -> bool:
    """Whether a token has the form of a signed claim."""
    return _CLAIM.fullmatch(token) is not None


def written_claim(ca: str, claim: Claim, sign: Callable[[str], bytes]) -> str:
    """The text of a claim. `sign` returns the signature for its payload."""
    payload = payload_of(claim)
    signature = base64.urlsafe_b64encode(sign(payload)).rstrip(b"=").decode()
    return f"{PREFIX}{ca}.c.{payload}.{signature}"


def can_host(token: str) -> bool:
    """Whether a coordinator can serve with this token alone: it has an identity, or needs none.

    Raises ValueError as `parse` does.
    """
    parts = parse(token)
    return parts is None or parts.identity is not None


def credential(token: str) -> str:
    """What is sent and compared: the token without its identity."""
    found = _FORM.fullmatch(token)
    return f"{PREFIX}{found[1]}.{found[2]}" if found is not None else token


def written(ca: str, secret: str, identity: Identity | None = None) -> str:
    """The text of a token with these parts."""
    text = f"{PREFIX}{ca}.{secret}"
    if identity is None:
        return text
    data = base64.urlsafe_b64encode(msgspec.msgpack.encode(identity)).rstrip(b"=")
    return f"{text}.{data.decode()}"


def with_identity(token: str, identity: Identity) -> str:
    """The same token, whose holder can be a coordinator. Raises ValueError as `parse` does."""
    parts = parse(token)
    if parts is None:
        raise ValueError(f"names no CA: it must be {_HOW} (it is not shown here)")
    if parts.signed is not None:
        raise ValueError("is a claim, whose holder cannot be a coordinator (it is not shown here)")
    return written(parts.ca, parts.secret, identity)
