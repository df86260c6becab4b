"""Tokens and passwords: the files and variables that hold them, and how strong a token is.

No error of this file shows a secret. The token of a user's home is in rallypoint/tokens.py.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from rallypoint.endpoints import Endpoint, EtcdPlace
from rallypoint.errors import UsageError
from rallypoint.security import token_form
from rallypoint.security.authority import CA_VALID, LEAF_VALID
from rallypoint.security.hashed import HashedToken
from rallypoint.security.state import State, StateError
from rallypoint.settings.environment import Environ
from rallypoint.settings.resolution import Resolved, resolve
from rallypoint.settings.values import parse_password, parse_token


def resolve_token(token_file: str | None = None, environ: Environ | None = None) -> Resolved:
    """The token: from `token_file`, else RALLYPOINT_TOKEN_FILE, else RALLYPOINT_TOKEN, else "".

    Never from a command line, which every user of the machine can read. A directory is the state
    of a cluster (security/state.py). Raises UsageError for a file that cannot be read or that holds
    no token.
    """
    path = resolve("token_file", token_file, environ)
    if path.value is None:
        return resolve("token", None, environ)
    if is_folder(path.value):
        # It stays in this process's memory, which nobody makes a new one for.
        token = _tokens_of_state(path.value, CA_VALID)[0]
    else:
        token = _read_secret(path.value, "token", parse_token)
    return Resolved("token", token, f"file {path.value} ({path.source})")


def resolve_tokens(token_file: str | None = None, environ: Environ | None = None) -> Resolved:
    """All tokens that a coordinator accepts, as a tuple: empty if there is none.

    The sources are those of `resolve_token`, which returns the first one. A file has one token on
    each line, so that old and new tokens are accepted while nodes change to the new one. Raises
    UsageError as `resolve_token` does.
    """
    path = resolve("token_file", token_file, environ)
    if path.value is None:
        token = resolve("token", None, environ)
        return Resolved("token", (token.value,) if token.value else (), token.source)
    is_state = is_folder(path.value)
    tokens = _tokens_of_state(path.value) if is_state else _read_tokens(path.value)
    return Resolved("token", tokens, f"file {path.value} ({path.source})")


class Accepted(msgspec.Struct, frozen=True):
    """What a coordinator accepts. `tokens`: with all roles; `hashed`: each with its own.

    `revoked`: the ids of claims and of hashed tokens that count no more; `revoked_by`: who has
    revoked them, as far as that is known.
    """

    tokens: tuple[str, ...] = ()
    hashed: tuple[HashedToken, ...] = ()
    revoked: frozenset[str] = frozenset()
    revoked_by: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.tokens) + len(self.hashed)

    def __repr__(self) -> str:
        return f"Accepted({len(self.tokens)} tokens, {len(self.hashed)} hashed)"


def resolve_accepted(token_file: str | None = None, environ: Environ | None = None) -> Accepted:
    """All that a coordinator accepts: the tokens of `resolve_tokens`, and those of a state.

    Raises UsageError.
    """
    tokens: tuple[str, ...] = resolve_tokens(token_file, environ).value
    path = resolve("token_file", token_file, environ).value
    if path is None or not is_folder(path):
        return Accepted(tokens)
    state = State(Path(path))
    try:
        return Accepted(tokens, state.hashed_tokens(), state.revoked(), state.revoked_by())
    except StateError as error:
        raise UsageError(str(error), hint=error.hint) from error


def is_folder(path: str) -> bool:
    """Whether it is one. False for a path that the system refuses, which reading it will report."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def _tokens_of_state(folder: str, valid: dt.timedelta = LEAF_VALID) -> tuple[str, ...]:
    """The tokens of a state directory, with a new certificate: who has it may host."""
    try:
        tokens = State(Path(folder)).host_tokens(valid)
    except StateError as error:
        raise UsageError(str(error), hint=error.hint) from error
    return tokens[:TOKENS_MAX]


def _read_tokens(path: str) -> tuple[str, ...]:
    """The first line as `_read_secret` reads it, and all others that are not empty."""
    first, *others = _lines_of_secret(path, "token", _TOKEN_LINES_MAX)
    tokens = [_parsed_secret(path, "token", parse_token, first)]
    for number, line in enumerate(others, 2):
        if line:
            tokens.append(_parsed_secret(path, "token", parse_token, line, f"line {number}: "))
    if len(tokens) > TOKENS_MAX or others[-1]:
        raise UsageError(
            f"token file {path!r} has more than {TOKENS_MAX} tokens",
            hint="remove the tokens that no node uses any more",
        )
    return tuple(dict.fromkeys(tokens))


