"""`rallypoint token`: make a file with a token, and tell two tokens apart. Never shows a token."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from rallypoint import settings, tokens
from rallypoint.cli import output
from rallypoint.cli.common import warn_if_exposed
from rallypoint.errors import UsageError

_app = typer.Typer(
    name="token",
    help="Make a token file, or show the fingerprint of one. Never shows a token.",
)


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.add_typer(_app)


@_app.command("new")
def new(
    path: Annotated[
        str | None,
        typer.Argument(metavar="[PATH]", help=f"The file to make; {tokens.SHOWN} if left out."),
    ] = None,
) -> None:
    """Draw a token of 256 bits into a new file that only you can read. Overwrites nothing."""
    settings.check_platform()
    if path is None:
        file, mark = tokens.make_home_file()
    else:
        file = Path(path).absolute()
        mark = tokens.make_file(file)
    print(file)
    print(f"export RALLYPOINT_TOKEN_FILE={shlex.quote(str(file))}")
    output.note(f"its fingerprint is {mark}; give every node of a run the same file")


@_app.command("show")
def show(
    path: Annotated[
        str | None,
        typer.Argument(metavar="[PATH]", help="A token file; if left out, the token in use here."),
    ] = None,
) -> None:
    """Show the origin and the fingerprint of the token in use here.

    Equal tokens have equal fingerprints.
    """
    known = _known(path)
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
