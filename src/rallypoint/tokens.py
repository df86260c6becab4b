"""Where a node's token comes from, how two tokens are compared, and the error if they differ.

The order: an argument or `--token-file`, RALLYPOINT_TOKEN_FILE, RALLYPOINT_TOKEN, and then, by kind
of endpoint:

* none (one machine): a random token for this process, kept only in its memory;
* `host:port`: the token of this user's home, `~/.rallypoint/token`, made if it is missing;
* `http://`: none, or the home's if the coordinator answers 401 with the fingerprint of that one;
* a ledger: the token in the coordinator's lease.

Only this module reads and writes the home's token. It must not read the environment. A call may
block as long as a file system does, so an event loop must make it in a thread.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import re
import secrets
import stat
import time
from pathlib import Path
from typing import Final

import msgspec

from rallypoint import settings
from rallypoint.core.reasons import Refusal, RefusalCode
from rallypoint.endpoints import Endpoint, EndpointKind, is_loopback
from rallypoint.errors import TokenError, UntrustedCoordinatorError, UsageError
from rallypoint.security import token_form
from rallypoint.security.authority import new_host_token
from rallypoint.settings import NodeSettings

FOLDER: Final = ".rallypoint"
NAME: Final = "token"
SHOWN: Final = f"~/{FOLDER}/{NAME}"
WHOLE_WITHIN_S: Final = 5.0
"""How many seconds another node may take to write the home's token before the file counts as
broken.
"""
LOOK_EVERY_S: Final = 0.02
_FINGERPRINT_LABEL: Final = b"rallypoint token fingerprint"
_FINGERPRINT_ROUNDS: Final = 20_000
"""The rounds of the fingerprint's hash: about 8 ms, once for each process. A token of 128 bits
cannot be found from its fingerprint. For a passphrase that only looks random, each guess costs
20,000 times as much.
"""
_FINGERPRINT_BYTES: Final = 6
_NO_LINKS: Final = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW
EXPORT_LINE: Final = (
    "export RALLYPOINT_TOKEN_FILE=/shared/token (mpirun -x RALLYPOINT_TOKEN_FILE; in Kubernetes, "
    "a mounted Secret)"
)
_GIVE_ALL: Final = f"give every node the same --token-file: {EXPORT_LINE}"
_COPY_HOME: Final = f"copy one {SHOWN} to the home of every node; or {_GIVE_ALL}"
_WITHOUT_HOME: Final = (
    f"make one with `rallypoint token new /shared/token`, and on every node {EXPORT_LINE}; "
    "--insecure uses none"
)


class Origin:
    """The source of a token, as a coordinator sends it in a refusal."""

    HOME: Final = "home"
    GIVEN: Final = "given"
    DRAWN: Final = "drawn"
    LEASE: Final = "lease"


class KnownToken(msgspec.Struct, frozen=True):
    """A token, "" for none; its Origin; and the place where it was found, as text."""

    token: str = ""
    origin: str = ""
    place: str = ""

    def __repr__(self) -> str:
        shown = "set" if self.token else "none"
        return f"KnownToken({shown}, {self.origin!r}, {self.place!r})"


NONE: Final = KnownToken()


# -- the order -----------------------------------------------------------------------------------


def of_node(node: NodeSettings) -> KnownToken:
    """The token that a node sends first, and that a coordinator in this node requires.

    May write the home's token. Raises UsageError if that is needed and fails.
    """
    if node.token:
        return KnownToken(node.token, Origin.GIVEN, node.token_place or "given by the program")
    if node.endpoint.kind is EndpointKind.LOCAL:
        return KnownToken(draw(), Origin.DRAWN, "made by this process")
    if node.endpoint.kind is EndpointKind.HOST and not node.insecure:
        found = of_home(make=True)
        if not (node.endpoint.is_loopback or token_form.names_ca(found.token)):
            raise UsageError(
                f"the token in {found.place!r} is of an earlier release: it names no certificate "
                "authority, so the traffic to other machines would be in clear",
                hint="remove the file (the first node makes a new one; where nodes share no home, "
                "copy it to each); or --insecure",
            )
        return found
    return NONE


def of_command(endpoint: Endpoint, token_file: str | None) -> KnownToken:
    """The token that a command sends to a coordinator. Writes nothing.

    Raises UsageError for a token that cannot be read.
    """
    given = given_token(token_file)
    if given.token or endpoint.kind is not EndpointKind.HOST or not settings.home():
        return given
    return of_home(make=False)


def check_may_be_sent(token: str, host: str) -> None:
    """Raises UsageError if this token, without TLS, would be sent in clear to another machine.

    RALLYPOINT_INSECURE allows it.
    """
    if not token or token_form.names_ca(token) or is_loopback(host):
        return
    if not settings.resolve("insecure").value:
        raise UsageError(
            f"this token names no certificate authority, so it would be sent to {host} in clear",
            hint=f"use the coordinator's token; make a new one with {settings.NEW_TOKEN}; or set "
            "RALLYPOINT_INSECURE=1, in a network in which everybody may read the traffic",
        )


def given_token(token_file: str | None) -> KnownToken:
    """The token from a file or the environment, or none. Raises UsageError."""
    found = settings.resolve_token(token_file)
    return KnownToken(found.value, Origin.GIVEN, found.source) if found.value else NONE


class Keys:
    """The token that one node or command sends, and the error if it is refused.

    `may_try_home`: whether the home's token may be used later, for a coordinator that names its
    fingerprint. It is sent to no other.
    """

    def __init__(self, known: KnownToken, *, may_try_home: bool = False) -> None:
        self.known = known
        self._may_try_home = may_try_home and not known.token

    @classmethod
    def of_node(cls, node: NodeSettings) -> Keys:
        """As `of_node`."""
        may_try = node.endpoint.kind is EndpointKind.SERVED and not node.insecure
        return cls(of_node(node), may_try_home=may_try)

    @classmethod
    def of_command(cls, endpoint: Endpoint, token_file: str | None) -> Keys:
        """As `of_command`."""
        may_try = endpoint.kind is EndpointKind.SERVED
        return cls(of_command(endpoint, token_file), may_try_home=may_try)

    @property
    def token(self) -> str:
        """The token to send; "" for none."""
        return self.known.token

    @property
    def needs_look(self) -> bool:
        """Whether `takes_home` may have to read a file."""
        return self._may_try_home

    def takes_home(self, refused: TokenError | UntrustedCoordinatorError) -> bool:
        """Whether the coordinator may require the home's token. If so, it is used from now on.

        A coordinator without TLS has named the token's fingerprint. One with TLS must prove that it
        is of the authority that the home's token names, before the token is sent.
        """
        if not self._may_try_home or not settings.home():
            return False
        by_tls = isinstance(refused, UntrustedCoordinatorError)
        mark = "" if isinstance(refused, UntrustedCoordinatorError) else refused.fingerprint
        if not (mark or (isinstance(refused, UntrustedCoordinatorError) and refused.needs_token)):
            return False
        try:
            home = of_home(make=False)
        except UsageError:
            # Ignored, because the coordinator's answer explains more than a broken file.
            return False
        if not (token_form.names_ca(home.token) if by_tls else fingerprint(home.token) == mark):
            return False
        self.known, self._may_try_home = home, False
        return True

    def explained_authority(self, error: UntrustedCoordinatorError) -> UntrustedCoordinatorError:
        """The same error, with the place of this side's token and what to do about it."""
        if not error.shown or not self.known.place:
            return error
        hint = _COPY_HOME if self.known.origin == Origin.HOME else error.hint
        message = f"{error.message} (it is from {self.known.place})"
        return UntrustedCoordinatorError(message, hint=hint, shown=error.shown)

    def explained(self, refused: TokenError) -> TokenError:
        """The same refusal, with both tokens named by fingerprint and origin.

        If the coordinator knows this token, it has said what to do; then only the place is added.
        So it has if there are no tokens, but certificates.
        """
        if refused.reason:
            said = refused.refusal
            place = f" (the token is from {self.known.place})" if self.known.place else ""
            said = Refusal(said.code, f"{said.message}{place}", said.hint)
            return TokenError(said, reason=refused.reason)
        if not (refused.origin or refused.fingerprint or self.known.token):
            # There is no token on either side: the coordinator wants a certificate, and says so.
            return refused
        text = f"{refused.message}: {compared(refused, self.known)}"
        refusal = Refusal(RefusalCode.TOKEN, text, what_to_do(refused, self.known))
        return TokenError(refusal, fingerprint=refused.fingerprint, origin=refused.origin)


