"""The errors if a server cannot prove that it is a coordinator: what it showed, in words."""

from __future__ import annotations

import ssl
from typing import Final

from rallypoint.errors import NotACoordinatorError, UntrustedCoordinatorError, not_a_coordinator
from rallypoint.security import pki
from rallypoint.security.access import Certificates
from rallypoint.security.authority import HOST_NAME

DIGITS_SHOWN: Final = 16
_NEW_TOKEN: Final = (
    "if the coordinator has a new certificate authority (`rallypoint token new`), give this node "
    "its token; else another program answers there, and nothing was said to it"
)
_COMPARE: Final = "compare the clocks of both machines (`date`): this one may be behind"
_REASONS: Final = {
    "certificate has expired": (
        "its certificate has expired",
        "restart the coordinator, which makes a new one (`rallypoint serve --state`), or give it a "
        "new host token; if it is new, compare the clocks of both machines (`date`)",
    ),
    "certificate is not yet valid": (
        "its certificate is not valid yet",
        _COMPARE,
    ),
}
_REASONS_OF_PKI: Final = {
    "certificate has expired": (
        "which has expired",
        "renew the files of the coordinator's --tls-cert and --tls-key: it reads them again within "
        "seconds; if they are new, compare the clocks of both machines (`date`)",
    ),
    "certificate is not yet valid": (
        "which is not valid yet",
        _COMPARE,
    ),
}
_USE_ITS_TOKEN: Final = (
    "use the coordinator's token: --token-file FILE (torchrun: token_file in --rdzv-conf), or "
    "RALLYPOINT_TOKEN_FILE"
)
FILES_HINT: Final = "give PEM files that this user can read: --tls-ca, --tls-cert and --tls-key"
_OTHER_CERTIFICATE: Final = "have a new certificate issued for the coordinator (--tls-cert)"
NEW_CERTIFICATE: Final = (
    "give one of an authority in the coordinator's --client-ca: --tls-cert FILE, and --tls-key "
    "FILE; if it has expired, compare the clocks of both machines (`date`)"
)
_OTHER_NAME: Final = (62, 64)
"""X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH"""
OTHER_AUTHORITY: Final = (18, 19, 20, 21)
"""X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT, ..._SELF_SIGNED_CERT_IN_CHAIN,
..._UNABLE_TO_GET_ISSUER_CERT_LOCALLY, ..._UNABLE_TO_VERIFY_LEAF_SIGNATURE: the chain of another
authority. Source: OpenSSL, x509_vfy.h.
"""
_CLOSED: Final = "closed the connection during the TLS handshake"
_IN_CLEAR: Final = "WRONG_VERSION_NUMBER"
"""OpenSSL's reason if the answer is no TLS record."""
_PASSING: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError)


def other_authority(where: str, wanted: str, shown: str) -> UntrustedCoordinatorError:
    """The server's certificates are of another authority. Both: hashes of public keys, as in
    tokens; `shown` "": none that could be read.
    """
    theirs = f"authority {_short(shown)}" if shown else "an authority that it does not show"
    return UntrustedCoordinatorError(
        f"the server at {where} has a certificate of {theirs}, and this token names "
        f"{_short(wanted)}",
        hint=_NEW_TOKEN,
        shown=shown,
    )


def needs_token(where: str) -> UntrustedCoordinatorError:
    """The server answers a request in clear by TLS."""
    return UntrustedCoordinatorError(
        f"the server at {where} uses TLS, and there is no token here that names its authority",
        hint=_USE_ITS_TOKEN,
        needs_token=True,
    )


