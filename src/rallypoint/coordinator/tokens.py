"""The tokens that a coordinator accepts. They can be replaced while it runs.

A connection sends its token once, with its first request. So the removal of a token closes no
connection, and only prevents new ones.
"""

from __future__ import annotations

import hmac

from rallypoint.security import token_form


class Tokens:
    """The accepted tokens. If there are none, every client is admitted."""

    def __init__(self, accepted: tuple[str, ...]) -> None:
        self._accepted = _credentials(accepted)

    def __repr__(self) -> str:
        return f"Tokens({len(self._accepted)} set)"

    def __len__(self) -> int:
        return len(self._accepted)

    @property
    def first(self) -> str:
        """The token whose fingerprint is in a refusal; "" if there is none."""
        return self._accepted[0] if self._accepted else ""

    def __contains__(self, token: str) -> bool:
        """Whether this token is accepted.

        Not in constant time: never use it for a stranger's input.
        """
        return token_form.credential(token) in self._accepted

    def replace(self, accepted: tuple[str, ...]) -> None:
        """Accept only these tokens from now on. Raises ValueError if there are none.

        So a coordinator with a token never becomes one that admits every client.
        """
        if not any(accepted):
            raise ValueError("a coordinator with a token needs one")
        self._accepted = _credentials(accepted)

    def shown(self, authorization: str) -> str | None:
        """The token in an Authorization header, if it is accepted; else None.

        It takes constant time: it compares every token, even after a match.
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


def _credentials(tokens: tuple[str, ...]) -> tuple[str, ...]:
    """What clients send of these tokens: no identity."""
    return tuple(token_form.credential(each) for each in tokens if each)
