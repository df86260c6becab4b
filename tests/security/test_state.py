"""The state directory: one call makes it, and nobody else can read it."""

from __future__ import annotations

import datetime as dt
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rallypoint.security import state as s
from rallypoint.security.authority import Authority, new_secret
from rallypoint.security.hashed import hash_of
from rallypoint.security.identities import Identities
from rallypoint.security.roles import Role
from rallypoint.security.token_form import can_host, credential, parse, written


@pytest.fixture
def made(tmp_path: Path) -> s.State:
    found = s.State(tmp_path / "a" / "state")
    found.create()
    return found


def test_a_state_has_an_authority_and_a_nodes_token(made: s.State) -> None:
    [token] = made.tokens()
    parts = parse(token)
    assert parts is not None
    assert parts.identity is None
    assert parts.ca == made.authority().ca
    assert made.token_file.read_text() == f"{token}\n"
    for path in (made.folder, *made.folder.iterdir()):
        assert not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)


def test_a_coordinator_makes_its_certificate_from_it(made: s.State) -> None:
    [first], [second] = made.host_tokens(), made.host_tokens()
    assert first != second
    assert credential(first) == credential(second) == made.tokens()[0]
    assert can_host(first)
    assert Identities([first]).server() is not None


def test_nothing_that_is_there_is_overwritten(made: s.State) -> None:
    before = {path.name: path.read_bytes() for path in made.folder.iterdir()}
    with pytest.raises(s.StateError, match="already"):
        made.create()
    assert {path.name: path.read_bytes() for path in made.folder.iterdir()} == before


def test_a_state_that_cannot_be_whole_is_not_begun(tmp_path: Path) -> None:
    state = s.State(tmp_path)
    tmp_path.chmod(0o700)
    state.token_file.write_text("mine\n")
    with pytest.raises(s.StateError, match="already"):
        state.create()
    assert [each.name for each in tmp_path.iterdir()] == ["token"]


@pytest.mark.parametrize("name", ["ca.key", "token"])
def test_what_others_may_read_is_refused(made: s.State, name: str) -> None:
    (made.folder / name).chmod(0o640)
    with pytest.raises(s.StateError, match="can be read or written by other users") as caught:
        made.host_tokens()
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("ca.key", None, "ca.key is missing"),
        ("ca.crt", None, "ca.crt is missing"),
        ("token", None, "token is missing"),
        ("ca.key", "", "is not usable"),
        ("ca.crt", "no certificate", "is not usable"),
        ("token", "", "is empty"),
        ("token", "rlp1.abc", "line 1: token is not complete"),
        ("token", "hunter2", "line 1: the token names another authority"),
    ],
)
def test_what_is_damaged_is_named(made: s.State, name: str, text: str | None, said: str) -> None:
    path = made.folder / name
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(s.StateError, match=said):
        made.host_tokens()


def test_a_key_of_another_authority_is_refused(made: s.State) -> None:
    (made.folder / "ca.key").write_bytes(Authority.new().pem()[1])
    with pytest.raises(s.StateError, match="does not belong to the certificate"):
        made.host_tokens()


def test_several_tokens_are_accepted_while_nodes_change(made: s.State) -> None:
    [old] = made.tokens()
    new = written(made.authority().ca, new_secret())
    made.token_file.write_text(f"{new}\n{old}\n")
    assert made.tokens() == (new, old)
    assert len(made.host_tokens()) == 2


# -- tokens with ids -------------------------------------------------------------------------------


def test_a_rotation_makes_a_new_first_token_and_the_old_one_counts_until_it_is_ended(
    made: s.State,
) -> None:
    [old] = made.tokens()
    new = made.rotate()
    assert made.tokens() == (new, old)
    assert made.end_old() == (old,)
    assert made.tokens() == (new,)
    assert made.end_old() == ()
    assert made.token_file.stat().st_mode & 0o777 == 0o600


def test_a_rotation_with_a_date_keeps_the_old_token_by_its_hash(made: s.State) -> None:
    [old] = made.tokens()
    ends = dt.datetime(2030, 1, 2, tzinfo=dt.UTC)
    new = made.rotate(ends)
    assert made.tokens() == (new,)
    [listed] = made.hashed_tokens()
    assert (listed.sha256, listed.ends_at) == (hash_of(old), ends.timestamp())
    assert set(listed.roles) == set(Role)
    assert old not in (made.folder / "tokens.toml").read_text()
    made.rotate(ends)
    assert len(made.hashed_tokens()) == 2


def test_there_are_not_more_tokens_than_are_compared(made: s.State) -> None:
    for _ in range(s.TOKENS_MAX - 1):
        made.rotate()
    with pytest.raises(s.StateError, match="already") as caught:
        made.rotate()
    assert "--end-old" in caught.value.hint


