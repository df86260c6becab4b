"""Where the first node of a run may be, and what a node's place among the others decides."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rallypoint.core import addresses
from rallypoint.core.values import FrozenStruct
from rallypoint.endpoints import NAME, is_ip, is_loopback
from rallypoint.environments import node_list
from rallypoint.environments.found import BadVariablesError, Value, Variables, shown


class Place(FrozenStruct, frozen=True):
    """A host on which the first node may be, and the variable that names it."""

    host: str
    variable: str


def endpoint(variables: Variables, places: Sequence[Place]) -> Value:
    """The endpoint whose coordinator runs in the first node, at one of these places.

    It has no port, so that the coordinator takes the next one if a port is in use. Raises
    BadVariablesError without any place.
    """
    known = [each for each in places if _is_host(each.host)]
    if not known:
        raise BadVariablesError(_without_host(variables, places))
    hosts: dict[str, str] = {}
    # A loopback address is the likeliest place if all nodes are on this machine, and a wrong one if
    # not: then another run may be there, or nothing. Nodes pass both.
    for each in sorted(known, key=lambda place: is_loopback(place.host)):
        hosts.setdefault(f"[{each.host}]" if is_ip(each.host, 6) else each.host, each.variable)
    return variables.value(",".join(hosts), *dict.fromkeys(hosts.values()))


def listed(name: str, text: str) -> tuple[str, ...]:
    """The hosts of the node list in a variable; none if it is not set.

    Raises BadVariablesError for a list that cannot be read.
    """
    try:
        return node_list.expand(text) if text else ()
    except ValueError as error:
        raise BadVariablesError(f"the node list {name}={shown(text)} {error}") from None


def _without_host(variables: Variables, places: Sequence[Place]) -> str:
    unknown = "on which host the first node is"
    if not places:
        return f"the variables of {variables.launcher} do not say {unknown}"
    name, host = places[0].variable, places[0].host
    return (
        f"{name}={shown(variables.text(name))} does not say {unknown}: {shown(host)} is not the "
        "name of a host"
    )


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
