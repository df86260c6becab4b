"""Where a setting's value comes from: argument, environment, launcher, or default, in this order.

A variable that is set to nothing counts as not set.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from rallypoint.core.sizes import size_text
from rallypoint.endpoints import parse_endpoint
from rallypoint.environments import Found
from rallypoint.errors import EndpointError, LauncherError, UsageError
from rallypoint.settings.environment import Environ, variables
from rallypoint.settings.launcher import FROM_LAUNCHER, launched
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
        if self.value is None or self.value in ("", ()):
            return "unset"
        if self.name in SECRETS:
            return "set"
        if self.name == "memory":
            return size_text(self.value)
        if isinstance(self.value, bool):
            return "yes" if self.value else "no"
        if isinstance(self.value, tuple):
            return ",".join(map(str, self.value))
        return f"{self.value:g}" if isinstance(self.value, float) else str(self.value)

    def __repr__(self) -> str:
        return f"Resolved({self.name!r}, {self.shown!r}, {self.source!r})"


def resolve(
    name: str,
    explicit: Any = None,
    environ: Environ | None = None,
    found: Found | None = None,
) -> Resolved:
    """A setting's value: the argument, else the environment's, else the launcher's, or the default.

    Text is parsed in the same way from all. An argument that is not text is taken as it is, and
    None counts as not given. `found`: what the launcher says; None: it is asked.

    Raises:
        UsageError: naming the setting or the variable, if the text cannot be read, or if the
            launcher's variables cannot be used for it.
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
    if known.name in FROM_LAUNCHER:
        return _from_launcher(known, launched(environ) if found is None else found)
    return Resolved(known.name, known.default, "default")


def _from_launcher(known: Setting, found: Found) -> Resolved:
    problem, value = found.problems.get(known.name), found.values.get(known.name)
    if problem is not None:
        raise LauncherError(problem.message, hint=problem.hint, source=problem.source)
    if value is None:
        return Resolved(known.name, known.default, "default")
    if known.name == "endpoint":
        # All nodes may be on this machine, and its launcher says which of them is the host.
        parse = functools.partial(parse_endpoint, may_end_here=True)
        known = msgspec.structs.replace(known, parse=parse)
    try:
        return Resolved(known.name, read(known, value.text, value.origin), value.source)
    except UsageError as error:
        hint = f"{error.hint}; {known.option} ({known.variable}) overrides it"
        raise LauncherError(error.message, hint=hint, source=value.source) from None


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
