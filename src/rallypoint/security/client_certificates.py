"""Who a client is, by the certificate that it shows: its role, its runs and its node.

    spiffe://rallypoint/<role>[/<runs>[/<node>]]     a URI in the subject's alternative names
    <role>[/<runs>[/<node>]]                         the common name, if there are no such names

`<runs>` is a pattern of run ids and `<node>` the name of one node, both percent-encoded; without
them it counts for all. TLS has checked the certificate before this file reads it. Source: SPIFFE-ID
2.1 and 2.2 (scheme and trust domain are compared without case), RFC 5280 4.2.1.6, RFC 6125 6.4.4
(the common name counts only without alternative names).
"""

from __future__ import annotations

import hashlib
import ssl
import urllib.parse
from collections.abc import Mapping
from typing import Any, Final

from rallypoint.core.reasons import tidy
from rallypoint.security.roles import ALL_RUNS, Principal, Role, check_pattern

PREFIX: Final = "spiffe://rallypoint/"
ID_PREFIX: Final = "certificate-"
SOURCE: Final = "its certificate"
_SHOWN_MAX: Final = 80


class UnknownClientError(ValueError):
    """A certificate names no role. The text says what it names."""


def principal_of(certificate: Mapping[str, Any]) -> Principal:
    """The holder of a certificate, which is as `ssl.SSLSocket.getpeercert` returns it.

    Raises UnknownClientError.
    """
    texts = _names(certificate)
    if len(texts) > 1:
        raise UnknownClientError("its certificate names several roles, and one is allowed")
    role, runs, node = _parts(texts[0] if texts else "")
    ends = certificate.get("notAfter")
    return Principal(
        _id_of(certificate),
        (role,),
        () if runs == ALL_RUNS else (runs,),
        None if ends is None else float(ssl.cert_time_to_seconds(str(ends))),
        SOURCE,
        node,
    )


def _id_of(certificate: Mapping[str, Any]) -> str:
    """Names the certificate, as its issuer and its serial number do (RFC 5280 4.1.2.2)."""
    pairs = (pair for part in certificate.get("issuer", ()) for pair in part)
    issuer = "\n".join(f"{name}={value}" for name, value in pairs)
    serial = str(certificate.get("serialNumber", ""))[:40].lower()
    return f"{ID_PREFIX}{hashlib.sha256(issuer.encode()).hexdigest()[:8]}-{serial}"


def _names(certificate: Mapping[str, Any]) -> list[str]:
    """What it names: a URI of ours, or the common name if it has no alternative names at all."""
    others = certificate.get("subjectAltName", ())
    if not others:
        pairs = (pair for part in certificate.get("subject", ()) for pair in part)
        return [str(value) for name, value in pairs if name == "commonName"]
    uris = [str(value) for kind, value in others if kind == "URI"]
    return [each[len(PREFIX) :] for each in uris if each[: len(PREFIX)].lower() == PREFIX]


def _parts(text: str) -> tuple[Role, str, str | None]:
    pieces = text.split("/")
    try:
        if len(pieces) > 3:
            raise ValueError
        role, runs, node = (*pieces, *("",) * (3 - len(pieces)))
        pattern = urllib.parse.unquote(runs, errors="strict") or ALL_RUNS
        name = urllib.parse.unquote(node, errors="strict") or None
        return Role(role), check_pattern(pattern), name
    except ValueError:
        shown = tidy(text, _SHOWN_MAX) or "nothing"
        raise UnknownClientError(
            f"its certificate names {shown!r}, which is no role: {PREFIX}<role>/<runs>/<node> is, "
            f"with a role of {', '.join(Role)}"
        ) from None
