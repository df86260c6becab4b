"""Proxies in the environment that would catch connections to the endpoint.

Rallypoint uses no proxy. Other programs of a job do, gRPC (JAX) and curl among them.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from rallypoint.core.printable import escaped
from rallypoint.doctor.case import Case
from rallypoint.doctor.findings import Finding, Notes

CHECK: Final = "proxies"
_NAMES: Final = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")


def check(case: Case) -> Finding:
    """Compare the variables with the hosts of the endpoint."""
    notes = Notes(CHECK)
    found = {
        name: text
        for name, text in case.environ.items()
        if name.lower() in _NAMES and text and text != '""'
    }
    spared = case.environ.get("no_proxy") or case.environ.get("NO_PROXY") or ""
    notes.facts |= {"proxies": sorted(found), "no_proxy": spared}
    for name, text in found.items():
        notes.saw(f"{name}={_without_password(text)}")
    if spared:
        notes.saw(f"no_proxy={escaped(spared)}")
    caught = [each for each in case.hosts if found and not _is_spared(each, spared)]
    if caught:
        names = ", ".join(sorted(found))
        notes.warn(
            f"{names} would catch connections to {', '.join(caught)}",
            f"export no_proxy={','.join(filter(None, [spared, *caught]))}: Rallypoint uses no "
            "proxy, but JAX (gRPC), curl and other programs do",
        )
    return notes.finding("no proxy catches connections to the endpoint")


def _is_spared(host: str, spared: str) -> bool:
    """Whether no_proxy has the host, or a domain that ends it, as in Python, curl and gRPC."""
    names = [each.strip().lower().lstrip(".").removeprefix("*.") for each in spared.split(",")]
    host = host.lower()
    return any(
        name == "*" or (name and (host == name or host.endswith(f".{name}"))) for name in names
    )


def _without_password(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"//{url}")
    return (
        escaped(url.replace(parts.netloc, parts.netloc.rpartition("@")[2]))
        if ("@" in parts.netloc)
        else escaped(re.sub(r"\s", " ", url))
    )
