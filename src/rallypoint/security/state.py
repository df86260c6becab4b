"""The state directory of a cluster: its certificate authority (CA), and the tokens of its nodes.

    ca.crt    the CA's certificate; public
    ca.key    its private key: whoever has it can make coordinators of this cluster
    token     the tokens of nodes, one a line, without an identity: see token_form

and, once there are such:

    tokens.toml   tokens by their hashes, each with its roles and runs: see hashed.py
    issued        the claims that were made here, one a line, without what makes them secret
    revoked       the ids of claims and of tokens of tokens.toml that count no more, one a line
    revoked_by    who has revoked them: an id and a name, one a line

All of it is for one user only, as ssh's files are. `rallypoint serve --state` makes its own
certificate from it each time that it starts or reads it again, so none lies about.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import fcntl
import os
import secrets
import stat
from pathlib import Path
from typing import Final

import msgspec

from rallypoint.security.authority import LEAF_VALID, Authority, new_secret
from rallypoint.security.claims import Claim
from rallypoint.security.hashed import HashedToken, as_toml, check_id, hash_of, read_toml
from rallypoint.security.roles import Role
from rallypoint.security.token_form import credential, parse, with_identity, written

CERTIFICATE: Final = "ca.crt"
KEY: Final = "ca.key"
TOKEN: Final = "token"
HASHED: Final = "tokens.toml"
ISSUED: Final = "issued"
REVOKED: Final = "revoked"
REVOKED_BY: Final = "revoked_by"
_PRIVATE: Final = stat.S_IRWXG | stat.S_IRWXO
_BYTES_MAX: Final = 64 * 1024
_LIST_BYTES_MAX: Final = 4 * 1024**2
_HOW_TO_END: Final = "the lines are used up: `rallypoint token rotate --state DIR --end-old`"
TOKENS_MAX: Final = 8
"""How many tokens of nodes there may be at once."""


_seen: dict[Path, frozenset[str]] = {}
"""The revoked ids that this process has read, by their folder."""


class StateError(ValueError):
    """The directory cannot be used. The text says why, and `hint` what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class State:
    """A state directory. Every call may block as long as a file system does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def token_file(self) -> Path:
        """The file with the tokens of nodes."""
        return self.folder / TOKEN

    def create(self) -> str:
        """Make the directory with a new CA and a token, and return the token.

        Raises StateError if there is one already, or if it cannot be written.
        """
        authority = Authority.new()
        certificate, key = authority.pem()
        token = written(authority.ca, new_secret())
        made: list[Path] = []
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check(self.folder)
            # The token comes last: a directory with one is complete.
            for name, data in ((KEY, key), (CERTIFICATE, certificate), (TOKEN, token.encode())):
                _write(self.folder / name, data.rstrip(b"\n") + b"\n")
                made.append(self.folder / name)
        except FileExistsError as error:
            _remove(made)
            raise StateError(
                f"{str(self.folder)!r} has a certificate authority already; nothing was changed",
                "give another directory, or use the one that is there",
            ) from error
        except OSError as error:
            _remove(made)
            raise self._unusable("written", error) from error
        return token

    def authority(self) -> Authority:
        """Its CA. Raises StateError."""
        certificate, key = self._read(CERTIFICATE), self._read(KEY, is_secret=True)
        try:
            return Authority.read(certificate, key)
        except ValueError as error:
            raise StateError(
                f"the certificate authority in {str(self.folder)!r} is not usable: {error}",
                "make a new one in another directory: `rallypoint token new --state DIR`",
            ) from error

    def tokens(self) -> tuple[str, ...]:
        """The tokens of nodes, the first one first. Raises StateError for one that is no token."""
        lines = self._read(TOKEN, is_secret=True).decode("utf-8", "replace").split()
        authority = self.authority().ca
        for number, line in enumerate(lines, 1):
            try:
                parts = parse(line)
            except ValueError as error:
                raise StateError(
                    f"{str(self.token_file)!r}, line {number}: token {error}"
                ) from None
            if parts is None or parts.ca != authority:
                raise StateError(
                    f"{str(self.token_file)!r}, line {number}: the token names another authority "
                    "than this directory's",
                    "remove the line; tokens of another directory are given by --token-file",
                )
        if not lines:
            raise StateError(
                f"{str(self.token_file)!r} is empty", "restore it, or make a new state"
            )
        return tuple(dict.fromkeys(map(credential, lines)))

    def host_tokens(self, valid: dt.timedelta = LEAF_VALID) -> tuple[str, ...]:
        """The same tokens for a coordinator, with a new certificate. Raises StateError."""
        tokens, identity = self.tokens(), self.authority().identity(valid)
        return tuple(with_identity(each, identity) for each in tokens)

    # -- tokens with ids -----------------------------------------------------------------------

    def hashed_tokens(self) -> tuple[HashedToken, ...]:
        """The tokens of tokens.toml; none without that file. Raises StateError."""
        try:
            return read_toml(self._read_list(HASHED))
        except ValueError as error:
            if isinstance(error, StateError):
                raise
            raise StateError(
                f"{str(self.folder / HASHED)!r} is not usable: {error}", "correct the file"
            ) from None

    def revoked(self) -> frozenset[str]:
        """The ids that count no more, with all that this process has read there before.

        So a copy that is half written lets no token count again. Raises StateError, also for a file
        that is not there any more.
        """
        known = _seen.get(self.folder.absolute(), frozenset())
        data = self._read_list(REVOKED)
        if known and not data and not (self.folder / REVOKED).exists():
            raise StateError(
                f"{str(self.folder / REVOKED)!r} is gone, and {len(known)} tokens were revoked "
                "there",
                "restore it: without it, they count again after the next start",
            )
        found = known | frozenset(data.decode("utf-8", "replace").split())
        _seen[self.folder.absolute()] = found
        return found

    def revoked_by(self) -> dict[str, str]:
        """Who has revoked them, as far as that is known: the first one. Raises StateError."""
        found: dict[str, str] = {}
        for line in self._read_list(REVOKED_BY).decode("utf-8", "replace").splitlines():
            token_id, _, by = line.partition(" ")
            found.setdefault(token_id, by)
        return found

    def revoke(self, token_id: str, by: str = "") -> None:
        """Let this id count no more. Idempotent. `by`: who wants that, in one line.

        Raises StateError; ValueError for no id.
        """
        check_id(token_id)
        self.revoked()
        if by and token_id not in self.revoked_by():
            self._append(REVOKED_BY, f"{token_id} {by}\n")
        # What this process has read before may be missing in the file.
        if token_id not in self._read_list(REVOKED).decode("utf-8", "replace").split():
            self._append(REVOKED, f"{token_id}\n")
        self.revoked()

    def issued(self) -> tuple[Claim, ...]:
        """The claims that were made here; lines that cannot be read are left out.

        Raises StateError.
        """
        found = []
        for line in self._read_list(ISSUED).splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                found.append(msgspec.json.decode(line, type=Claim))
        return tuple(found)

    def issue(
        self, role: Role, runs: str, valid: dt.timedelta, name: str = ""
    ) -> tuple[Claim, str]:
        """A new claim and its text. Raises StateError; ValueError for a pattern or a name."""
        claim, text = self.authority().claim((role,), runs, valid, name=name)
        self._append(ISSUED, msgspec.json.encode(claim).decode() + "\n")
        return claim, text

    def list_new(self, token_id: str, role: Role, runs: str, valid: dt.timedelta | None) -> str:
        """A new token, whose hash is in tokens.toml. Returns its text.

        Raises StateError; ValueError for an id that is none, or is taken.
        """
        check_id(token_id)
        if token_id in {each.id for each in self.hashed_tokens()} | self.revoked():
            raise ValueError(f"{token_id!r} is taken")
        text = written(self.authority().ca, new_secret())
        ends_at = None if valid is None else (dt.datetime.now(dt.UTC) + valid).timestamp()
        made = HashedToken(token_id, hash_of(text), (role,), runs, ends_at)
        self._append(HASHED, "\n" + as_toml(made))
        return text

    # -- changing the token of nodes -----------------------------------------------------------

    def rotate(self, old_until: dt.datetime | None = None) -> str:
        """Make a new token of nodes, which comes first. Returns it. The others count as well.

        `old_until`: until when the others count; then they are in tokens.toml. None: until
        `end_old`. Raises StateError.
        """
        old = self.tokens()
        new = written(self.authority().ca, new_secret())
        if old_until is None:
            if len(old) >= TOKENS_MAX:
                raise StateError(f"there are {len(old)} tokens of nodes already", _HOW_TO_END)
            self._replace(TOKEN, "\n".join((new, *old)) + "\n")
            return new
        known = self.hashed_tokens()
        there = {each.sha256 for each in known}
        entries = ""
        for token in old:
            if hash_of(token) not in there:
                name = _old_id(hash_of(token))
                ends_at = old_until.timestamp()
                entries += "\n" + as_toml(
                    HashedToken(name, hash_of(token), tuple(Role), ends_at=ends_at)
                )
        # First they are in both files, so that a reader finds them in one.
        self._append(HASHED, entries)
        self._replace(TOKEN, f"{new}\n")
        return new

    def end_old(self) -> tuple[str, ...]:
        """Let only the first token of nodes count.

        Returns those that count no more: the tokens of the file, and the ids of the ones in
        tokens.toml for which `rotate` had set an end. Raises StateError.
        """
        first, *others = self.tokens()
        revoked = self.revoked()
        # `rotate` has named them so.
        kept = [each.id for each in self.hashed_tokens() if each.id == _old_id(each.sha256)]
        listed = [each for each in kept if each not in revoked]
        for each in listed:
            self.revoke(each)
        if others:
            self._replace(TOKEN, f"{first}\n")
        return (*others, *listed)

    # -- files ---------------------------------------------------------------------------------

    def _read_list(self, name: str) -> bytes:
        """A file that may be missing; it is then empty. Raises StateError."""
        if not (self.folder / name).exists():
            return b""
        data = self._read(name, is_secret=True, bytes_max=_LIST_BYTES_MAX + 1)
        if len(data) > _LIST_BYTES_MAX:
            raise StateError(f"{str(self.folder / name)!r} is too long", "remove what has ended")
        return data

    def _append(self, name: str, text: str) -> None:
        """Add lines to a file: all of them, or none.

        The file is locked, so that of two processes none loses a line. Raises StateError.
        """
        self._read_list(name)  # checks its mode
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            file = os.open(self.folder / name, flags, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)  # ends with the descriptor
                _add_lines(file, text.encode())
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise self._unusable("written", error) from error

    def _replace(self, name: str, text: str) -> None:
        """Write a file anew. A reader finds the old or the new one. Raises StateError."""
        temporary = self.folder / f".{name}.{secrets.token_hex(8)}"
        try:
            _write(temporary, text.encode())
            temporary.replace(self.folder / name)
        except OSError as error:
            _remove([temporary])
            raise self._unusable("written", error) from error

    def _read(self, name: str, *, is_secret: bool = False, bytes_max: int = _BYTES_MAX) -> bytes:
        path = self.folder / name
        try:
            self._check_folder()
            if is_secret:
                self._check(path)
            with path.open("rb") as file:
                return file.read(bytes_max)
        except FileNotFoundError as error:
            raise StateError(
                f"there is no state in {str(self.folder)!r}: {name} is missing",
                "make it: `rallypoint token new --state DIR`",
            ) from error
        except OSError as error:
            raise self._unusable("read", error) from error

    def _check_folder(self) -> None:
        """Raises StateError if others may replace or remove the files, whatever their mode is."""
        about = self.folder.stat()
        if about.st_uid not in (os.geteuid(), 0):
            raise StateError(
                f"the directory {str(self.folder)!r} belongs to user {about.st_uid}, who may "
                "replace the files in it",
                "use a directory of this user or of root",
            )
        mode = about.st_mode
        if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
            raise StateError(
                f"other users may replace the files in {str(self.folder)!r}",
                f"chmod 700 {self.folder}",
            )

    def _check(self, path: Path) -> None:
        """Raises StateError unless only this user, or root, can read and write it."""
        about = path.stat()
        if about.st_uid not in (os.geteuid(), 0):
            raise StateError(
                f"{str(path)!r} belongs to user {about.st_uid}, who could change it",
                "use a directory of your own",
            )
        if about.st_mode & _PRIVATE:
            mode = "700" if stat.S_ISDIR(about.st_mode) else "600"
            raise StateError(
                f"{str(path)!r} can be read or written by other users",
                f"chmod {mode} {path}; if others may have read it, make a new state",
            )

    def _unusable(self, how: str, error: OSError) -> StateError:
        problem = error.strerror or str(error)
        return StateError(f"the state in {str(self.folder)!r} cannot be {how}: {problem}")


def _old_id(sha256: str) -> str:
    """The id in tokens.toml of a former token of nodes."""
    return f"old-{sha256[:8]}"


def _write(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(file, "wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())


def _add_lines(file: int, data: bytes) -> None:
    """Append to an open file. If not all of it can be written, none of it stays. Raises OSError."""
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        # Somebody has written the last line by hand, or copied it. It must stay one of its own.
        data = b"\n" + data
    try:
        # A disk that becomes full takes a part.
        if os.write(file, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.ftruncate(file, size)
        raise


def _remove(paths: list[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
