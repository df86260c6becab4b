"""A claim counts only as its authority has signed it, and only in its time."""

from __future__ import annotations

import base64
import datetime as dt
import re

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.coordinator.tokens import Login, Tokens
from rallypoint.security import claims
from rallypoint.security import token_form as form
from rallypoint.security.authority import Authority, has_signed, new_secret
from rallypoint.security.claims import LEEWAY_S, Claim
from rallypoint.security.roles import Denial, Role
from rallypoint.settings import check_token

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)
AUTHORITY, OTHER = Authority.new(), Authority.new()
CLAIM, TEXT = AUTHORITY.claim((Role.NODE,), "job-*", DAY, NOW)
HOST = form.written(AUTHORITY.ca, new_secret(), AUTHORITY.identity())


def login(text: str, authority: Authority = AUTHORITY) -> Login | Denial:
    return Tokens((HOST,), authorities={authority.ca: authority.der}).login(f"Bearer {text}")


def denied(text: str, authority: Authority = AUTHORITY) -> Denial:
    found = login(text, authority)
    assert isinstance(found, Denial)
    return found


def test_every_coordinator_with_the_authoritys_certificate_knows_who_it_is() -> None:
    found = login(TEXT)
    assert isinstance(found, Login)
    assert (found.principal.id, found.principal.roles) == (CLAIM.id, (Role.NODE,))
    assert found.principal.sees("job-1")
    assert not found.principal.sees("team-1")
    assert found.principal.ends_at == CLAIM.ends_at
    assert TEXT not in repr(found)


def test_the_text_of_a_claim_names_its_authority_and_cannot_host() -> None:
    parts = form.parse(TEXT)
    assert parts is not None
    assert parts.signed is not None
    assert (parts.ca, parts.signed.claim) == (AUTHORITY.ca, CLAIM)
    assert form.ca_of(TEXT) == AUTHORITY.ca
    assert form.credential(TEXT) == TEXT
    assert form.is_claim(TEXT)
    assert not form.is_claim(HOST)
    assert not form.can_host(TEXT)
    assert len(TEXT) < form.LENGTH_MAX
    check_token(TEXT, "token")
    assert parts.signed.payload not in repr(parts)
    with pytest.raises(ValueError, match="is a claim"):
        form.with_identity(TEXT, AUTHORITY.identity())


@given(st.integers(0, len(TEXT) - 1), st.sampled_from("abzAZ09-_.c"))
def test_a_claim_that_was_changed_anywhere_is_not_accepted(at: int, letter: str) -> None:
    changed = TEXT[:at] + letter + TEXT[at + 1 :]
    found = login(changed)
    assert isinstance(found, Login) is (changed == TEXT)


@pytest.mark.parametrize("number", range(8))
def test_a_claim_has_one_text(number: int) -> None:
    """Anybody can make another signature of one, and other letters of the same bytes."""
    _, text = AUTHORITY.claim((Role.NODE,), f"job-{number}", DAY, NOW)
    assert isinstance(login(text), Login)
    head, _, signature = text.rpartition(".")
    r, s = decode_dss_signature(base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4)))
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for each in (s, order - s):
        other = base64.urlsafe_b64encode(encode_dss_signature(r, each)).rstrip(b"=").decode()
        for last in letters:
            changed = f"{head}.{other[:-1]}{last}"
            assert isinstance(login(changed), Login) is (changed == text)


