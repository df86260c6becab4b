"""Where a token comes from, the home's token, fingerprints, and what is said if two differ."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rallypoint import settings, tokens
from rallypoint.cli import api
from rallypoint.endpoints import parse_endpoint
from rallypoint.errors import TokenError, UsageError
from rallypoint.rendezvous._node_handler import NodeRendezvousHandler
from rallypoint.rendezvous.api import RendezvousParameters
from rallypoint.rendezvous.rallypoint_rendezvous import torchrun_handler
from rallypoint.settings import NodeSettings, environment
from rallypoint.tokens import Keys, KnownToken, Origin

STRONG = "VQ2t9qk0X5cM1sB7nJ4eRwVQ2t9qk0X5"
EXPORT = "export RALLYPOINT_TOKEN_FILE="


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of the test's own, and no token in the environment."""
    for name in [each for each in os.environ if each.startswith("RALLYPOINT_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    before = os.umask(0)  # the worst there is
    yield folder
    os.umask(before)


def node(endpoint: str | None, **own: Any) -> NodeSettings:
    return NodeSettings(endpoint=parse_endpoint(endpoint), run_id="run", **own)


def put(home: Path, text: str, mode: int = 0o600, folder_mode: int = 0o700) -> Path:
    path = home / ".rallypoint" / "token"
    path.parent.mkdir()
    path.write_text(text)
    path.chmod(mode)
    path.parent.chmod(folder_mode)
    return path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- the order -----------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", [None, "node0:1", "127.0.0.1:1", "http://a:1", "file:///x"])
def test_a_given_token_is_used_everywhere(home: Path, endpoint: str | None) -> None:
    found = tokens.of_node(node(endpoint, token="t", token_place="file 'x' (argument)"))
    assert (found.token, found.origin, found.place) == ("t", Origin.GIVEN, "file 'x' (argument)")
    assert not any(home.iterdir())


@pytest.mark.parametrize("insecure", [False, True])
def test_one_machine_alone_draws_a_token_and_keeps_it_in_memory(home: Path, insecure: bool) -> None:
    drawn = [tokens.of_node(node(None, insecure=insecure)) for _ in range(3)]
    assert len({each.token for each in drawn}) == 3
    assert all(settings.token_bits(each.token) >= 128 for each in drawn)
    assert not any(home.iterdir())
    assert not any(each.token in text for each in drawn for text in os.environ.values())


@pytest.mark.parametrize("endpoint", ["node0:1", "127.0.0.1:1", "localhost:1", "[::1]:1"])
def test_host_port_uses_the_homes_token_which_is_created_once(home: Path, endpoint: str) -> None:
    first = tokens.of_node(node(endpoint))
    path = home / ".rallypoint" / "token"
    assert path.read_text() == first.token + "\n"
    assert (first.origin, first.place) == (Origin.HOME, str(path))
    assert settings.token_bits(first.token) >= 128
    assert (mode_of(path), mode_of(path.parent)) == (0o600, 0o700)
    assert [each.name for each in path.parent.iterdir()] == ["token"]
    assert tokens.of_node(node("other:2")) == first
    path.unlink()
    assert tokens.of_node(node(endpoint)).token != first.token


@pytest.mark.parametrize(
    ("endpoint", "insecure"), [("node0:1", True), ("http://a:1", False), ("file:///x", False)]
)
def test_otherwise_there_is_no_token_and_nothing_is_written(
    home: Path, endpoint: str, insecure: bool
) -> None:
    assert tokens.of_node(node(endpoint, insecure=insecure)) == tokens.NONE
    assert not any(home.iterdir())


def test_a_command_creates_no_token(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = parse_endpoint("node0:1")
    assert tokens.of_command(where, None) == tokens.NONE
    assert not any(home.iterdir())
    made = tokens.of_node(node("node0:1"))
    assert tokens.of_command(where, None) == made
    assert tokens.of_command(parse_endpoint("http://node0:1"), None) == tokens.NONE
    monkeypatch.setenv("RALLYPOINT_TOKEN", "given")
    assert tokens.of_command(where, None).token == "given"
    monkeypatch.delenv("RALLYPOINT_TOKEN")
    monkeypatch.delenv("HOME")
    assert tokens.of_command(where, None) == tokens.NONE


# -- two that begin at once ------------------------------------------------------------------------


@pytest.mark.parametrize("has_links", [True, False])
def test_nodes_that_start_at_once_get_one_token(
    home: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    together, found = threading.Barrier(12), []

    def begin() -> None:
        together.wait(60)
        found.append(tokens.of_home(make=True).token)

    threads = [threading.Thread(target=begin) for _ in range(12)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert len(found) == 12
    assert {*found} == {(home / ".rallypoint" / "token").read_text().strip()}
    assert len([*(home / ".rallypoint").iterdir()]) == 1


PAUSE_S = 0.5


def on_pause(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> list[float]:
    """Time passes by PAUSE_S at each look for a file, and this happens then. The pauses so far."""
    pauses: list[float] = []

    def pause(_: float) -> None:
        pauses.append(PAUSE_S)
        act()

    clock = SimpleNamespace(monotonic=lambda: sum(pauses), sleep=pause)
    monkeypatch.setattr(tokens, "time", clock)
    return pauses


def no_links(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "no hard links here")


def test_a_token_that_another_node_is_creating_is_awaited(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without hard links it is empty for a moment; over NFS it may be missing for one."""
    path = put(home, "")
    on_pause(monkeypatch, lambda: path.write_text(STRONG + "\n"))
    assert tokens.of_home(make=True).token == STRONG
    assert tokens.of_home(make=False).token == STRONG


def test_the_second_of_two_links_uses_the_first_ones_token(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other's appears between the look and the link, and is not seen at once (NFS)."""
    path = home / ".rallypoint" / "token"

    def too_late(*_: object, **__: object) -> None:
        raise FileExistsError(errno.EEXIST, "there")

    monkeypatch.setattr(os, "link", too_late)
    on_pause(monkeypatch, lambda: _written(path))
    assert tokens.of_home(make=True).token == STRONG


def _written(path: Path) -> None:
    path.write_text(STRONG)
    path.chmod(0o600)


def test_a_token_file_that_stays_empty_is_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(home, "")
    pauses = on_pause(monkeypatch, lambda: None)
    with pytest.raises(UsageError, match="is empty"):
        tokens.of_home(make=True)
    assert 1 <= len(pauses) * PAUSE_S <= tokens.WHOLE_WITHIN_S + PAUSE_S


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "folder_mode", "words", "hint"),
    [
        (0o640, 0o700, "token' can be read by other users", "chmod 600 "),
        (0o604, 0o700, "token' can be read by other users", "chmod 600 "),
        (0o620, 0o700, "token' can be written by other users", "chmod 600 "),
        (0o602, 0o700, "token' can be written by other users", "chmod 600 "),
        (0o600, 0o770, ".rallypoint' can be written by other users", "chmod 700 "),
        (0o600, 0o707, ".rallypoint' can be written by other users", "chmod 700 "),
    ],
)
@pytest.mark.parametrize("make", [False, True])
def test_a_token_file_that_others_can_access_is_refused(
    home: Path, mode: int, folder_mode: int, words: str, hint: str, make: bool
) -> None:
    path = put(home, STRONG, mode, folder_mode)
    with pytest.raises(UsageError) as caught:
        tokens.of_home(make=make)
    assert words in caught.value.message
    assert hint in caught.value.hint
    assert STRONG not in str(caught.value)
    path.chmod(0o600)
    path.parent.chmod(0o755)  # others may look into it: that shows no token
    assert tokens.of_home(make=make).token == STRONG


def test_no_token_is_created_in_a_folder_that_others_can_write_to(home: Path) -> None:
    """They could put one of their own there."""
    folder = home / ".rallypoint"
    folder.mkdir()
    folder.chmod(0o777)
    for make in (lambda: tokens.of_home(make=True), tokens.make_home_file):
        with pytest.raises(UsageError, match="can be written by other users"):
            make()
    assert not any(folder.iterdir())


def test_a_file_replaced_while_it_is_read_is_read_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over NFS, what another machine has replaced cannot be opened by its old handle."""
    put(home, STRONG)
    real, failures = os.open, [errno.ESTALE]

    def stale(path: Any, *rest: Any, **more: Any) -> int:
        if failures and str(path).endswith("/token"):
            raise OSError(failures.pop(), "Stale file handle")
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", stale)
    assert tokens.of_home(make=True).token == STRONG
    assert not failures


def test_a_file_of_another_user_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(home, STRONG)
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    with pytest.raises(UsageError, match=f"belongs to user {own}, .* user {own + 1}") as caught:
        tokens.of_home(make=False)
    assert EXPORT in caught.value.hint
    assert STRONG not in str(caught.value)


@pytest.mark.parametrize("text", ["hunter2\n", "a" * 64, "\nnot on the first line", "two words"])
def test_a_weak_token_is_refused(home: Path, text: str) -> None:
    put(home, text)
    with pytest.raises(UsageError) as caught:
        tokens.of_home(make=True)
    assert str(home) in caught.value.message
    for word in ("hunter", "aaaa", "words", "not on"):
        assert word not in caught.value.message


def test_a_path_that_is_no_file_is_refused(home: Path) -> None:
    (home / ".rallypoint" / "token").mkdir(parents=True, mode=0o700)
    with pytest.raises(UsageError, match="is not a file"):
        tokens.of_home(make=True)
    (home / ".rallypoint" / "token").rmdir()
    os.mkfifo(home / ".rallypoint" / "token", 0o600)  # opening one to read it waits for a writer
    (home / ".rallypoint").chmod(0o700)
    with pytest.raises(UsageError, match="is not a file"):
        tokens.of_home(make=True)


@pytest.mark.parametrize("where", [None, "", "relative", "/dev/null", "/proc/1", "/nonexistent/x"])
def test_without_a_home_the_line_to_add_is_named(
    monkeypatch: pytest.MonkeyPatch, where: str | None
) -> None:
    if where is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", where)
    with pytest.raises(UsageError, match="there is no token: none is given") as caught:
        tokens.of_node(node("node0:29400"))
    for each in (EXPORT, "mpirun -x RALLYPOINT_TOKEN_FILE", "Secret", "--insecure", "token new"):
        assert each in caught.value.hint
    assert len(str(caught.value).splitlines()) == 2
    assert tokens.of_node(node("node0:29400", token=STRONG)).token == STRONG


def test_a_full_disk_leaves_no_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left on device"):
        tokens.of_home(make=True)
    assert not any((home / ".rallypoint").iterdir())


# -- a file elsewhere ------------------------------------------------------------------------------


def test_a_new_file_is_for_its_user_only_and_overwrites_nothing(tmp_path: Path) -> None:
    path = tmp_path / "token"
    mark = tokens.make_file(path)
    text = path.read_text()
    assert mark == tokens.fingerprint(text.strip())
    assert mode_of(path) == 0o600
    with pytest.raises(UsageError, match="already exists"):
        tokens.make_file(path)
    assert path.read_text() == text
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="already exists"):
        tokens.make_file(link)
    assert not (tmp_path / "elsewhere").exists()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["home", "link", "token"]


# -- fingerprints ----------------------------------------------------------------------------------


def test_a_fingerprint_distinguishes_tokens_and_is_no_plain_hash() -> None:
    one, two = tokens.draw(), tokens.draw()
    assert tokens.fingerprint(one) == tokens.fingerprint(str(one)) != tokens.fingerprint(two)
    assert len(tokens.fingerprint(one)) == 12
    assert tokens.fingerprint(one) not in hashlib.sha256(one.encode()).hexdigest()


@pytest.mark.parametrize("weak", ["", "hunter2", "correct-horse", "a" * 64])
def test_a_token_that_can_be_guessed_has_no_fingerprint(weak: str) -> None:
    assert tokens.fingerprint(weak) == ""


# -- what is said ----------------------------------------------------------------------------------


def refused(
    fingerprint: str = "", origin: str = "", text: str = "the token is wrong"
) -> TokenError:
    return tokens.token_error(text, "", fingerprint, origin)


def test_two_different_tokens_are_both_named() -> None:
    theirs, mine = tokens.draw(), tokens.draw()
    keys = Keys(KnownToken(mine, Origin.HOME, "/home/a/.rallypoint/token"))
    error = keys.explained(refused(tokens.fingerprint(theirs), Origin.HOME))
    for each in (tokens.fingerprint(theirs), tokens.fingerprint(mine), "/home/a/.rallypoint/token"):
        assert each in error.message
    assert "~/.rallypoint/token of the node that hosts it" in error.message
    assert "copy one ~/.rallypoint/token" in error.hint
    assert EXPORT in error.hint
    assert theirs not in str(error)
    assert mine not in str(error)


def test_a_node_without_a_token_gets_that_reason() -> None:
    error = Keys(tokens.NONE).explained(refused("0123456789ab", Origin.GIVEN, "got none"))
    assert "got none: the coordinator uses the token with fingerprint 0123456789ab" in error.message
    assert "you sent none" in error.message
    assert "--token-file" in error.hint
    assert EXPORT in error.hint


def test_a_coordinator_of_an_older_release_sends_no_fingerprint() -> None:
    keys = Keys(KnownToken("hunter2", Origin.GIVEN, "environment RALLYPOINT_TOKEN"))
    error = keys.explained(refused())
    assert error.message == "the token is wrong: you sent a token (environment RALLYPOINT_TOKEN)"


@pytest.mark.parametrize("bad", ["x" * 12, "0123456789ab\x1b[2J", "0123456789AB", "0123"])
def test_only_well_formed_fingerprints_are_kept(bad: str) -> None:
    error = tokens.token_error("x" * 10_000, "y" * 10_000, bad, "of\nmy own")
    assert (error.fingerprint, error.origin) == ("", "")
    assert len(error.message) + len(error.hint) <= 1_000


# -- the home's token at an http:// endpoint -------------------------------------------------------


def served(insecure: bool = False) -> Keys:
    return Keys.of_node(node("http://host0:29400", insecure=insecure))


def test_the_homes_token_is_used_only_for_its_own_fingerprint() -> None:
    home = tokens.of_home(make=True)
    for other in ("", tokens.fingerprint(tokens.draw())):
        keys = served()
        assert not keys.takes_home(refused(other))
        assert keys.token == ""
    keys = served()
    assert keys.takes_home(refused(tokens.fingerprint(home.token)))
    assert keys.token == home.token
    # Refused with it once more: there is nothing else to try.
    assert not keys.takes_home(refused(tokens.fingerprint(home.token)))


def test_the_homes_token_is_not_used_with_another_token_or_insecure() -> None:
    mark = tokens.fingerprint(tokens.of_home(make=True).token)
    given = Keys.of_node(node("http://host0:29400", token=STRONG))
    assert not given.takes_home(refused(mark))
    assert not served(insecure=True).takes_home(refused(mark))


def test_an_unusable_homes_token_is_not_used(home: Path) -> None:
    path = put(home, STRONG, 0o644)
    assert not served().takes_home(refused(tokens.fingerprint(STRONG)))
    path.chmod(0o600)
    assert served().takes_home(refused(tokens.fingerprint(STRONG)))


# -- secrets that children must not inherit --------------------------------------------------------


def test_secrets_are_withheld_from_children_and_can_still_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "_withheld", {})
    for name in ("RALLYPOINT_TOKEN", "RALLYPOINT_ETCD_PASSWORD", "RALLYPOINT_RUN_ID"):
        monkeypatch.setenv(name, "one")
    settings.withhold_secrets()
    assert "RALLYPOINT_TOKEN" not in os.environ
    assert "RALLYPOINT_ETCD_PASSWORD" not in os.environ
    assert os.environ["RALLYPOINT_RUN_ID"] == "one"
    for _ in range(2):  # each handler of a process reads it
        assert settings.resolve_token().value == "one"
        assert settings.resolve("etcd_password").value == "one"
        settings.withhold_secrets()
    monkeypatch.setenv("RALLYPOINT_TOKEN", "two")
    assert settings.resolve_token().value == "two"
    settings.withhold_secrets()
    assert settings.resolve_token().value == "two"
    assert settings.resolve_token(None, {}).value == ""


def test_the_backend_for_torchrun_withholds_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's agent gives each worker a copy of os.environ. A later handler reads them, too."""
    monkeypatch.setattr(environment, "_withheld", {})
    monkeypatch.setenv("RALLYPOINT_TOKEN", STRONG)
    create = torchrun_handler()
    for _ in range(2):
        params = RendezvousParameters("rallypoint", "node0:1", "run", 1, 2, quiet=True)
        handler = create(params)
        assert isinstance(handler, NodeRendezvousHandler)
        assert handler._plan.node.token == STRONG
        assert "RALLYPOINT_TOKEN" not in os.environ


@pytest.mark.parametrize(
    ("token", "host", "is_refused"),
    [
        ("VQ2t9qk0X5cM1sB7nJ4eRw", "node0", True),
        ("VQ2t9qk0X5cM1sB7nJ4eRw", "192.0.2.1", True),
        ("VQ2t9qk0X5cM1sB7nJ4eRw", "::1", False),
        ("VQ2t9qk0X5cM1sB7nJ4eRw", "127.0.0.1", False),
        ("", "node0", False),
        (f"rlp1.{'0' * 64}.VQ2t9qk0X5cM1sB7nJ4eRw", "node0", False),
    ],
)
def test_a_command_sends_no_token_in_clear_to_another_machine(
    token: str, host: str, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RALLYPOINT_INSECURE", raising=False)
    if is_refused:
        with pytest.raises(UsageError, match="names no certificate authority") as caught:
            tokens.check_may_be_sent(token, host)
        assert token not in str(caught.value)
        # Before any connection.
        with pytest.raises(UsageError, match="in clear"):
            api.runs(parse_endpoint(f"http://{host}:1"), token)
        monkeypatch.setenv("RALLYPOINT_INSECURE", "1")
    tokens.check_may_be_sent(token, host)
