"""The text of a token that names an authority, and the public key of a certificate."""

from __future__ import annotations

import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.errors import UsageError
from rallypoint.security import token_form as form
from rallypoint.security.authority import Authority, new_host_token, new_secret
from rallypoint.security.der import public_key_hash
from rallypoint.settings import check_token
from rallypoint.tokens import fingerprint

HOST = new_host_token()


def test_a_hosts_token_has_all_parts_and_a_nodes_has_no_key() -> None:
    parts = form.parse(HOST)
    assert parts is not None
    assert parts.identity is not None
    assert parts.ca == public_key_hash(parts.identity.ca) == form.ca_of(HOST)
    sent = form.credential(HOST)
    assert sent == f"rlp1.{parts.ca}.{parts.secret}" == form.credential(sent)
    node = form.parse(sent)
    assert node is not None
    assert (node.ca, node.secret, node.identity) == (parts.ca, parts.secret, None)
    assert form.can_host(HOST)
    assert not form.can_host(sent)
    assert form.with_identity(sent, parts.identity) == HOST
    assert len(HOST) < form.LENGTH_MAX
    assert fingerprint(HOST) == fingerprint(sent)


def test_a_token_of_another_form_is_sent_as_it_is() -> None:
    for token in ("hunter2", "VQ2t9qk0X5cM1sB7nJ4eRw", "rlp0.a.b"):
        assert form.parse(token) is None
        assert form.ca_of(token) == ""
        assert form.credential(token) == token
        assert form.can_host(token)


SPOILT = {
    "only the beginning": "rlp1.",
    "part of the authority": HOST[:50],
    "a short secret": form.credential(HOST)[:-30],
    "a letter in the authority": form.credential(HOST).replace("rlp1.", "rlp1.g"),
    "an empty identity": form.credential(HOST) + ".",
    "part of the identity": HOST[:-200],
    "too long": HOST + "A" * 4096,
    "another identity": form.credential(HOST) + ".AAAA",
    "two lines": HOST + "\n",
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_token_that_is_not_whole_is_refused_and_not_shown(how: str) -> None:
    token = SPOILT[how]
    with pytest.raises(ValueError, match=r"is not complete|is damaged") as caught:
        form.parse(token)
    with pytest.raises(UsageError) as told:
        check_token(token, "token file 'x'")
    for error in (caught.value, told.value):
        assert len(token) < 20 or token[10:] not in str(error)


@given(st.text(alphabet="rlp1.0123456789abcdefAZ_-=~", max_size=400))
def test_any_text_is_a_token_none_or_an_error(text: str) -> None:
    try:
        parts = form.parse(text)
    except ValueError:
        assert form.names_ca(text)
    else:
        assert (parts is not None) == form.names_ca(text)


def test_no_repr_shows_a_secret() -> None:
    parts = form.parse(HOST)
    assert parts is not None
    assert parts.identity is not None
    assert parts.secret not in repr(parts)
    assert repr(parts.identity.key)[2:40] not in repr(parts) + repr(parts.identity)


# -- the public key of a certificate ---------------------------------------------------------------


def test_the_hash_of_the_public_key_is_that_of_its_standard_form() -> None:
    """RFC 7469: of the SubjectPublicKeyInfo. A new certificate of the same key keeps it."""
    for identity in (Authority.new().identity() for _ in range(20)):
        for der in (identity.ca, identity.leaf):
            key = x509.load_der_x509_certificate(der).public_key()
            info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            assert public_key_hash(der) == hashlib.sha256(info).hexdigest()


CERTIFICATE = Authority.new().der


@given(st.integers(0, len(CERTIFICATE) - 1), st.binary(min_size=1, max_size=3))
def test_bytes_that_are_no_certificate_are_a_value_error(at: int, put: bytes) -> None:
    for damaged in (CERTIFICATE[:at], CERTIFICATE[:at] + put + CERTIFICATE[at + len(put) :], put):
        try:
            found = public_key_hash(damaged)
        except ValueError:
            continue
        assert len(found) == 64


# -- an authority ----------------------------------------------------------------------------------


def test_an_authority_is_read_as_it_was_written() -> None:
    authority = Authority.new()
    again = Authority.read(*authority.pem())
    assert again.ca == authority.ca
    assert again.der == authority.der
    with pytest.raises(ValueError, match="does not belong"):
        Authority.read(authority.pem()[0], Authority.new().pem()[1])


def test_each_secret_is_another() -> None:
    assert len({new_secret() for _ in range(100)}) == 100
