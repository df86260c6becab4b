"""Ledgers of other packages: the URL schemes that installed packages register.

A package registers the function that makes its ledger, by its URL's scheme:

    [project.entry-points."rallypoint.ledgers"]
    redis = "my_package:open_ledger"

Then `redis://...` is an endpoint. docs/ledgers.md is the contract. The installed packages are only
searched if an endpoint has a scheme that Rallypoint does not have itself, and a package is loaded
when its ledger is opened. What a URL means must not be here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from rallypoint.errors import EndpointError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP: Final = "rallypoint.ledgers"
OWN: Final = ("etcd", "etcds", "file", "http", "https")
"""The schemes that Rallypoint has itself. No package can replace them."""
SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*")
"""The name of a scheme, in lower case (RFC 3986, section 3.1)."""


def registered(scheme: str) -> EntryPoint | None:
    """The entry point of a scheme, in lower case; None if no package has registered it.

    Raises:
        EndpointError: two packages have registered it.
    """
    found = [each for each in _installed() if each.name == scheme and scheme not in OWN]
    if len({each.value for each in found}) > 1:
        raise EndpointError(
            f"several packages register ledgers for {scheme}://: "
            + ", ".join(sorted(origin(each) for each in found)),
            hint="uninstall all but one of them",
        )
    return found[0] if found else None


def refused() -> list[EntryPoint]:
    """The entry points that are never used: their scheme is Rallypoint's own, or is none."""
    return [each for each in _installed() if each.name in OWN or not SCHEME.fullmatch(each.name)]


def nearest(scheme: str) -> str:
    """The known scheme that is most like this one; "" if none is."""
    import difflib

    known = {*OWN, *(each.name for each in _installed())}
    return next(iter(difflib.get_close_matches(scheme, sorted(known), n=1)), "")


def origin(entry: EntryPoint) -> str:
    """For people: the entry point, and the package that registers it."""
    package = f" of {entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""
    return f"{entry.name} = {entry.value}{package}"


def _installed() -> list[EntryPoint]:
    # Every command imports this file, and this module takes as long as all of `import rallypoint`.
    from importlib.metadata import entry_points

    return sorted(entry_points(group=GROUP), key=lambda each: (each.name, each.value))
