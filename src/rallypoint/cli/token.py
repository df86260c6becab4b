"""`rallypoint token new` and `show`: make a file with a token, and tell two tokens apart."""

from __future__ import annotations

import datetime as dt
import shlex
from pathlib import Path
from typing import Annotated

import typer

from rallypoint import settings, tokens
from rallypoint.cli import output, token_state
from rallypoint.cli.common import warn_if_exposed
from rallypoint.cli.token_common import as_usage_error, lasting
from rallypoint.errors import UsageError
from rallypoint.security import claims, token_form
from rallypoint.security.authority import CLAIM_VALID, HOST_TOKEN_VALID
from rallypoint.security.roles import ALL_RUNS, Role, check_pattern
from rallypoint.security.state import State

_app = typer.Typer(
    name="token",
    help="Make, show, list, revoke and rotate tokens. Never shows a token.",
)


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    token_state.add_to(_app)
    app.add_typer(_app)


@_app.command("new")
def new(
    path: Annotated[
        str | None,
        typer.Argument(metavar="[PATH]", help=f"The file to make; {tokens.SHOWN} if left out."),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="Make a directory with a certificate authority and a token for nodes, for "
            "`rallypoint serve --state DIR`. With PATH: make a token of the one that is there.",
        ),
    ] = None,
    role: Annotated[
        Role | None,
        typer.Option(
            "--role",
            help="With --state and PATH. node: may join runs. viewer: may read. operator: may "
            "also close, drain, evict and scale. host: may join runs, and be the coordinator.",
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="PATTERN",
            help="The runs for which the role counts, such as job-42 or 'team-*'; all if left out.",
        ),
    ] = None,
    ttl: Annotated[
        str | None,
        typer.Option(
            "--ttl",
            metavar="TIME",
            help="How long it counts, as 12h or 7d (default: 30d; with --listed, without end).",
        ),
    ] = None,
    listed: Annotated[
        str | None,
        typer.Option(
            "--listed",
            metavar="ID",
            help="Put the hash of a new token into tokens.toml of the state directory, under this "
            "id, in place of a signed claim.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="TEXT",
            help="How `token list`, the audit log and events call the claim (default: the name of "
            "the file). Who has the claim can read it.",
        ),
    ] = None,
) -> None:
    """Draw a token of 256 bits into a new file that only you can read. Overwrites nothing.

    The token names a certificate authority. Without --state it has one of its own, and all who have
    the token can be the coordinator. With --role, --run or --ttl it is a claim that the state's
    authority has signed: coordinators of that authority check it without a list.
    """
    settings.check_platform()
    has_limits = any(each is not None for each in (role, run, ttl, listed, name))
    if state is None:
        if has_limits:
            raise UsageError(
                "--role, --run, --ttl, --listed and --name are for tokens of a state directory",
                hint="add --state DIR",
            )
        file = None if path is None else Path(path).absolute()
        made, mark = tokens.make_home_file() if file is None else (file, tokens.make_file(file))
        _tell(made, f"its fingerprint is {mark}; give every node of a run the same file")
    elif path is None:
        if has_limits:
            raise UsageError(
                "--role, --run, --ttl, --listed and --name need the file to make",
                hint="add its path",
            )
        found = State(Path(state).absolute())
        with as_usage_error():
            mark = tokens.fingerprint(found.create())
        _tell(
            found.token_file,
            f"its fingerprint is {mark}; give it to the nodes, and keep {found.folder} for "
            "`rallypoint serve --state`",
        )
    else:
        file, found = Path(path).absolute(), State(Path(state).absolute())
        tokens.check_new_file(file)  # before a claim or an entry is made that nobody would have
        runs = ALL_RUNS if run is None else run
        if name is not None and (role is Role.HOST or listed is not None):
            raise UsageError(
                "--name is for claims: a host's token has none, and --listed gives an id",
                hint="remove --name",
            )
        if role is Role.HOST:
            if listed is not None:
                raise UsageError("--listed is not for hosts", hint="give another --role")
            _new_host(file, found, run, ttl)
        elif listed is not None:
            _new_listed(
                file, found, listed, role or Role.NODE, ALL_RUNS if run is None else run, ttl
            )
        elif has_limits:
            called = file.stem[: claims.NAME_LENGTH_MAX] if name is None else name
            _new_claim(file, found, role or Role.NODE, runs, ttl, called)
        else:
            with as_usage_error():
                shared = found.tokens()[0]
            mark = tokens.make_file(file, shared)
            _tell(file, f"the token of {found.folder}, fingerprint {mark}: all roles in all runs")


