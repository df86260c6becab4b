"""tokens.toml: what is in it, and each fault that it may have."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.coordinator.tokens import Login, Tokens
from rallypoint.security.authority import new_host_token
from rallypoint.security.hashed import HashedToken, as_toml, hash_of, read_toml
from rallypoint.security.roles import Denial, Role
from rallypoint.security.token_form import credential

HASH = "ab" * 32
GOOD = f"""
[[token]]
id = "dashboard"
sha256 = "{HASH}"
role = "viewer"

[[token]]
id = "ops@site"
sha256 = "{"cd" * 32}"
role = ["operator", "viewer"]
runs = "team-*"
expires = 2027-01-31T01:00:00+01:00
"""


def test_each_entry_is_a_token() -> None:
    end = dt.datetime(2027, 1, 31, tzinfo=dt.UTC).timestamp()
    assert read_toml(GOOD.encode()) == (
        HashedToken("dashboard", HASH, (Role.VIEWER,)),
        HashedToken("ops@site", "cd" * 32, (Role.OPERATOR, Role.VIEWER), "team-*", end),
    )
    assert read_toml(b"") == ()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('id = "dashboard"', "", "entry 'number 1': needs id"),
        ('"dashboard"', '"a b"', "entry 'a b': must be 1 to 64"),
        ('"dashboard"', '"ops@site"', "entry 'ops@site': another one has the same id"),
        (HASH, "cd" * 32, "another one has the same sha256"),
        (HASH, "AB" * 32, "sha256 must have 64 hexadecimal digits"),
        ('role = "viewer"', 'role = "king"', "entry 'dashboard': role must be one or more of"),
        ('role = "viewer"', "role = []", "role must be one or more of"),
        ('role = "viewer"', "", "role must be one or more of"),
        ('"team-*"', "7", "runs must be a pattern"),
        ('"team-*"', '""', "must be the id of a run"),
        ("T01:00:00+01:00", "", "must be a time with its zone"),
        ("+01:00", "", "must be a time with its zone"),
        ("runs =", "run =", "has 'run', and may have: id, sha256, role, runs, expires"),
        ("[[token]]", "[token]", "it is no TOML"),
        ("[[token]]", "[[tokens]]", "only [[token]] entries"),
    ],
)
def test_each_fault_is_named(old: str, new: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"entry|TOML|only") as caught:
        read_toml(GOOD.replace(old, new, 1).encode())
    assert said in str(caught.value)


def test_bytes_that_are_no_text_are_no_toml() -> None:
    with pytest.raises(ValueError, match="no TOML"):
        read_toml(b"\xff")


@given(
    st.sampled_from(["a", "x@y", "a.b-c_d"]),
    st.lists(st.sampled_from(list(Role)), min_size=1, unique=True),
    st.text(min_size=1, max_size=20).filter(str.isprintable),
    st.none() | st.integers(0, 4_000_000_000).map(float),
)
def test_what_is_written_is_read_again(
    token_id: str, roles: list[Role], runs: str, ends_at: float | None
) -> None:
    token = HashedToken(token_id, HASH, tuple(roles), runs, ends_at)
    assert read_toml(as_toml(token).encode()) == (token,)


def test_a_token_is_known_by_its_hash_until_its_end_and_until_it_is_revoked() -> None:
    text = credential(new_host_token())
    now = dt.datetime.now(dt.UTC).timestamp()
    roles, digest = (Role.VIEWER,), hash_of(text)
    tokens = Tokens((), (HashedToken("dash", digest, roles, "team-*", now + 3_600),))
    found = tokens.login(f"Bearer {text}")
    assert isinstance(found, Login)
    assert (found.principal.id, found.principal.roles) == ("dash", roles)
    assert found.principal.sees("team-1")
    assert not found.principal.sees("job-1")
    assert tokens.login("Bearer other") == Tokens(("x",)).login("Bearer other")
    tokens.revoked = frozenset({"dash"})
    revoked = tokens.login(f"Bearer {text}")
    assert isinstance(revoked, Denial)
    assert revoked.reason == "revoked"
    tokens = Tokens((), (HashedToken("dash", digest, roles, "team-*", now - 1),))
    expired = tokens.login(f"Bearer {text}")
    assert isinstance(expired, Denial)
    assert (expired.reason, "token dash expired at" in expired.message) == ("expired", True)


def test_the_example_of_the_guide_is_valid() -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    [example] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    [token] = read_toml(example.encode())
    assert (token.id, token.roles, token.runs) == ("dashboard", (Role.VIEWER,), "team-*")