def compared(refused: TokenError, own: KnownToken) -> str:
    """The token that a coordinator requires, and this side's own, in words."""
    ours = "you sent none"
    if own.token:
        mine = fingerprint(own.token)
        ours = f"you sent a token ({own.place}" + (f", fingerprint {mine})" if mine else ")")
    whose = _WHOSE.get(refused.origin, "")
    if refused.fingerprint:
        theirs = f"the coordinator uses the token with fingerprint {refused.fingerprint}"
        return f"{theirs} ({whose}); {ours}" if whose else f"{theirs}; {ours}"
    return f"the coordinator uses a token {whose}; {ours}" if whose else ours


def what_to_do(refused: TokenError, own: KnownToken) -> str:
    """The hint for two tokens that differ."""
    if Origin.HOME in (refused.origin, own.origin):
        return _COPY_HOME
    return (
        "use the coordinator's token here: --token-file FILE (torchrun: token_file in "
        f"--rdzv-conf), or {EXPORT_LINE}"
    )


def token_error(
    message: str, hint: str, fingerprint: str, origin: str, reason: str = ""
) -> TokenError:
    """The error for an answer 401, or one 403 with a reason.

    It may come from another program. So its texts are cut, and a fingerprint or origin is kept only
    if a coordinator could have sent it.
    """
    is_known = re.fullmatch(r"[0-9a-f]{12}", fingerprint) is not None
    return TokenError(
        Refusal(RefusalCode.TOKEN, message[:_SAID_MAX], hint[:_SAID_MAX]),
        fingerprint=fingerprint if is_known else "",
        origin=origin if origin in _WHOSE else "",
        reason=reason[:_REASON_MAX],
    )


