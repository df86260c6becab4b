"""The errors if a server cannot prove that it is a coordinator: what it showed, in words."""

from __future__ import annotations

import ssl
from typing import Final

from rallypoint.errors import NotACoordinatorError, UntrustedCoordinatorError, not_a_coordinator

DIGITS_SHOWN: Final = 16
_NEW_TOKEN: Final = (
    "if the coordinator has a new certificate authority (`rallypoint token new`), give this node "
    "its token; else another program answers there, and nothing was said to it"
)
_REASONS: Final = {
    "certificate has expired": (
        "its certificate has expired",
        "restart the coordinator, which makes a new one (`rallypoint serve --state`), or give it a "
        "new host token; if it is new, compare the clocks of both machines (`date`)",
    ),
    "certificate is not yet valid": (
        "its certificate is not valid yet",
        "compare the clocks of both machines (`date`): this one may be behind",
    ),
}
OTHER_AUTHORITY: Final = (18, 19, 20, 21)
"""X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT, ..._SELF_SIGNED_CERT_IN_CHAIN,
..._UNABLE_TO_GET_ISSUER_CERT_LOCALLY, ..._UNABLE_TO_VERIFY_LEAF_SIGNATURE: the chain of another
authority. Source: OpenSSL, x509_vfy.h.
"""
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
        hint="use the coordinator's token: --token-file FILE (torchrun: token_file in "
        "--rdzv-conf), or RALLYPOINT_TOKEN_FILE",
        needs_token=True,
    )


def failed_handshake(
    where: str, wanted: str, error: ssl.SSLError
) -> NotACoordinatorError | ConnectionResetError:
    """The handshake failed. A connection that only ended is a ConnectionResetError."""
    if isinstance(error, _PASSING):
        return ConnectionResetError("closed the connection during the TLS handshake")
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
    )


def _short(ca: str) -> str:
    return ca[:DIGITS_SHOWN]