TOKENS_MAX: Final = 16
"""A coordinator compares the token of each request with all of them."""
_TOKEN_LINES_MAX: Final = 100
TOKEN_BITS_MIN: Final = 128
DRAW_A_TOKEN: Final = (
    "`rallypoint token new FILE`, or python -c 'import secrets; print(secrets.token_urlsafe(32))'"
)
_ALPHABETS: Final = (
    (re.compile(r"[0-9]+"), 10),
    (re.compile(r"[0-9a-f]+|[0-9A-F]+"), 16),
    (re.compile(r"[a-z]+|[A-Z]+"), 26),
    (re.compile(r"[^A-Z]+|[^a-z]+"), 36),
)
_MIXED: Final = 64
_DIFFERENT_MIN: Final = 8


def token_bits(token: str) -> int:
    """The most random bits that a token can have, by its characters and its length.

    22 characters of base64 or 32 hexadecimal digits have 128 bits. A token of fewer than 8
    different characters is not random, and has 0.
    """
    if len(set(token)) < _DIFFERENT_MIN:
        return 0
    size = next((size for looks, size in _ALPHABETS if looks.fullmatch(token)), _MIXED)
    return int(len(token) * math.log2(size))


def check_token_strength(token: str) -> None:
    """Raises UsageError for a token that can be guessed. For a port that others can reach."""
    if token_bits(token) < TOKEN_BITS_MIN:
        raise UsageError(
            "this token can be guessed, and other machines can reach the coordinator: a token "
            f"needs at least {TOKEN_BITS_MIN} bits, which is 22 random characters of base64 or 32 "
            "random hexadecimal digits",
            hint=f"make one: {DRAW_A_TOKEN}",
        )


def check_token(text: str, called: str) -> None:
    """Raises UsageError, which does not show it, unless this can be a token."""
    try:
        parse_token(text)
    except ValueError as error:
        raise UsageError(
            f"{called}: token {error}", hint="`rallypoint token new` makes one"
        ) from None


def _read_secret(path: str, what: str, parse: Callable[[str], str]) -> str:
    return _parsed_secret(path, what, parse, _lines_of_secret(path, what, 1)[0])


def _lines_of_secret(path: str, what: str, lines_max: int) -> list[str]:
    """The first lines of the file, at least one; "" for a missing line."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            return [file.readline(token_form.LENGTH_MAX + 2).strip() for _ in range(lines_max)]
    except OSError as error:
        problem = error.strerror or str(error)
        hint = _secret_hint(what)
        raise UsageError(f"cannot read {what} file {path!r}: {problem}", hint=hint) from error
    except UnicodeDecodeError as error:
        hint = _secret_hint(what)
        raise UsageError(f"{what} file {path!r} is not text", hint=hint) from error


def _parsed_secret(
    path: str, what: str, parse: Callable[[str], str], text: str, where: str = ""
) -> str:
    try:
        return parse(text)
    except ValueError as error:
        problem = f"{what} {error}" if text else "its first line is empty"
        message = f"{what} file {path!r}: {where}{problem}"
        raise UsageError(message, hint=_secret_hint(what)) from None


def _secret_hint(what: str) -> str:
    return f"write the {what} on its first line, and let only your user read it: chmod 600"


def etcd_password(endpoint: Endpoint, environ: Environ | None = None) -> str:
    """The password of the endpoint's etcd user: from its `password_file`, else the environment.

    "" if the endpoint has no user. Raises UsageError if there is none, or it cannot be read.
    """
    place = endpoint.place
    if not isinstance(place, EtcdPlace) or not place.user:
        return ""
    if place.password_file:
        return _read_secret(place.password_file, "password", parse_password)
    password: str = resolve("etcd_password", None, environ).value
    if not password:
        raise UsageError(
            f"etcd user {place.user!r} has no password",
            hint="write it into a file and add password_file=FILE to the endpoint, or set "
            "RALLYPOINT_ETCD_PASSWORD",
        )
    return password


def is_readable_by_others(path: str) -> bool:
    """Whether users other than the file's owner may read it. False if there is no such file."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return bool(mode & (stat.S_IRGRP | stat.S_IROTH))
