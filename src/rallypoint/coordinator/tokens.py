"""The tokens that a coordinator accepts. They can be replaced while it runs.

A token is asked for once, with the request that opens a connection. So a token that is taken out
ends no connection; it only opens no other one.
"""

from __future__ import annotations

import hmac


class Tokens:
    """The tokens that open a connection. Without any, everybody is let in."""

    def __init__(self, accepted: tuple[str, ...]) -> None:
        self._accepted = tuple(each for each in accepted if each)

    def __repr__(self) -> str:
        return f"Tokens({len(self._accepted)} set)"

    def __len__(self) -> int:
        return len(self._accepted)

    @property
    def first(self) -> str:
        """The one that strangers are told the fingerprint of; "" if everybody is let in."""
        return self._accepted[0] if self._accepted else ""

    def __contains__(self, token: str) -> bool:
        """Whether this one still opens a connection. Not for what a stranger has sent."""
        return token in self._accepted

    def replace(self, accepted: tuple[str, ...]) -> None:
        """From now on these, and no others, open a connection. Raises ValueError if none is left.

        A coordinator that asks for a token never becomes one that asks for none.
        """
        if not any(accepted):
            raise ValueError("a coordinator with a token needs one")
        self._accepted = tuple(each for each in accepted if each)

    def shown(self, authorization: str) -> str | None:
        """The token that an Authorization header shows, if it is accepted; else None.

        In constant time for each token, and with all of them whichever fits.
        """
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        # aiohttp gives bytes that are no UTF-8 as lone surrogates.
        given = text.encode("utf-8", "surrogateescape")
        found = None
        for each in self._accepted:
            if hmac.compare_digest(given, each.encode()):
                found = each
        return found
