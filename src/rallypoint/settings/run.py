"""The settings of a run, on which all its nodes must agree."""

from __future__ import annotations

from typing import Any

from rallypoint.core.values import RunSettings
from rallypoint.errors import UsageError
from rallypoint.settings.environment import Environ
from rallypoint.settings.resolution import Resolved, refuse_unknown, resolve
from rallypoint.settings.values import NodeRange


def run_settings(*, environ: Environ | None = None, **explicit: Any) -> RunSettings:
    """A run's settings, on which its nodes must agree, from arguments, environment and defaults.

    The arguments are RunSettings' fields, and `nnodes` (text or NodeRange) for both bounds. None
    counts as not given; for restarts without a limit, `max_restarts` is "any". With one bound
    given, the other comes from the environment; without that, a minimum is also the maximum.

    Raises:
        UsageError: for a value that is not allowed, or values that contradict each other.
        TypeError: for an argument that is no field.
    """
    refuse_unknown(explicit, (*RunSettings.__struct_fields__, "nnodes"))
    least, most = explicit.pop("min_nodes", None), explicit.pop("max_nodes", None)
    nodes = _node_range(resolve("nnodes", explicit.pop("nnodes", None), environ), least, most)
    values = {
        name: resolve(name, explicit.get(name), environ).value
        for name in RunSettings.__struct_fields__
        if name not in ("min_nodes", "max_nodes")
    }
    try:
        return RunSettings(min_nodes=nodes.min, max_nodes=nodes.max, **values)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _node_range(nnodes: Resolved, least: int | None, most: int | None) -> NodeRange:
    known: NodeRange = nnodes.value
    if nnodes.source == "default" and least is not None and most is None:
        return NodeRange(least, least)
    return NodeRange(known.min if least is None else least, known.max if most is None else most)
