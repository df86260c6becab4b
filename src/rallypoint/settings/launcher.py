"""What the launcher says, as far as it applies beside what the user says.

The launcher is found by `environments/`. It describes one run: its own. Some of its values have no
meaning for another run, so they are left out where arguments or variables name another one.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from rallypoint import environments
from rallypoint.environments import Found
from rallypoint.environments.torchrun import NAME as TORCHRUN
from rallypoint.settings.environment import Environ, small_file, variables
from rallypoint.settings.table import BY_NAME
from rallypoint.settings.values import NodeRange, parse_nnodes

FROM_LAUNCHER: Final = frozenset(
    {"endpoint", "run_id", "nnodes", "expected_nodes", "node_name", "node_index"}
    | {"host_coordinator", "rank_policy", "nproc_per_node", "max_restarts"}
)
"""The settings that a launcher can give. For the others the environment is not searched."""
_OF_SEVERAL: Final = (
    *("nnodes", "endpoint", "run_id", "expected_nodes", "node_name", "node_index"),
    *("host_coordinator", "rank_policy"),
)
"""Values that are about this node and the others."""

_AGREED_AMONG_ITS_NODES: Final = frozenset({"rank_policy", "node_name"})
"""Nodes from elsewhere have another policy, and other steps on a host have the same name there."""


def launched(environ: Environ | None = None, *, is_node: bool = False, **given: Any) -> Found:
    """What the launcher of this process says, without what the user's own settings replace.

    `given`: explicit arguments by the settings' names, and `min_nodes` and `max_nodes`; None counts
    as not given. `is_node`: see environments.detect. A node that is to be alone gets nothing with
    which it would meet others. A user's own endpoint has no host that the launcher knows, and a
    user's own run may have other nodes than the launcher's.
    """
    found = environments.detect(variables(environ), small_file, is_node=is_node)
    if not found.launcher:
        return found
    if _is_alone(_nnodes(given, environ)):
        return _alone(found.without(_OF_SEVERAL))
    if _nnodes(given, environ) is None and _is_alone_by_torchruns_variables(found):
        found = _alone(found.without(_of_launcher_below(found)))
    mine = {name for name in FROM_LAUNCHER if _given(name, given, environ) is not None}
    left_out = set()
    if given.get("min_nodes") is not None and given.get("max_nodes") is not None:
        left_out.add("nnodes")
    if "endpoint" in mine:
        left_out.add("host_coordinator")
        if found.is_id_of_endpoint:
            left_out.add("run_id")
        if "run_id" in mine:
            left_out.add("expected_nodes")
            # A launcher that cannot tell the run's id, such as Kubernetes, has no run of its own.
            if "run_id" not in found.problems:
                left_out |= _AGREED_AMONG_ITS_NODES
    return found.without(mine | left_out)


def _given(name: str, given: dict[str, Any], environ: Environ | None) -> Any:
    """The argument, else the variable's text; None without either."""
    argument = given.get(name)
    known = BY_NAME.get(name)
    if argument is not None or known is None:
        return argument
    return variables(environ).get(known.variable) or None


def _nnodes(given: dict[str, Any], environ: Environ | None) -> Any:
    """The most nodes that the user asks for, or the range as text; None if not given."""
    if given.get("max_nodes") is not None:
        return given["max_nodes"]
    return _given("nnodes", given, environ)


def _is_alone(nnodes: Any) -> bool:
    """Whether this number, range, or text of a range is one node."""
    try:
        nodes = parse_nnodes(nnodes) if isinstance(nnodes, str) else nnodes
    except ValueError:
        return False  # The text is refused where it is read.
    return bool((nodes.max if isinstance(nodes, NodeRange) else nodes) == 1)


def _is_alone_by_torchruns_variables(found: Found) -> bool:
    """Whether PET_NNODES or PET_STANDALONE asks for one node, as options of torchrun do."""
    nnodes = found.values.get("nnodes")
    return nnodes is not None and nnodes.launcher == TORCHRUN and _is_alone(nnodes.text)


def _alone(found: Found) -> Found:
    """The same for a node that runs alone beside the launcher's others."""
    return msgspec.structs.replace(found, nodes=0, crowded=None)


def _of_launcher_below(found: Found) -> list[str]:
    """The settings about this node and the others that are not given by torchrun's variables.

    Those are as options: `--nnodes 1 --endpoint HOST:PORT` has an endpoint, too.
    """
    return [
        name
        for name in _OF_SEVERAL
        for each in (found.values.get(name), found.problems.get(name))
        if each is not None and each.launcher != TORCHRUN
    ]
