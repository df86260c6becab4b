"""The tokens that a coordinator accepts. They can be replaced while it runs.

A connection shows its token once, with its first request. So removing a token closes no connection;
it only opens no more.
"""

from __future__ import annotations

import hmac


class Tokens:
    """The tokens that open a connection. Without any, every client is admitted."""

    def __init__(self, accepted: tuple[str, ...]) -> None:
        self._accepted = tuple(each for each in accepted if each)

    def __repr__(self) -> str:
        return f"Tokens({len(self._accepted)} set)"

    def __len__(self) -> int:
        return len(self._accepted)

    @property
    def first(self) -> str:
        """The token whose fingerprint a refusal names; "" if there is none."""
        return self._accepted[0] if self._accepted else ""

    def __contains__(self, token: str) -> bool:
        """Whether this token is accepted. Not in constant time: not for input of strangers."""
        return token in self._accepted

    def replace(self, accepted: tuple[str, ...]) -> None:
        """Accept these tokens and no others from now on. Raises ValueError if there is none.

        So a coordinator with a token never becomes one without.
        """
        if not any(accepted):
            raise ValueError("a coordinator with a token needs one")
        self._accepted = tuple(each for each in accepted if each)

    def shown(self, authorization: str) -> str | None:
        """The token in an Authorization header, if it is accepted; else None.

        In constant time: each token is compared, also after one that fits.
        """
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        # aiohttp decodes bytes that are not UTF-8 as lone surrogates.
        given = text.encode("utf-8", "surrogateescape")
        found = None
        for each in self._accepted:
            if hmac.compare_digest(given, each.encode()):
                found = each
        return found
