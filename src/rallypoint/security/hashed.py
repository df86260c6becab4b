"""Tokens of which a coordinator knows only the hash, each with its roles and its runs: tokens.toml.

    [[token]]
    id = "dashboard"
    sha256 = "..."                  # of the token's text, in 64 hexadecimal digits
    role = "viewer"                 # or several: ["viewer", "operator"]
    runs = "team-*"                 # all if left out
    expires = 2027-01-31T00:00:00Z  # never if left out

The hash needs no salt, because a token has 128 random bits or more.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Sequence
from typing import Any, Final

from rallypoint.core.values import FrozenStruct
from rallypoint.security.roles import ALL_RUNS, Principal, Role, check_pattern
from rallypoint.security.token_form import credential

SOURCE: Final = "tokens.toml"
HASHED_MAX: Final = 10_000
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_FIELDS: Final = ("id", "sha256", "role", "runs", "expires")


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


def hash_of(token: str) -> str:
    """The hash of a token, as it is in the file."""
    return hashlib.sha256(credential(token).encode()).hexdigest()


def check_id(text: str) -> str:
    """The id of a token. Raises ValueError."""
    if not _ID.fullmatch(text):
        raise ValueError("must be 1 to 64 letters, digits or . _ @ -, beginning with one of those")
    return text


def read_toml(data: bytes) -> tuple[HashedToken, ...]:
    """The tokens of a file. Raises ValueError, which names the entry and its fault."""
    import tomllib  # here, because every process loads this file, and few read such a file

    try:
        found = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"it is no TOML: {error}") from None
    others = sorted(set(found) - {"token"})
    entries = found.get("token", [])
    if others or not isinstance(entries, list) or not all(isinstance(x, dict) for x in entries):
        raise ValueError(f"it must have only [[token]] entries{_named(others)}")
    if len(entries) > HASHED_MAX:
        raise ValueError(f"it has more than {HASHED_MAX} entries")
    tokens = tuple(_token(number, entry) for number, entry in enumerate(entries, 1))
    for field in ("id", "sha256"):
        seen: set[str] = set()
        for each in tokens:
            value = getattr(each, field)
            if value in seen:
                raise ValueError(f"entry {each.id!r}: another one has the same {field}")
            seen.add(value)
    return tokens


def as_toml(token: HashedToken) -> str:
    """An entry for the file."""
    roles = ", ".join(f'"{each}"' for each in token.roles)
    lines = ["[[token]]", f'id = "{token.id}"', f'sha256 = "{token.sha256}"', f"role = [{roles}]"]
    if token.runs != ALL_RUNS:
        lines.append(f"runs = {_quoted(token.runs)}")
    if token.ends_at is not None:
        ends = dt.datetime.fromtimestamp(token.ends_at, dt.UTC).replace(microsecond=0)
        lines.append(f"expires = {ends.isoformat().replace('+00:00', 'Z')}")
    return "\n".join(lines) + "\n"


def _token(number: int, entry: dict[str, Any]) -> HashedToken:
    name = entry.get("id") if isinstance(entry.get("id"), str) else f"number {number}"
    try:
        unknown = sorted(set(entry) - set(_FIELDS))
        if unknown:
            raise ValueError(f"has {unknown[0]!r}, and may have: {', '.join(_FIELDS)}")
        for field in ("id", "sha256"):
            if not isinstance(entry.get(field), str):
                raise ValueError(f"needs {field}, as text")
        if not _HASH.fullmatch(entry["sha256"]):
            raise ValueError("sha256 must have 64 hexadecimal digits (0-9, a-f)")
        runs = entry.get("runs", ALL_RUNS)
        if not isinstance(runs, str):
            raise ValueError("runs must be a pattern, as text")
        return HashedToken(
            check_id(entry["id"]),
            entry["sha256"],
            _roles(entry.get("role")),
            check_pattern(runs),
            _ends_at(entry.get("expires")),
        )
    except ValueError as error:
        raise ValueError(f"entry {name!r}: {error}") from None


def _roles(value: Any) -> tuple[Role, ...]:
    names = value if isinstance(value, list) else [value]
    try:
        found = tuple(dict.fromkeys(map(Role, names)))
    except ValueError:
        found = ()
    if not found:
        raise ValueError(f"role must be one or more of: {', '.join(Role)}")
    return found


def _ends_at(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, dt.datetime) or value.tzinfo is None:
        raise ValueError("expires must be a time with its zone, such as 2027-01-31T00:00:00Z")
    return value.timestamp()


def _named(names: Sequence[str]) -> str:
    return f", and not {', '.join(map(repr, names[:3]))}" if names else ""


def _quoted(text: str) -> str:
    """As a basic string of TOML. A pattern can be printed, so it has no control characters."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