def test_each_problem_of_a_claim_is_named() -> None:
    other = denied(TEXT, OTHER)
    assert other.reason == "other_authority"
    assert AUTHORITY.ca[:16] in other.message
    assert OTHER.ca[:16] in other.message
    head, _, signature = TEXT.rpartition(".")
    assert denied(f"{head}.{signature[:-4]}AAAA").reason == "damaged"
    # What is in an unsigned claim is not told.
    _, old = OTHER.claim((Role.NODE,), "*", DAY, NOW - 30 * DAY)
    forged = old.replace(OTHER.ca, AUTHORITY.ca)
    assert denied(forged) == claims.DAMAGED
    claim, old = AUTHORITY.claim((Role.NODE,), "*", DAY, NOW - 30 * DAY)
    expired = denied(old)
    assert expired.reason == "expired"
    assert re.search(rf"claim {claim.id} expired at \d{{4}}-\d\d-\d\d", expired.message)
    assert "token new" in expired.hint
    _, early = AUTHORITY.claim((Role.NODE,), "*", DAY, NOW + DAY)
    assert denied(early).reason == "not_yet"
    assert "run `date`" in denied(early).hint


def test_a_revoked_claim_is_refused() -> None:
    tokens = Tokens((HOST,), authorities={AUTHORITY.ca: AUTHORITY.der})
    assert isinstance(tokens.login(f"Bearer {TEXT}"), Login)
    tokens.revoked = frozenset({CLAIM.id})
    found = tokens.login(f"Bearer {TEXT}")
    assert isinstance(found, Denial)
    assert found.message == f"claim {CLAIM.id} was revoked"


@pytest.mark.parametrize(
    ("now_s", "reason"),
    [
        (1_000 - LEEWAY_S - 1, "not_yet"),
        (1_000 - LEEWAY_S, None),
        (2_000 + LEEWAY_S, None),
        (2_000 + LEEWAY_S + 1, "expired"),
    ],
)
def test_clocks_may_differ_by_five_minutes(now_s: float, reason: str | None) -> None:
    problem = Claim("id", (Role.NODE,), "*", 1_000, 2_000).problem(now_s)
    assert (problem.reason if problem else None) == reason


def test_a_signature_of_a_claim_is_one_of_nothing_else() -> None:
    parts = form.parse(TEXT)
    assert parts is not None
    assert parts.signed is not None
    payload, signature = parts.signed.payload, parts.signed.signature
    assert has_signed(AUTHORITY.der, claims.signed(AUTHORITY.ca, payload), signature)
    assert not has_signed(AUTHORITY.der, payload.encode(), signature)
    assert not has_signed(AUTHORITY.der, claims.signed(OTHER.ca, payload), signature)
    # A certificate begins with the tag of a sequence.
    assert claims.signed(AUTHORITY.ca, payload)[0] != 0x30


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"id":"","roles":[],"runs":"*","not_before":0,"ends_at":0}',
        b'{"id":"a","roles":["king"],"runs":"*","not_before":0,"ends_at":0}',
        b'{"id":"a","roles":[],"runs":"","not_before":0,"ends_at":0}',
        b'{"id":"a","roles":[],"runs":"*","not_before":0,"ends_at":9e99}',
        b'{"id":"a","roles":[],"runs":"*","not_before":0,"ends_at":99999999999999999}',
        b"[" * 1_000,
    ],
)
def test_a_payload_that_is_none_is_refused(payload: bytes) -> None:
    text = base64.urlsafe_b64encode(payload).rstrip(b"=").decode()
    with pytest.raises(ValueError, match="is damaged"):
        claims.read_payload(text)


def test_a_coordinator_does_not_take_a_claim_for_a_token_of_all_rights() -> None:
    with pytest.raises(ValueError, match="for nodes and commands"):
        Tokens((TEXT,))
    tokens = Tokens((HOST,))
    with pytest.raises(ValueError, match="for nodes and commands"):
        tokens.replace((HOST, TEXT))
    assert denied(TEXT.replace(AUTHORITY.ca, OTHER.ca)).reason == "other_authority"


def test_few_checked_claims_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rallypoint.coordinator.tokens.CLAIMS_KEPT", 2)
    tokens = Tokens((HOST,), authorities={AUTHORITY.ca: AUTHORITY.der})
    for _ in range(5):
        _, text = AUTHORITY.claim((Role.NODE,), "*", DAY)
        assert isinstance(tokens.login(f"Bearer {text}"), Login)
    assert len(tokens._checked) == 2
