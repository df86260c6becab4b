"""Where a setting's value comes from: the argument, else the environment, else the default.

A variable that is set to nothing counts as not set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from rallypoint.core.sizes import size_text
from rallypoint.errors import EndpointError, UsageError
from rallypoint.settings.environment import Environ, variables
from rallypoint.settings.table import SECRETS, Setting, setting


class Resolved(msgspec.Struct, frozen=True):
    """The value of a setting, and where it came from, as text."""

    name: str
    value: Any
    source: str

    @property
    def shown(self) -> str:
        """The value for people: a secret only as "set"."""
        if self.value == math.inf:
            return "never"
        if self.value is None or self.value == "":
            return "unset"
        if self.name in SECRETS:
            return "set"
        if self.name == "memory":
            return size_text(self.value)
        if isinstance(self.value, bool):
            return "yes" if self.value else "no"
        return f"{self.value:g}" if isinstance(self.value, float) else str(self.value)

    def __repr__(self) -> str:
        return f"Resolved({self.name!r}, {self.shown!r}, {self.source!r})"


def resolve(name: str, explicit: Any = None, environ: Environ | None = None) -> Resolved:
    """A setting's value: the explicit argument, else the environment's, else the default.

    Text is parsed in the same way from both. An argument that is not text is taken as it is, and
    None counts as not given.

    Raises:
        UsageError: naming the setting or the variable, if the text cannot be read.
    """
    known = setting(name)
    if explicit is not None:
        value = read(known, explicit, known.name) if isinstance(explicit, str) else explicit
        return Resolved(known.name, value, "argument")
    text = variables(environ).get(known.variable)
    if text:
        return Resolved(
            known.name, read(known, text, known.variable), f"environment {known.variable}"
        )
    return Resolved(known.name, known.default, "default")


def read(known: Setting, text: str, called: str) -> Any:
    """The value that a text means. Raises UsageError, which names the setting as `called`."""
    try:
        return known.parse(text)
    except EndpointError as error:
        raise EndpointError(f"{called}: {error.message}", hint=error.hint) from None
    except ValueError as error:
        raise UsageError(f"{called} {error}", hint=known.help) from None


def refuse_unknown(explicit: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = [name for name in explicit if name not in known]
    if unknown:
        raise TypeError(f"no such setting: {', '.join(unknown)}")
