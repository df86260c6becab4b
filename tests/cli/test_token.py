"""`rallypoint token`: a file is made once, and no token is ever shown."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
from pathlib import Path

import pytest

from rallypoint import tokens
from rallypoint.endpoints import parse_ledger
from rallypoint.ledger.open import open_ledger
from rallypoint.security.der import validity
from rallypoint.security.token_form import ca_of, can_host, credential, parse
from tests.cli.conftest import Cli


def test_new_creates_a_file_and_says_how_to_use_it(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a token"
    done = cli("token", "new", str(path))
    assert done.code == 0
    assert done.out == f"{path}\nexport RALLYPOINT_TOKEN_FILE='{path}'\n"
    assert path.stat().st_mode & 0o777 == 0o600
    token = path.read_text().strip()
    assert token not in str(done)
    assert tokens.fingerprint(token) in done.err
    again = cli("token", "new", str(path))
    assert (again.code, again.out) == (2, "")
    assert "already exists" in again.err
    assert path.read_text().strip() == token


def test_new_creates_the_homes_token_once(cli: Cli) -> None:
    path = Path(os.environ["HOME"]) / ".rallypoint" / "token"
    assert cli("token", "show").code == 2
    assert not path.exists()
    assert cli("token", "new").out.splitlines()[0] == str(path)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert cli("token", "new").code == 2
    shown = cli("token", "show")
    assert shown.out == f"{tokens.fingerprint(path.read_text().strip())}  {path}\n"


@pytest.mark.parametrize("place", ["/nonexistent/folder/token", "/dev/null/token"])
def test_new_in_an_unwritable_place_is_an_error(cli: Cli, place: str) -> None:
    done = cli("token", "new", place)
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 2


def test_new_without_a_home_is_an_error(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    for command in ("new", "show"):
        done = cli("token", command)
        assert (done.code, done.out) == (2, "")
        assert "RALLYPOINT_TOKEN_FILE" in done.err


def test_show_names_a_given_token_before_the_homes(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("token", "new")
    token = tokens.draw()
    monkeypatch.setenv("RALLYPOINT_TOKEN", token)
    done = cli("token", "show")
    assert done.out == f"{tokens.fingerprint(token)}  environment RALLYPOINT_TOKEN\n"
    monkeypatch.setenv("RALLYPOINT_TOKEN", "hunter2")
    done = cli("token", "show")
    assert (done.code, done.out) == (2, "")
    assert "no fingerprint" in done.err
    assert "hunter2" not in done.err


def test_env_names_the_homes_token(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cli("token", "new").out.splitlines()[0]
    (line,) = [each for each in cli("env").out.splitlines() if each.startswith("token ")]
    assert "set" in line
    assert "(for host:port)" in line
    assert Path(path).read_text().strip() not in line
    Path(path).chmod(0o644)
    done = cli("env")
    assert done.code == 2
    assert f"chmod 600 {path}" not in done.out
    assert "can be read by other users" in done.err


def test_serve_uses_only_a_given_token(cli: Cli) -> None:
    """It is for many runs, and so asks which token is meant, also where the home has one."""
    cli("token", "new")
    done = cli("serve", "--host", "0.0.0.0", "--port", "0")
    assert (done.code, done.out) == (2, "")
    assert "--token-file ~/.rallypoint/token" in done.err
    assert "rallypoint token new" in done.err


# -- a state directory -----------------------------------------------------------------------------


def test_a_state_makes_tokens_of_nodes_and_of_hosts(cli: Cli, tmp_path: Path) -> None:
    state, node, host = tmp_path / "state", tmp_path / "node", tmp_path / "host"
    made = cli("token", "new", "--state", str(state))
    assert (made.code, made.out.splitlines()[0]) == (0, str(state / "token"))
    assert cli("token", "new", str(node), "--state", str(state)).code == 0
    done = cli("token", "new", str(host), "--state", str(state), "--role", "host", "--ttl", "7d")
    assert "its certificate counts until" in done.err
    texts = [path.read_text().strip() for path in (state / "token", node, host)]
    assert texts[0] == texts[1] == credential(texts[2])
    assert [can_host(each) for each in texts] == [False, False, True]
    assert len({tokens.fingerprint(each) for each in texts}) == 1
    parts = parse(texts[2])
    assert parts is not None
    assert parts.identity is not None
    _, ends_at = validity(parts.identity.leaf)
    left = dt.datetime.fromtimestamp(ends_at, dt.UTC) - dt.datetime.now(dt.UTC)
    assert dt.timedelta(days=6, hours=23) < left < dt.timedelta(days=7, hours=1)
    for each in texts:
        assert parse(each) is not None
        assert each not in str(made) + str(done)
    again = cli("token", "new", "--state", str(state))
    assert (again.code, again.out) == (2, "")
    assert "has a certificate authority already" in again.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("T --role host", "add --state DIR"),
        ("--state S --role host", "add its path"),
        ("T --run x", "add --state DIR"),
        ("T --state S --role host --run x", "a host's token is for all runs"),
        ("T --state S --ttl soon", "must be a duration"),
        ("T --state S --ttl 1h", "there is no state in"),
        ("T --state S --role host --ttl soon", "must be a duration"),
        ("T --state S --role host --ttl 1s", "must be within"),
        ("T --state S --role host", "there is no state in"),
        ("T --state S --role king", "Invalid value for '--role'"),
    ],
)
def test_options_that_cannot_be_together_are_refused(
    cli: Cli, tmp_path: Path, options: str, said: str
) -> None:
    places = {"T": str(tmp_path / "t"), "S": str(tmp_path / "s")}
    done = cli("token", "new", *(places.get(each, each) for each in options.split()))
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert not any(tmp_path.iterdir())


def test_a_claim_says_what_it_is_for_and_is_never_shown(cli: Cli, tmp_path: Path) -> None:
    state, file = tmp_path / "state", tmp_path / "claim"
    assert cli("token", "new", "--state", str(state)).code == 0
    options = ("--state", str(state), "--role", "viewer", "--run", "team-*", "--ttl", "7d")
    made = cli("token", "new", str(file), *options)
    assert (made.code, made.out.splitlines()[0]) == (0, str(file))
    text = file.read_text().strip()
    parts = parse(text)
    assert parts is not None
    assert parts.signed is not None
    claim = parts.signed.claim
    assert ([*claim.roles], claim.runs) == (["viewer"], "team-*")
    assert claim.ends_at - claim.not_before == 7 * 86_400
    assert parts.ca == ca_of((state / "token").read_text().strip())
    shown = cli("token", "show", str(file))
    assert shown.code == 0
    assert claim.name == "claim"
    told = f"claim {claim.id} (claim): viewer, runs 'team-*', until "
    assert told in " ".join(made.err.split())
    assert told in shown.out
    assert text not in str(made) + str(shown)
    assert file.stat().st_mode & 0o777 == 0o600
    named = ("--state", str(state), "--name", "ann's laptop")
    made = cli("token", "new", str(tmp_path / "named"), *named)
    assert "(ann's laptop): node" in " ".join(made.err.split())
    too_long = cli("token", "new", str(tmp_path / "long"), *named[:-1], "x" * 65)
    assert (too_long.code, (tmp_path / "long").exists()) == (2, False)
    host = cli("token", "new", str(tmp_path / "host"), *named, "--role", "host")
    assert (host.code, (tmp_path / "host").exists()) == (2, False)
    plain = cli("token", "new", str(tmp_path / "plain"), "--state", str(state), "--run", "job-42")
    assert "node, runs 'job-42'" in " ".join(plain.err.split())


def test_serve_takes_no_claim_as_its_own_token(cli: Cli, tmp_path: Path) -> None:
    state, file = tmp_path / "state", tmp_path / "claim"
    assert cli("token", "new", "--state", str(state)).code == 0
    assert cli("token", "new", str(file), "--state", str(state), "--role", "node").code == 0
    done = cli("serve", "--port", "0", "--token-file", str(file))
    assert (done.code, done.out) == (2, "")
    assert "is a signed claim, which is for nodes and commands" in " ".join(done.err.split())


# -- list, revoke, rotate --------------------------------------------------------------------------


def rows_of(cli: Cli, state: Path) -> dict[str, tuple[str, str, str]]:
    """Kind, runs and state of each token, by its id."""
    found = json.loads(cli("token", "list", "--state", str(state), "--json").out)["tokens"]
    return {each["id"]: (each["kind"], each["runs"], each["state"]) for each in found}


def test_the_tokens_of_a_state_are_listed_revoked_and_rotated(cli: Cli, tmp_path: Path) -> None:
    state = tmp_path / "state"
    of = ("--state", str(state))
    assert cli("token", "new", *of).code == 0
    shared = tokens.fingerprint((state / "token").read_text().strip())
    listed = ("--role", "viewer", "--run", "team-*", "--listed", "dash")
    assert cli("token", "new", str(tmp_path / "dash"), *of, *listed).code == 0
    assert cli("token", "new", str(tmp_path / "job"), *of, "--run", "job-42").code == 0
    parts = parse((tmp_path / "job").read_text().strip())
    assert parts is not None
    assert parts.signed is not None
    claim = parts.signed.claim.id
    assert rows_of(cli, state) == {
        shared: ("shared", "*", "counts"),
        "dash": ("listed", "team-*", "counts"),
        claim: ("claim", "job-42", "counts"),
    }
    text = " ".join(cli("token", "list", *of).out.split())
    assert f"{claim} job claim node job-42" in text
    near, far = (cli("token", "revoke", each, *of) for each in ("dahs", "made-elsewhere"))
    assert (near.code, far.code) == (2, 2)
    assert "no token with id 'dahs'; nothing was changed" in near.err
    assert "did you mean 'dash'?" in near.err
    assert rows_of(cli, state)["dash"][2] == "counts"
    for each in ((claim,), ("dash",), ("made-elsewhere", "--force"), ("dash",)):
        assert cli("token", "revoke", *each, *of).code == 0
    found = rows_of(cli, state)
    assert [found[each][2] for each in (claim, "dash", "made-elsewhere")] == ["revoked"] * 3
    refused = cli("token", "revoke", shared, *of)
    assert (refused.code, "token rotate" in refused.err) == (2, True)
    assert cli("token", "rotate", *of, "--overlap", "7d").code == 0
    found = rows_of(cli, state)
    [old] = [each for each in found if each.startswith("old-")]
    assert found[old] == ("listed", "*", "counts")
    assert shared not in found
    assert cli("token", "rotate", *of).code == 0
    rows = rows_of(cli, state)
    assert [kind for kind, _, _ in rows.values()].count("shared") == 2
    ended = cli("token", "rotate", *of, "--end-old")
    assert ended.code == 0
    after = rows_of(cli, state)
    assert [kind for kind, _, _ in after.values()].count("shared") == 1
    # The token whose end was set by --overlap is an old one, too.
    assert after[old] == ("listed", "*", "revoked")
    [newest] = [each for each, (kind, _, _) in after.items() if kind == "shared"]
    [second] = [each for each in rows if each not in after]
    assert " ".join(ended.err.split()) == (
        f"rallypoint: these old tokens count no more: {second}, {old}; the token with fingerprint "
        f"{newest} counts"
    )
    none = cli("token", "rotate", *of, "--end-old")
    assert (none.code, f"only the one with fingerprint {newest} counts" in none.err) == (0, True)
    both = cli("token", "rotate", *of, "--end-old", "--overlap", "7d")
    assert (both.code, "contradict" in both.err) == (2, True)


def test_a_wrong_role_or_time_is_refused_with_those_that_there_are(
    cli: Cli, tmp_path: Path
) -> None:
    of = ("token", "new", str(tmp_path / "file"), "--state", str(tmp_path / "state"))
    assert cli("token", "new", "--state", str(tmp_path / "state")).code == 0
    role = cli(*of, "--role", "admin")
    assert role.code == 2
    assert role.err.startswith(
        "error: Invalid value for '--role': 'admin' is not one of 'node', 'viewer', 'operator', "
        "'host'\n"
    )
    time = cli(*of, "--role", "viewer", "--ttl", "1y")
    assert (time.code, "500ms, 90s, 2m, 1h, 7d or 2w, not '1y'" in time.err) == (2, True)
    assert cli(*of, "--role", "viewer", "--ttl", "2w").code == 0


def test_the_note_of_a_hosts_token_says_that_its_login_has_no_end(cli: Cli, tmp_path: Path) -> None:
    of = ("--state", str(tmp_path / "state"))
    assert cli("token", "new", *of).code == 0
    said = cli("token", "new", str(tmp_path / "host"), *of, "--role", "host", "--ttl", "1d").err
    assert "as a login it has all roles in all runs, without end" in " ".join(said.split())


def test_a_certificate_is_revoked_in_the_ledger_without_a_state(cli: Cli, tmp_path: Path) -> None:
    place = f"file://{tmp_path / 'ledger'}"

    async def made() -> None:
        ledger = open_ledger(parse_ledger(place))
        await ledger.open()
        await ledger.aclose()

    asyncio.run(made())
    shown = cli("token", "revoke", "Certificate-01234567-0A", "--ledger", place)
    assert (shown.code, "certificate-01234567-0a is revoked in" in shown.err) == (0, True)
    for more in (("dash", "--ledger", place), ("certificate-01234567-0a",)):
        refused = cli("token", "revoke", *more)
        assert (refused.code, "--state DIR" in refused.err) == (2, True)


def test_a_tokens_file_with_a_fault_or_that_others_can_read_is_refused(
    cli: Cli, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    assert cli("token", "new", "--state", str(state)).code == 0
    path = state / "tokens.toml"
    path.write_text("[[token]]\nid = 7\n")
    path.chmod(0o600)
    done = cli("serve", "--state", str(state), "--port", "0")
    assert done.code == 2
    assert "entry 'number 1': needs id, as text" in " ".join(done.err.split())
    path.chmod(0o640)
    done = cli("serve", "--state", str(state), "--port", "0")
    assert (done.code, done.out) == (2, "")
    assert f"chmod 600 {path}" in " ".join(done.err.split())


@pytest.mark.parametrize("more", [["--role", "viewer"], ["--listed", "x"]], ids=["claim", "listed"])
def test_what_cannot_be_kept_is_not_made(cli: Cli, tmp_path: Path, more: list[str]) -> None:
    state, path = str(tmp_path / "state"), tmp_path / "viewer"
    assert cli("token", "new", "--state", state).code == 0
    before = json.loads(cli("token", "list", "--state", state, "--json").out)
    path.write_text("mine")
    for place in (path, tmp_path / "nowhere" / "viewer"):
        assert cli("token", "new", str(place), "--state", state, *more).code == 2
    assert json.loads(cli("token", "list", "--state", state, "--json").out) == before
    assert path.read_text() == "mine"


@pytest.mark.parametrize("more", [["--role", "viewer"], ["--listed", "x"]], ids=["claim", "listed"])
def test_an_empty_pattern_is_not_that_of_all_runs(
    cli: Cli, tmp_path: Path, more: list[str]
) -> None:
    """As of a script whose variable is not set."""
    state, path = str(tmp_path / "state"), tmp_path / "viewer"
    assert cli("token", "new", "--state", state).code == 0
    done = cli("token", "new", str(path), "--state", state, *more, "--run", "")
    assert done.code == 2
    assert "--run must be the id of a run" in done.err
    assert not path.exists()
