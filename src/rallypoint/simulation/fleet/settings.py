"""The settings that a simulation knows: a run's, and those of a node that change its result."""

from __future__ import annotations

import difflib
from typing import Any, Final

import msgspec

from rallypoint.core.values import RunSettings
from rallypoint.errors import UsageError
from rallypoint.settings import attach_grace_s
from rallypoint.settings.resolution import read
from rallypoint.settings.table import BY_NAME

OF_RUN: Final = tuple(
    name for name in RunSettings.__struct_fields__ if name not in ("min_nodes", "max_nodes")
)
OF_NODE: Final = (
    "regroup_stop_timeout_s",
    "coordinator_silence_s",
    "lease_ttl_s",
    "attach_grace_s",
)
KNOWN: Final = (*OF_RUN, *OF_NODE)


class FleetSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one simulation. Durations in seconds."""

    run: RunSettings
    regroup_stop_timeout_s: float
    coordinator_silence_s: float
    lease_ttl_s: float
    attach_grace_s: float

    def changed(self) -> dict[str, Any]:
        """Those that do not have their defaults, by name."""
        found = {name: getattr(self.run, name) for name in OF_RUN}
        found |= {name: getattr(self, name) for name in OF_NODE if name != "attach_grace_s"}
        return {name: value for name, value in found.items() if value != BY_NAME[name].default}


def full_name(text: str) -> str:
    """The name of a setting that the simulation knows. Raises UsageError with the nearest names."""
    plain = text.strip().replace("-", "_").lower()
    for name in (plain, f"{plain}_s"):
        if name in KNOWN:
            return name
        if name in ("min_nodes", "max_nodes", "nnodes"):
            raise UsageError(
                f"{text!r} is an option of `rallypoint simulate`, and not a setting here",
                hint="give --nodes and --min-nodes",
            )
        if name in BY_NAME:
            raise UsageError(
                f"the setting {text!r} changes nothing in a simulation",
                hint=f"these do: {', '.join(map(_short, KNOWN))}",
            )
    near = difflib.get_close_matches(plain, [*map(_short, KNOWN)], n=3, cutoff=0.4)
    hint = f"the nearest: {', '.join(near)}" if near else "`rallypoint env` lists all settings"
    raise UsageError(f"there is no setting {text!r}", hint=hint)


def _short(name: str) -> str:
    return name.removesuffix("_s")


def settings_of(texts: dict[str, str], *, nodes: int, min_nodes: int) -> FleetSettings:
    """The settings from their texts, by full name; the others have their defaults.

    Raises UsageError, which names the setting.
    """
    values = {
        name: read(BY_NAME[name], texts[name], _short(name)) if name in texts
        else BY_NAME[name].default
        for name in KNOWN
    }  # fmt: skip
    try:
        run = RunSettings(
            min_nodes=min_nodes, max_nodes=nodes, **{name: values[name] for name in OF_RUN}
        )
    except ValueError as error:
        raise UsageError(str(error), hint="change it with --set NAME=VALUE") from error
    values["attach_grace_s"] = attach_grace_s(
        values["attach_grace_s"], values["coordinator_silence_s"]
    )
    return FleetSettings(run=run, **{name: values[name] for name in OF_NODE})
