"""Which names, hosts and labels a node may have, and how large they may be. Pure.

Names are shown to people, and are in the environment of workers and in every member table. So their
bytes are bounded, and they have no character with a meaning for a terminal, a C string or a shell.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from rallypoint.core.values import NodeInfo

INFO_BYTES_MAX: Final = 8 * 1024
"""The most bytes of all names, addresses and labels of one node. There may be 100,000 nodes."""
HOST_BYTES_MAX: Final = 255
"""RFC 1035: a host name has no more."""

_STEPS: Final = (".", "..")
"""RFC 3986, 5.2.4: clients and proxies remove them from the path of a URL, also if they are written
as %2E. So a request about such a run would be one about something else.
"""
_HOST: Final = re.compile(r"\w([\w.-]*[\w.])?")
_ZONE: Final = re.compile(r"[\w.-]{1,64}")


def is_host(text: str) -> bool:
    """Whether this can be a host name or an address literal, without brackets and port."""
    if len(text.encode("utf-8", "surrogatepass")) > HOST_BYTES_MAX:
        return False
    if _HOST.fullmatch(text) is not None:
        return True  # IPv4 literals have the same characters.
    address, percent, zone = text.partition("%")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return not percent or _ZONE.fullmatch(zone) is not None


def host_problem(what: str, host: str) -> str:
    """Why `host` cannot be the `what` of a node; "" if it can."""
    return "" if is_host(host) else f"{what} {_shown(host)} is neither a host name nor an address"


def run_id_problem(run_id: str) -> str:
    """Why a run cannot have this id; "" if it can."""
    if not run_id.isprintable():
        return "the run id has characters that cannot be printed"
    if run_id in _STEPS:
        return f"{run_id!r} cannot be a run id: in a path it means a directory"
    return ""


def label_problem(name: str, value: str) -> str:
    """Why a node cannot have this label; "" if it can."""
    for part, text in (("name", name), ("value", value)):
        if not text.isprintable():
            return f"the {part} of label {_shown(name)} has characters that cannot be printed"
    return ""


def info_problem(info: NodeInfo) -> str:
    """Why a node cannot have this name, these addresses and labels; "" if it can."""
    for what, name in (("node name", info.name), ("host", info.host)):
        if not name.isprintable():
            return f"{what} {_shown(name)} has characters that cannot be printed"
    problems = [host_problem("address", each) for each in info.addresses]
    problems += [label_problem(name, value) for name, value in info.labels.items()]
    problem = next(filter(None, problems), "")
    if problem:
        return problem
    size = info_bytes(info)
    if size > INFO_BYTES_MAX:
        return (
            f"the names, addresses and labels of a node have at most {INFO_BYTES_MAX} bytes, "
            f"and these have {size}"
        )
    return ""


def info_bytes(info: NodeInfo) -> int:
    """The size of a node's names, addresses and labels, in bytes of UTF-8."""
    labels = (*info.labels, *info.labels.values())
    return sum(len(each.encode()) for each in (info.name, info.host, *info.addresses, *labels))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
