"""The only reader of the environment, and what this process and its platform are.

Secrets that have been taken out of the environment are kept here, for later reads.
"""

from __future__ import annotations

import os
import re
import sys
from collections import ChainMap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from rallypoint.environments import without_stale
from rallypoint.errors import PlatformError

Environ = Mapping[str, str]


def variables(environ: Environ | None) -> Environ:
    """The variables, without those of an agent of another launch; None: of this process."""
    if environ is None:
        environ = ChainMap(os.environ, _withheld) if _withheld else os.environ
    return without_stale(environ)


_withheld: Final[dict[str, str]] = {}
WITHHELD_PREFIXES: Final = ("RALLYPOINT_TOKEN", "RALLYPOINT_ETCD_PASSWORD")
"""Variables with a token or a password, or with the name of a file that has one."""


def withhold_secrets() -> None:
    """Take this process's tokens and passwords out of its environment, which children inherit.

    They can still be resolved here, and a variable that is set again wins. For a process whose
    children are the user's programs: torch's agent gives its workers a copy of its environment.
    """
    for name in [each for each in os.environ if each.startswith(WITHHELD_PREFIXES)]:
        _withheld[name] = os.environ.pop(name)


def home(environ: Environ | None = None) -> str:
    """This user's home folder, from HOME; "" without one."""
    folder = variables(environ).get("HOME", "")
    return folder if folder.startswith("/") else ""


def shares_torch_store(environ: Environ | None = None) -> bool:
    """Whether torch's workers use a store that their agent serves: torch's own variable, 1 is no.

    Source: torch 2.13, DynamicRendezvousHandler.use_agent_store.
    """
    return variables(environ).get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "0") != "1"


def etcd_binary(environ: Environ | None = None) -> str | None:
    """The etcd program that TORCHELASTIC_ETCD_BINARY_PATH names, as for torch; None if none is.

    Source: torch 2.13, elastic/rendezvous/etcd_server.py.
    """
    return variables(environ).get("TORCHELASTIC_ETCD_BINARY_PATH") or None


def small_file(path: str) -> str | None:
    """The text of a file that tells about this machine, such as /etc/hosts; None without one."""
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            return file.read(_SMALL_FILE_CHARACTERS_MAX)
    except OSError:
        return None


_SMALL_FILE_CHARACTERS_MAX: Final = 1_000_000


def set_variables(variables: Mapping[str, str]) -> None:
    """Set variables of this process: those of a worker that is kept for another round."""
    os.environ.update(variables)


def process_environment() -> Environ:
    """All variables of this process, for a pure function that needs many."""
    return os.environ


def visible_gpus(environ: Environ | None = None) -> tuple[str, ...] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves this process; None if it is not set.

    As the CUDA driver reads it: the list ends at the first entry that is no device ("-1").
    """
    text = variables(environ).get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    devices: list[str] = []
    for each in text.split(","):
        if not re.fullmatch(r"[0-9]+|(GPU|MIG)-\S+", each.strip()):
            break
        devices.append(each.strip())
    return tuple(devices)


def unknown_variables(known: Iterable[str], environ: Environ | None = None) -> dict[str, str]:
    """Each variable RALLYPOINT_... that nobody reads, and the `known` one most like it, or ""."""
    # Only here, because each command imports this module.
    import difflib

    from rallypoint.environments.agents import LAUNCH

    all_known = {*known, *_OF_WORKERS, LAUNCH}
    found = {}
    for name in sorted(variables(environ)):
        if name.startswith(PREFIX) and not name.startswith(_OF_TESTS) and name not in all_known:
            found[name] = next(iter(difflib.get_close_matches(name, sorted(all_known), 1, 0.8)), "")
    return found


PREFIX: Final = "RALLYPOINT_"
_OF_TESTS: Final = "RALLYPOINT_TEST_"
_OF_WORKERS: Final = (
    *("RALLYPOINT_AGENT", "RALLYPOINT_AGENT_SECRET", "RALLYPOINT_NODE", "RALLYPOINT_TERM"),
    *("RALLYPOINT_ROUND", "RALLYPOINT_MIN_NODES", "RALLYPOINT_MAX_NODES"),
    "RALLYPOINT_LOCAL_RANK",
)
"""What an agent sets for its workers."""


def check_platform(platform: str | None = None) -> None:
    """Raises PlatformError, naming the platform, unless this is Linux or macOS."""
    platform = sys.platform if platform is None else platform
    if not platform.startswith(("linux", "darwin")):
        raise PlatformError(
            f"rallypoint runs on Linux and, for development, on macOS, not on {platform}",
            hint="on Windows, use the Windows Subsystem for Linux",
        )
