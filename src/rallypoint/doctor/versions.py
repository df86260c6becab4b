"""The releases of Rallypoint, Python and the libraries of a job, here and at the coordinators.

Nothing is imported: torch takes seconds, and may fail for reasons that are not ours.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Sequence
from typing import Final

from rallypoint._version import __version__
from rallypoint.doctor.case import Case
from rallypoint.doctor.findings import Finding, Notes
from rallypoint.doctor.ports import Asked

CHECK: Final = "versions"
PACKAGES: Final = ("torch", "jax", "jaxlib", "tensorflow", "numpy", "uvloop")
"""What a job may use. Those that are not installed are left out."""
OWN: Final = ("aiohttp", "msgspec", "websockets")


def check(case: Case, asked: Sequence[Asked]) -> Finding:
    """List the releases, and compare Rallypoint's with the coordinators'."""
    notes = Notes(CHECK)
    found = {"rallypoint": __version__, "python": platform.python_version()}
    found |= {name: text for name in (*PACKAGES, *OWN) if (text := _installed(name))}
    notes.facts["versions"] = found
    notes.saw(", ".join(f"{name} {text}" for name, text in found.items()))
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    notes.facts["system"] = system
    notes.saw(system)
    for answer in (each for one in asked for each in one.answers):
        if answer.software and answer.is_coordinator:
            notes.facts.setdefault("coordinators", {})[str(answer.where)] = answer.software
            _compare(answer.software.removeprefix("rallypoint "), str(answer.where), notes)
    return notes.finding(f"rallypoint {__version__}, Python {found['python']}")


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _compare(theirs: str, where: str, notes: Notes) -> None:
    if theirs == __version__:
        notes.saw(f"the coordinator at {where} has the same release")
    elif abs(_minor(theirs) - _minor(__version__)) > 1:
        notes.warn(
            f"the coordinator at {where} has release {theirs}, this machine {__version__}",
            "nodes and coordinators may be one release apart: update the older one",
        )
    else:
        notes.saw(f"the coordinator at {where} has release {theirs}")


def _minor(version: str) -> int:
    found = re.match(r"(\d+)\.(\d+)", version)
    return 1000 * int(found[1]) + int(found[2]) if found else 0
