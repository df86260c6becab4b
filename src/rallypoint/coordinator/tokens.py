"""The tokens that a coordinator accepts, and who sends each. They can be replaced while it runs.

A connection sends its token once, with its first request. So the removal of a token closes no
connection, and only prevents new ones. Only a revocation closes connections (`server.py`).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from rallypoint import runtime
from rallypoint.security import authority, claims, token_form
from rallypoint.security.hashed import HashedToken
from rallypoint.security.roles import Denial, Principal
from rallypoint.tokens import fingerprint

TOKEN_FILE: Final = "the token file"
CLAIMS_KEPT: Final = 4_096
"""How many claims are remembered whose signature was checked."""
NONE_SENT: Final = Denial("this coordinator needs a token, and the request has none", "", "")
WRONG: Final = Denial("the token is wrong", "", "")


class Login(msgspec.Struct, frozen=True):
    """An accepted token, and who sends it."""

    token: str
    principal: Principal

    def __repr__(self) -> str:
        return f"Login({self.principal!r})"


class Tokens:
    """The accepted tokens. If there are none, every client is admitted.

    `accepted` have all roles in all runs. `hashed`: others, each with its own roles and runs.
    `authorities`: the CAs whose claims are accepted, by name, each with its certificate (DER).
    `revoked`: the ids of claims and of hashed tokens that are not accepted any more.
    `awaits_revoked`: whether those ids are not known yet; then no token with an id is accepted.

    Raises ValueError for a claim among `accepted`: its holder has not all roles.
    """

    def __init__(
        self,
        accepted: tuple[str, ...],
        hashed: tuple[HashedToken, ...] = (),
        authorities: Mapping[str, bytes] | None = None,
    ) -> None:
        self._accepted = _credentials(accepted)
        self._hashed = {each.sha256: each for each in hashed}
        self._authorities = dict(authorities or {})
        self._principals: dict[str, Principal] = {}
        self._checked: dict[str, claims.Claim] = {}
        self.revoked: frozenset[str] = frozenset()
        self.revoked_by: dict[str, str] = {}
        """Who has revoked them, as far as that is known."""
        self.awaits_revoked = False

    def __repr__(self) -> str:
        return f"Tokens({len(self)} set)"

    def __len__(self) -> int:
        return len(self._accepted) + len(self._hashed)

    @property
    def first(self) -> str:
        """The token whose fingerprint is in a refusal; "" if there is none."""
        return self._accepted[0] if self._accepted else ""

    @property
    def may_be_revoked(self) -> bool:
        """Whether there are tokens with ids, which can be revoked one by one."""
        return bool(self._hashed or self._authorities)

    def replace(
        self,
        accepted: tuple[str, ...],
        hashed: tuple[HashedToken, ...] = (),
        authorities: Mapping[str, bytes] | None = None,
    ) -> None:
        """Accept only these tokens from now on. Raises ValueError if there are none.

        So a coordinator with a token never becomes one that admits every client.
        """
        if not any(accepted) and not hashed:
            raise ValueError("a coordinator with a token needs one")
        self._accepted = _credentials(accepted)
        self._hashed = {each.sha256: each for each in hashed}
        self._authorities = dict(authorities or {})
        self._checked = {}

    def login(
        self, authorization: str | None, may_check: Callable[[], bool] = lambda: True
    ) -> Login | Denial:
        """Who sends this Authorization header; a denial with a reason if its token was accepted.

        `may_check`: called before the signature of an unknown claim is checked; False: it is not.
        A denial without a reason tells nothing about any token. It takes constant time for the
        tokens of the file: it compares every one, even after a match.
        """
        if authorization is None:
            return NONE_SENT
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return WRONG
        # aiohttp decodes bytes that are not UTF-8 as lone surrogates.
        given = text.encode("utf-8", "surrogateescape")
        found = None
        for each in self._accepted:
            if hmac.compare_digest(given, each.encode()):
                found = each
        if found is not None:
            return Login(found, self._of_file(found))
        # The time of this look-up tells nothing about a token: only its hash is compared.
        hashed = self._hashed.get(hashlib.sha256(given).hexdigest())
        if hashed is not None:
            return self._of_hashed(text, hashed)
        return self._of_claim(text, may_check) if token_form.is_claim(text) else WRONG

    def revocation(self, token_id: str, what: str) -> Denial | None:
        """Why what has this id does not count, as far as it may be revoked; None if it counts."""
        if token_id in self.revoked:
            return claims.revoked(what, self.revoked_by.get(token_id, ""))
        return claims.UNREAD if self.awaits_revoked else None

    def knows(self, token: str) -> bool:
        """Whether a token that was accepted before still is. Never use it for a stranger's."""
        return isinstance(self.login(f"Bearer {token}"), Login)

    def _of_file(self, token: str) -> Principal:
        """All rights. Its id is the fingerprint, which `rallypoint token show` prints."""
        known = self._principals.get(token)
        if known is None:
            known = Principal(fingerprint(token) or "token", source=TOKEN_FILE)
            self._principals = {token: known} | self._principals
        return known

    def _of_hashed(self, token: str, hashed: HashedToken) -> Login | Denial:
        what = f"token {hashed.id}"
        denied = self.revocation(hashed.id, what)
        if denied is not None:
            return denied
        if hashed.ends_at is not None and runtime.here().wall_s() > hashed.ends_at:
            return claims.expired(what, hashed.ends_at)
        return Login(token, hashed.principal)

    def _of_claim(self, token: str, may_check: Callable[[], bool]) -> Login | Denial:
        # What a claim says is told only once its signature was checked.
        claim = self._checked.get(token)
        if claim is None:
            found = self._checked_claim(token, may_check)
            if isinstance(found, Denial):
                return found
            claim = found
            while len(self._checked) >= CLAIMS_KEPT:
                del self._checked[next(iter(self._checked))]
            self._checked[token] = claim
        denied = self.revocation(claim.id, f"claim {claim.id}")
        denied = denied or claim.problem(runtime.here().wall_s())
        return denied or Login(token, claim.principal)

    def _checked_claim(self, token: str, may_check: Callable[[], bool]) -> claims.Claim | Denial:
        try:
            parts = token_form.parse(token)
        except ValueError:
            return claims.DAMAGED
        if parts is None or parts.signed is None:
            return WRONG
        certificate = self._authorities.get(parts.ca)
        if certificate is None:
            return claims.of_other_authority(parts.ca, tuple(self._authorities))
        if not may_check():
            return claims.UNCHECKED
        signed = claims.signed(parts.ca, parts.signed.payload)
        if not authority.has_signed(certificate, signed, parts.signed.signature):
            return claims.DAMAGED
        return parts.signed.claim


def _credentials(tokens: tuple[str, ...]) -> tuple[str, ...]:
    """What clients send of these tokens: no identity."""
    if any(map(token_form.is_claim, tokens)):
        raise ValueError("a signed claim is for nodes and commands, and not for a coordinator")
    return tuple(token_form.credential(each) for each in tokens if each)