_SAID_MAX: Final = 500
_REASON_MAX: Final = 40
_WHOSE: Final = {
    Origin.HOME: f"from {SHOWN} of the node that hosts it",
    Origin.GIVEN: "from its own settings",
    Origin.LEASE: "made for its lease",
    Origin.DRAWN: "made for this coordinator process only",
}


# -- the form of a token -------------------------------------------------------------------------


def draw() -> str:
    """A new token, of 256 bits."""
    return secrets.token_urlsafe(32)


@functools.lru_cache(maxsize=16)
def fingerprint(token: str) -> str:
    """12 hexadecimal digits that tell two tokens apart; "" for a token that could be guessed.

    A coordinator sends it to every client, so it must not help to guess the token.
    """
    token = token_form.credential(token)
    if settings.token_bits(token) < settings.TOKEN_BITS_MIN:
        return ""
    size, rounds = _FINGERPRINT_BYTES, _FINGERPRINT_ROUNDS
    found = hashlib.pbkdf2_hmac("sha256", token.encode(), _FINGERPRINT_LABEL, rounds, size)
    return found.hex()


# -- the home's token ----------------------------------------------------------------------------


def of_home(*, make: bool) -> KnownToken:
    """The token of this user's home; none if it is missing and `make` is False.

    All nodes that share the home get the same token. Raises UsageError.
    """
    path = home_file()
    token = _settled(path, make=make)
    if not token:
        return NONE
    if settings.token_bits(token) < settings.TOKEN_BITS_MIN:
        raise UsageError(
            f"the token in {str(path)!r} can be guessed: it has fewer than "
            f"{settings.TOKEN_BITS_MIN} bits",
            hint=f"remove the file and run `rallypoint token new`, or {_GIVE_ALL}",
        )
    return KnownToken(token, Origin.HOME, str(path))


def home_file() -> Path:
    """The file of the home's token. Raises UsageError without a home."""
    home = settings.home()
    if not home:
        raise UsageError(
            f"there is no token: none is given, and without HOME there is no {SHOWN}",
            hint=_WITHOUT_HOME,
        )
    return Path(home) / FOLDER / NAME


def _settled(path: Path, *, make: bool) -> str:
    """The token in the file when that is complete; "" if it is missing and `make` is False.

    Over NFS a file that another node has made may be missing here, or empty, for a moment.
    """
    until_s = time.monotonic() + WHOLE_WITHIN_S
    has_made = False
    while True:
        found = _read_own(path)
        if found:
            return found
        if found is None and not make:
            return ""
        if found is None and not has_made:
            _make_own(path)
            has_made = True
        elif time.monotonic() >= until_s:
            raise UsageError(
                f"the token file {str(path)!r} is empty, or a broken link",
                hint="remove it, and start again",
            )
        else:
            time.sleep(LOOK_EVERY_S)


