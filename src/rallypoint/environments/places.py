"""Where the first node of a run may be, and what a node's place among the others decides."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rallypoint.core import addresses
from rallypoint.core.values import FrozenStruct
from rallypoint.endpoints import NAME, is_ip, is_loopback
from rallypoint.environments.found import BadVariablesError, Value, Variables


class Place(FrozenStruct, frozen=True):
    """A host on which the first node may be, and the variable that names it."""

    host: str
    variable: str


def endpoint(variables: Variables, places: Sequence[Place]) -> Value:
    """The endpoint whose coordinator runs in the first node, at one of these places.

    It has no port, so that the coordinator takes the next one if a port is in use. Raises
    BadVariablesError without any place.
    """
    named = [each for each in places if _is_host(each.host)]
    # A loopback address means another machine on each node, unless all nodes are on this one.
    known = [each for each in named if not is_loopback(each.host)] or named
    if not known:
        raise BadVariablesError(
            f"the variables of {variables.launcher} do not say on which host the first node is"
        )
    hosts: dict[str, str] = {}
    for each in known:
        hosts.setdefault(f"[{each.host}]" if is_ip(each.host, 6) else each.host, each.variable)
    return variables.value(",".join(hosts), *dict.fromkeys(hosts.values()))


def _is_host(text: str) -> bool:
    if re.fullmatch(r"[0-9.]+", text) or ":" in text:
        return (is_ip(text, 4) or is_ip(text, 6)) and not addresses.needs_zone(text)
    return NAME.fullmatch(text) is not None


def of_index(variables: Variables, index: int, name: str) -> dict[str, Value]:
    """What a node's index decides: its rank, and that the first node hosts the coordinator."""
    return {
        "node_index": variables.value(index, name),
        "rank_policy": variables.value("index", name),
        "host_coordinator": variables.value("no" if index else "yes", name),
    }
