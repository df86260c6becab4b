"""Tokens of which a coordinator knows only the hash, each with its roles and its runs."""

from __future__ import annotations

from rallypoint.core.values import FrozenStruct
from rallypoint.security.roles import ALL_RUNS, Principal, Role

SOURCE = "tokens.toml"


class HashedToken(FrozenStruct, frozen=True):
    """A token. `sha256`: of what is sent (`token_form.credential`), in hexadecimal digits.

    `ends_at`: until when it counts, in seconds since 1970 by the wall clock; None: without end.
    """

    id: str
    sha256: str
    roles: tuple[Role, ...]
    runs: str = ALL_RUNS
    ends_at: float | None = None

    @property
    def principal(self) -> Principal:
        """Who sends it."""
        return Principal(self.id, self.roles, (self.runs,), self.ends_at, SOURCE)
