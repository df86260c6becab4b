"""The picture that `rallypoint bench --plot` draws: checked before it measures, drawn afterwards.

This file only handles the file. rallypoint/bench draws the picture.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

from rallypoint.cli import output
from rallypoint.errors import UsageError


def check(path: Path) -> None:
    """Raise UsageError if nothing can be drawn there, before anything is measured."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            "--plot needs matplotlib, which is not installed", hint="pip install matplotlib"
        )
    folder = path.absolute().parent
    if path.is_dir():
        raise UsageError(
            f"cannot draw to {path}: it is a folder", hint=f"name a file: {path / 'figures.png'}"
        )
    if not folder.is_dir():
        raise UsageError(
            f"cannot draw to {path}: the folder {path.parent} does not exist",
            hint=f"mkdir -p {path.parent}",
        )
    _check_suffix(path)
    try:
        if path.exists():
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(
            f"cannot draw to {path}: {error.strerror or error}",
            hint="name a file in a folder where you may write",
        ) from error


def draw_to(path: Path, draw: Callable[[Path], None]) -> None:
    """Draw it there. Raises UsageError."""
    try:
        draw(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot draw to {path}: {error}") from error
    output.note(f"drawn to {path}")


def _check_suffix(path: Path) -> None:
    from matplotlib.figure import Figure as Picture  # an optional dependency

    known = sorted(Picture().canvas.get_supported_filetypes())
    if path.suffix.lower().lstrip(".") not in known:
        raise UsageError(
            f"cannot draw to {path}: matplotlib knows no format with the suffix {path.suffix!r}",
            hint=f"use one of {', '.join(f'.{each}' for each in known)}",
        )
