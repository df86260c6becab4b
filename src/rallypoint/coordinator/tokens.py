"""The tokens that a coordinator accepts, and who sends each. They can be replaced while it runs.

A connection sends its token once, with its first request. So the removal of a token closes no
connection, and only prevents new ones.
"""

from __future__ import annotations

import hashlib
import hmac

from rallypoint.security import token_form
from rallypoint.security.hashed import HashedToken
from rallypoint.security.roles import Principal
from rallypoint.tokens import fingerprint

TOKEN_FILE: str = "the token file"


class Tokens:
    """The accepted tokens. If there are none, every client is admitted.

    `accepted` have all roles in all runs. `hashed`: others, each with its own roles and runs.
    """

    def __init__(self, accepted: tuple[str, ...], hashed: tuple[HashedToken, ...] = ()) -> None:
        self._accepted = _credentials(accepted)
        self._hashed = {each.sha256: each for each in hashed}
        self._principals: dict[str, Principal] = {}

    def __repr__(self) -> str:
        return f"Tokens({len(self)} set)"

    def __len__(self) -> int:
        return len(self._accepted) + len(self._hashed)

    @property
    def first(self) -> str:
        """The token whose fingerprint is in a refusal; "" if there is none."""
        return self._accepted[0] if self._accepted else ""

    def __contains__(self, token: str) -> bool:
        """Whether this token is accepted.

        Not in constant time: never use it for a stranger's input.
        """
        text = token_form.credential(token)
        return text in self._accepted or _sha256(text.encode()) in self._hashed

    def replace(self, accepted: tuple[str, ...], hashed: tuple[HashedToken, ...] = ()) -> None:
        """Accept only these tokens from now on. Raises ValueError if there are none.

        So a coordinator with a token never becomes one that admits every client.
        """
        if not any(accepted) and not hashed:
            raise ValueError("a coordinator with a token needs one")
        self._accepted = _credentials(accepted)
        self._hashed = {each.sha256: each for each in hashed}

    def shown(self, authorization: str) -> tuple[str, Principal] | None:
        """The token in an Authorization header and who sends it, if it is accepted; else None.

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
        if found is not None:
            return found, self._of_file(found)
        # The time of this look-up tells nothing about a token: only its hash is compared.
        hashed = self._hashed.get(_sha256(given))
        return None if hashed is None else (text, hashed.principal)

    def _of_file(self, token: str) -> Principal:
        """All rights. Its id is the fingerprint, which `rallypoint token show` prints."""
        known = self._principals.get(token)
        if known is None:
            known = Principal(fingerprint(token) or "token", source=TOKEN_FILE)
            self._principals = {token: known} | self._principals
        return known


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _credentials(tokens: tuple[str, ...]) -> tuple[str, ...]:
    """What clients send of these tokens: no identity."""
    return tuple(token_form.credential(each) for each in tokens if each)