def by_pki(
    where: str,
    name: str,
    own: Certificates,
    error: ssl.SSLCertVerificationError,
    shown: tuple[bytes, ...],
) -> UntrustedCoordinatorError:
    """The server's certificates are not accepted by those of a PKI. `shown`: its own first.

    `name`: the host as it was given. Reads the files of `own` again, for their fingerprints.
    """
    leaf = shown[0] if shown else b""
    mark = pki.fingerprint(leaf)[:DIGITS_SHOWN] if leaf else "none"
    theirs = f"the server at {where} shows a certificate (SHA-256 {mark})"
    if error.verify_code in OTHER_AUTHORITY and HOST_NAME.encode() in leaf:
        return UntrustedCoordinatorError(
            f"{theirs} of a token's authority, and there is no token here that names it",
            hint=_USE_ITS_TOKEN,
            needs_token=own == Certificates(),
        )
    if error.verify_code in OTHER_AUTHORITY:
        why = f"by an authority that is not trusted here: {pki.trusted_words(own)} are"
        return UntrustedCoordinatorError(
            f"{theirs} {why}",
            hint="give the authority of the coordinator's certificate: --tls-ca FILE, or "
            "RALLYPOINT_TLS_CA; if it is a token's, the token: --token-file FILE",
        )
    if error.verify_code in _OTHER_NAME:
        names = ", ".join(pki.names_of(leaf)) or "no host"
        return UntrustedCoordinatorError(
            f"{theirs} for {names}, and not for {name!r}",
            hint="use a name of the certificate in the endpoint (and for --advertise, if the "
            "coordinator was found through a ledger), or have it issued for this name, too",
        )
    said = error.verify_message
    what, hint = _REASONS_OF_PKI.get(said, (f"and it is not accepted: {said}", _OTHER_CERTIFICATE))
    return UntrustedCoordinatorError(f"{theirs}, {what}", hint=hint)


def refused_by_pki(
    where: str, own: Certificates, error: ssl.SSLError
) -> NotACoordinatorError | ConnectionResetError:
    """The handshake by certificates of a PKI failed, or the server refused this side's own."""
    reason = error.reason or ""
    if "ALERT" in reason and "VERSION" not in reason and "HANDSHAKE" not in reason:
        what = reason.rpartition("ALERT_")[2].replace("_", " ").lower()
        mine = f"the certificate {own.cert!r}" if own.cert else "a client without a certificate"
        return UntrustedCoordinatorError(
            f"the coordinator at {where} refused {mine}: {what}", hint=NEW_CERTIFICATE
        )
    if isinstance(error, _PASSING):
        return ConnectionResetError(_CLOSED) if own.cert is None else closed_by_pki(own)
    return not_a_coordinator(
        where,
        f"it does not speak TLS 1.3, which this endpoint asks for ({error.reason or error})",
        hint="the coordinator has no certificate (`serve --tls-cert`): then use http://"
        if reason == _IN_CLEAR
        else "",
    )


def closed_by_pki(own: Certificates) -> NotACoordinatorError | ConnectionResetError:
    """The server closed the connection after this side has shown its certificate, if it has one.

    It does not send why. A certificate that has expired is the reason; else it may be another, such
    as a coordinator that ends.
    """
    said = "closed the connection without an answer"
    if own.cert is None:
        return ConnectionResetError(said)
    why = pki.out_of_date(own)
    if why:
        return UntrustedCoordinatorError(
            f"the coordinator refused the certificate {own.cert!r}: {why}", hint=NEW_CERTIFICATE
        )
    return ConnectionResetError(
        f"{said}, after {own.cert!r} was shown: its log says why, if its --client-ca does not have "
        "the authority of this certificate"
    )


def failed_handshake(
    where: str, wanted: str, error: ssl.SSLError
) -> NotACoordinatorError | ConnectionResetError:
    """The handshake failed. A connection that only ended is a ConnectionResetError."""
    if isinstance(error, _PASSING):
        return ConnectionResetError(_CLOSED)
    if isinstance(error, ssl.SSLCertVerificationError):
        said = error.verify_message
        what, hint = _REASONS.get(said, (f"its certificate is not accepted: {said}", _NEW_TOKEN))
        return UntrustedCoordinatorError(
            f"the server at {where} cannot be trusted: {what} (this token names authority "
            f"{_short(wanted)})",
            hint=hint,
        )
    return not_a_coordinator(
        where,
        f"it does not speak TLS 1.3, which this token asks for ({error.reason or error})",
        hint="the coordinator was started without a token: give it this one, or use none here"
        if error.reason == _IN_CLEAR
        else "",
    )


def _short(ca: str) -> str:
    return ca[:DIGITS_SHOWN]