def _read_own(path: Path) -> str | None:
    """The token in a file that only this user can use; "" if it is empty, None if it is missing."""
    try:
        folder = path.parent.stat()
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ESTALE:
            return None
        raise _unusable("read", path, error) from error
    try:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            raise UsageError(f"{str(path)!r} is not a file", hint=f"remove it, or {_GIVE_ALL}")
        _check_own(path.parent, folder, _WRITABLE, path)
        _check_own(path, about, _READABLE | _WRITABLE, path)
        data = os.read(file, token_form.LENGTH_MAX + 2)
    except OSError as error:
        raise _unusable("read", path, error) from error
    finally:
        os.close(file)
    line = data.partition(b"\n")[0].decode("utf-8", "replace").strip()
    if line:
        settings.check_token(line, f"token file {str(path)!r}")
    elif data:
        raise UsageError(
            f"the first line of the token file {str(path)!r} is empty",
            hint="remove the file, and start again",
        )
    return line


_READABLE: Final = stat.S_IRGRP | stat.S_IROTH
_WRITABLE: Final = stat.S_IWGRP | stat.S_IWOTH


def _check_own(path: Path, about: os.stat_result, forbidden: int, file: Path) -> None:
    """Raises UsageError unless this user owns the file and others have none of these rights.

    `file`: the token file, if `path` is its folder. ssh checks private keys in the same way.
    """
    own = os.geteuid()
    if about.st_uid != own:
        raise UsageError(
            f"{str(path)!r} belongs to user {about.st_uid}, and this process runs as user {own}: "
            "its token is not used",
            hint=f"if you trust it, export RALLYPOINT_TOKEN_FILE={file}; else {_GIVE_ALL}",
        )
    rights = about.st_mode & forbidden
    if rights:
        can = "written" if rights & _WRITABLE else "read"
        mode = "700" if stat.S_ISDIR(about.st_mode) else "600"
        raise UsageError(
            f"{str(path)!r} can be {can} by other users, so its token is not used",
            hint=f"chmod {mode} {path}; if others may have seen the token, make a new one",
        )


def _make_own(path: Path) -> None:
    """Write a new token, unless the file exists by now. Raises UsageError."""
    _make_folder(path)
    try:
        _create(path, new_host_token())
    except FileExistsError:
        return
    except OSError as error:
        raise _unusable("make", path, error) from error


def _make_folder(path: Path) -> None:
    """Make the folder of the home's token, for this user only. Raises UsageError."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        about = path.parent.stat()
    except OSError as error:
        raise _unusable("make", path, error) from error
    _check_own(path.parent, about, _WRITABLE, path)


def _unusable(what: str, path: Path, error: OSError) -> UsageError:
    problem = error.strerror or str(error)
    return UsageError(
        f"there is no token: none is given, and this user's cannot be {_PAST[what]} at "
        f"{str(path)!r}: {problem}",
        hint=_WITHOUT_HOME,
    )


_PAST: Final = {"read": "read", "make": "made"}


# -- making a file -------------------------------------------------------------------------------


def make_file(path: Path, token: str = "") -> str:
    """Make a token file for this user only, and return the token's fingerprint.

    `token`: what it contains; "": a new one, with an authority of its own.

    Raises UsageError if the path exists, or cannot be written.
    """
    token = token or new_host_token()
    try:
        _create(path, token)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise UsageError(
            f"cannot make a token file at {str(path)!r}: {error.strerror or error}",
            hint="give a path in an existing folder that you can write to",
        ) from error
    return fingerprint(token)


def check_new_file(path: Path) -> None:
    """Raises UsageError, as `make_file` would, if the path exists or its folder does not."""
    if os.path.lexists(path):
        raise _exists(path)
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(
            f"cannot make a token file at {str(path)!r}: {str(path.parent)!r} is no folder that "
            "you can write to",
            hint="make the folder, or give another path",
        )


def _exists(path: Path) -> UsageError:
    return UsageError(
        f"{str(path)!r} already exists, and was not changed",
        hint="give another path, or remove it; `rallypoint token show` shows its fingerprint",
    )


def make_home_file() -> tuple[Path, str]:
    """The same for the home's token. Returns its path, too."""
    path = home_file()
    _make_folder(path)
    return path, make_file(path)


def _create(path: Path, token: str) -> None:
    """Make a new file with this token, complete as soon as it is visible. Raises OSError.

    It is written under another name and then linked, because link() succeeds for only one of two
    processes, even over NFS. Without hard links it is written in place, and readers wait for it.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write(temporary, token)
        try:
            os.link(temporary, path, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _write(path, token)
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, token: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
    with os.fdopen(file, "wb") as opened:
        os.fchmod(opened.fileno(), 0o600)  # for any umask
        opened.write(token.encode() + b"\n")
        opened.flush()
        os.fsync(opened.fileno())