def test_issued_and_revoked_tokens_are_noted_without_a_secret(made: s.State) -> None:
    day = dt.timedelta(days=1)
    claim, text = made.issue(Role.NODE, "job-*", day)
    listed = made.list_new("dash", Role.VIEWER, "team-*", day)
    assert made.issued() == (claim,)
    [hashed] = made.hashed_tokens()
    assert (hashed.id, hashed.sha256, hashed.runs) == ("dash", hash_of(listed), "team-*")
    for token_id in (claim.id, "dash", claim.id):
        made.revoke(token_id, "ann@host7")
        made.revoke(token_id, "somebody else")
    assert made.revoked() == {claim.id, "dash"}
    assert made.revoked_by() == {claim.id: "ann@host7", "dash": "ann@host7"}
    for name in ("issued", "revoked", "revoked_by", "tokens.toml"):
        path = made.folder / name
        assert path.stat().st_mode & 0o777 == 0o600
        assert text not in path.read_text()
        assert listed not in path.read_text()
    with pytest.raises(ValueError, match="is taken"):
        made.list_new("dash", Role.VIEWER, "*", None)
    with pytest.raises(ValueError, match="must be 1 to 64"):
        made.revoke("no\nid")


def test_what_was_revoked_stays_so_when_the_file_is_copied_or_lost(made: s.State) -> None:
    claim, _ = made.issue(Role.NODE, "job-*", dt.timedelta(days=1))
    made.revoke(claim.id)
    path = made.folder / "revoked"
    text = path.read_text()
    path.write_text("")  # as cp begins
    assert s.State(made.folder).revoked() == {claim.id}
    path.unlink()
    with pytest.raises(s.StateError, match="is gone, and 1 tokens were revoked"):
        s.State(made.folder).revoked()
    path.write_text(text)
    path.chmod(0o600)
    made.revoke("dash")
    assert s.State(made.folder).revoked() == {claim.id, "dash"}


@pytest.mark.parametrize("name", ["revoked", "issued", "tokens.toml"])
def test_a_last_line_without_an_end_stays_a_line_of_its_own(made: s.State, name: str) -> None:
    """Editors, and printf, leave out the end of the last line."""
    first, _ = made.issue(Role.NODE, "*", dt.timedelta(days=1))
    made.list_new("a", Role.VIEWER, "*", None)
    made.revoke(first.id, "ann@host7")
    for each in (made.folder / name, made.folder / "revoked_by"):
        each.write_text(each.read_text().rstrip("\n"))
    second, _ = made.issue(Role.NODE, "*", dt.timedelta(days=1))
    made.list_new("b", Role.VIEWER, "*", None)
    made.revoke(second.id, "bob@host8")
    assert {first.id, second.id} == made.revoked()
    assert made.revoked_by() == {first.id: "ann@host7", second.id: "bob@host8"}
    assert [each.id for each in made.issued()] == [first.id, second.id]
    assert [each.id for each in made.hashed_tokens()] == ["a", "b"]


_ON_A_FULL_DISK = """
import pathlib, resource, sys
from rallypoint.security.state import State, StateError
state, size = State(pathlib.Path(sys.argv[1])), int(sys.argv[2])
# As a disk that becomes full, the kernel takes the part of a write that fits.
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    state.revoke("the-second-one")
except StateError as error:
    print(error)
"""


@pytest.mark.processes
def test_a_disk_that_becomes_full_keeps_no_half_line(made: s.State) -> None:
    made.revoke("the-first-one")
    path = made.folder / "revoked"
    before = path.read_bytes()
    command = [sys.executable, "-c", _ON_A_FULL_DISK, str(made.folder), str(len(before) + 5)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "cannot be written" in done.stdout
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["tokens.toml", "issued", "revoked"])
def test_a_list_that_others_can_read_is_refused(made: s.State, name: str) -> None:
    path = made.folder / name
    path.write_text("")
    path.chmod(0o644)
    with pytest.raises(s.StateError, match="other users") as caught:
        (made.hashed_tokens(), made.issued(), made.revoked())
    assert f"chmod 600 {path}" in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    """That user could put other files in the place of those that are there."""
    made = s.State(tmp_path / "state")
    made.create()
    os.chown(made.folder, 65534, -1)
    for read in (made.tokens, made.authority, made.host_tokens):
        with pytest.raises(s.StateError, match="belongs to user 65534, who may replace"):
            read()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_directory_in_which_others_may_replace_files_is_refused(
    tmp_path: Path, mode: int
) -> None:
    made = s.State(tmp_path / "state")
    made.create()
    made.folder.chmod(mode)
    for read in (made.tokens, made.authority, made.host_tokens):
        with pytest.raises(s.StateError, match="other users may replace") as caught:
            read()
        assert "chmod 700" in caught.value.hint
    made.folder.chmod(0o755)
    assert made.tokens()