def _new_host(file: Path, state: State, run: str | None, ttl: str | None) -> None:
    if run is not None:
        raise UsageError(
            "--run is for claims, and a host's token is for all runs",
            hint="remove --run, or give another --role",
        )
    valid = HOST_TOKEN_VALID if ttl is None else lasting(ttl, "--ttl")
    with as_usage_error():
        made = state.host_tokens(valid)
    mark = tokens.make_file(file, made[0])
    ends = (dt.datetime.now(dt.UTC) + valid).astimezone()
    until = (
        f"its certificate counts until {ends:%Y-%m-%d %H:%M}; as a login it has all roles in all "
        "runs, without end: `rallypoint token rotate` ends it"
    )
    _tell(file, f"a host's token of {state.folder}, fingerprint {mark}; {until}")


def _new_listed(
    file: Path, state: State, token_id: str, role: Role, run: str, ttl: str | None
) -> None:
    valid = None if ttl is None else lasting(ttl, "--ttl")
    try:
        check_pattern(run)
    except ValueError as error:
        raise UsageError(f"--run {error}", hint="write it as job-42 or 'team-*'") from None
    try:
        with as_usage_error():
            text = state.list_new(token_id, role, run, valid)
    except ValueError as error:
        raise UsageError(f"--listed {error}", hint="give another id") from None
    mark = tokens.make_file(file, text)
    _tell(file, f"token {token_id} of {state.folder}: {role}, fingerprint {mark}")


def _new_claim(file: Path, state: State, role: Role, run: str, ttl: str | None, name: str) -> None:
    valid = CLAIM_VALID if ttl is None else lasting(ttl, "--ttl")
    try:
        check_pattern(run)
    except ValueError as error:
        raise UsageError(f"--run {error}", hint="write it as job-42 or 'team-*'") from None
    try:
        claims.check_name(name)
    except ValueError as error:
        raise UsageError(f"--name {error}", hint="give one with --name TEXT") from None
    with as_usage_error():
        claim, text = state.issue(role, run, valid, name)
    tokens.make_file(file, text)
    _tell(file, claim.told())


def _tell(file: Path, note: str) -> None:
    print(file)
    print(f"export RALLYPOINT_TOKEN_FILE={shlex.quote(str(file))}")
    output.note(note)


@_app.command("show")
def show(
    path: Annotated[
        str | None,
        typer.Argument(metavar="[PATH]", help="A token file; if left out, the token in use here."),
    ] = None,
) -> None:
    """Show the origin and the fingerprint of the token in use here, and what a claim says.

    Equal tokens have equal fingerprints.
    """
    known = _known(path)
    parts = token_form.parse(known.token)
    if parts is not None and parts.signed is not None:
        print(f"{tokens.fingerprint(known.token)}  {output.clean(known.place)}")
        print(output.clean(parts.signed.claim.told()))
        return
    mark = tokens.fingerprint(known.token)
    if not mark:
        raise UsageError(
            f"the token from {known.place} has no fingerprint: it has fewer than "
            f"{settings.TOKEN_BITS_MIN} bits, and could be guessed",
            hint=f"make one: {settings.DRAW_A_TOKEN}",
        )
    print(f"{mark}  {output.clean(known.place)}")


def _known(path: str | None) -> tokens.KnownToken:
    """Raises UsageError if there is none."""
    known = tokens.given_token(path)
    warn_if_exposed(path)
    if not known.token:
        known = tokens.of_home(make=False)
    if not known.token:
        raise UsageError(
            f"there is no token: none is given, and there is no {tokens.SHOWN}",
            hint="`rallypoint token new` creates it; so does the first node at HOST:PORT",
        )
    return known
