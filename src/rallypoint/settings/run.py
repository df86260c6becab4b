"""The settings of a run, on which all its nodes must agree."""

from __future__ import annotations

from typing import Any

from rallypoint.core.values import RunSettings
from rallypoint.environments import Found
from rallypoint.errors import UsageError
from rallypoint.settings.environment import Environ
from rallypoint.settings.launcher import launched
from rallypoint.settings.resolution import Resolved, refuse_unknown, resolve
from rallypoint.settings.values import NodeRange


def run_settings(
    *, environ: Environ | None = None, found: Found | None = None, **explicit: Any
) -> RunSettings:
    """A run's settings, on which its nodes must agree, from arguments, environment and defaults.

    `found`: what the launcher says, see `launched`; None: it is asked.

    The arguments are RunSettings' fields, and `nnodes` (text or NodeRange) for both bounds. None
    counts as not given; for restarts without a limit, `max_restarts` is "any". With one bound
    given, the other comes from the environment; without that, a minimum is also the maximum.

    Raises:
        UsageError: for a value that is not allowed, or values that contradict each other.
        TypeError: for an argument that is no field.
    """
    refuse_unknown(explicit, (*RunSettings.__struct_fields__, "nnodes"))
    least, most = explicit.pop("min_nodes", None), explicit.pop("max_nodes", None)
    if found is None:
        asked = {"nnodes": explicit.get("nnodes"), "min_nodes": least, "max_nodes": most}
        found = launched(environ, **asked)
    nnodes = resolve("nnodes", explicit.pop("nnodes", None), environ, found)
    nodes = _node_range(nnodes, least, most)
    _check_enough(nodes, found)
    values = {
        name: resolve(name, explicit.get(name), environ, found).value
        for name in RunSettings.__struct_fields__
        if name not in ("min_nodes", "max_nodes", "expected_nodes")
    }
    expected = resolve("expected_nodes", explicit.get("expected_nodes"), environ, found)
    values["expected_nodes"] = _expected(expected, nodes)
    try:
        return RunSettings(min_nodes=nodes.min, max_nodes=nodes.max, **values)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _expected(resolved: Resolved, nodes: NodeRange) -> int | None:
    """How many nodes a round need not wait longer for. The launcher's number may be out of range:
    what exceeds the maximum are spares.
    """
    count: int | None = resolved.value
    if count is None or not resolved.source.startswith("launcher"):
        return count
    return min(count, nodes.max) if count >= nodes.min else None


def _check_enough(nodes: NodeRange, found: Found) -> None:
    """Raises UsageError for a run that the launcher's nodes cannot form, at a host among them."""
    if "endpoint" in found.values and 0 < found.nodes < nodes.min:
        count = found.values.get("expected_nodes") or found.values.get("nnodes")
        where = f"{count.origin}={found.nodes}: " if count is not None else ""
        raise UsageError(
            f"{where}{found.launcher} has started {found.nodes} nodes, but the run needs at least "
            f"{nodes.min}",
            hint="lower the minimum (--nnodes MIN:MAX), start more nodes, or give --endpoint if "
            "others join from elsewhere",
        )


def _node_range(nnodes: Resolved, least: int | None, most: int | None) -> NodeRange:
    known: NodeRange = nnodes.value
    if nnodes.source == "default" and least is not None and most is None:
        return NodeRange(least, least)
    return NodeRange(known.min if least is None else least, known.max if most is None else most)
