"""The state directory of a cluster: its certificate authority (CA), and the tokens of its nodes.

    ca.crt    the CA's certificate; public
    ca.key    its private key: whoever has it can make coordinators of this cluster
    token     the tokens of nodes, one a line, without an identity: see token_form

All of it is for one user only, as ssh's files are. `rallypoint serve --state` makes its own
certificate from it each time that it starts or reads it again, so none lies about.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import stat
from pathlib import Path
from typing import Final

from rallypoint.security.authority import LEAF_VALID, Authority, new_secret
from rallypoint.security.token_form import credential, parse, with_identity, written

CERTIFICATE: Final = "ca.crt"
KEY: Final = "ca.key"
TOKEN: Final = "token"
_PRIVATE: Final = stat.S_IRWXG | stat.S_IRWXO
_BYTES_MAX: Final = 64 * 1024


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

    # -- files ---------------------------------------------------------------------------------

    def _read(self, name: str, *, is_secret: bool = False) -> bytes:
        path = self.folder / name
        try:
            if is_secret:
                self._check(path)
            with path.open("rb") as file:
                return file.read(_BYTES_MAX)
        except FileNotFoundError as error:
            raise StateError(
                f"there is no state in {str(self.folder)!r}: {name} is missing",
                "make it: `rallypoint token new --state DIR`",
            ) from error
        except OSError as error:
            raise self._unusable("read", error) from error

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


def _write(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(file, "wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())


def _remove(paths: list[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
