"""The texts of the agent about warm starts, made from values. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rallypoint.core.printable import some
from rallypoint.core.reasons import duration
from rallypoint.launch import agent_events as on

_NAMES_MAX: Final = 3


def of_cold(why: str) -> str:
    """Workers start cold, for good."""
    return f"warning: --preload: the workers start cold: {why}"


def of_learned(count: int) -> str:
    """A worker of the first round has told what it imports."""
    return f"preloading {count:,} modules that a worker has imported"


def of_ready(ready: on.PreloadReady) -> str:
    """The preloader can fork workers from now on."""
    memory_mib = ready.memory_bytes / 2**20
    return (
        f"{ready.modules:,} modules are loaded, in {ready.took_s:.1f} s: workers start warm. The "
        f"preloader has {memory_mib:,.0f} MiB, which workers share until they write to it"
    )


def of_ended(why: str, pause_s: float) -> str:
    """The preloader has ended by itself."""
    return (
        f"warning: the preloader has ended: {why}; workers start cold until there is another one, "
        f"in {duration(pause_s)}"
    )


def of_problems(problems: tuple[on.Problem, ...], *, is_named: bool) -> Iterator[str]:
    """Why modules are not preloaded."""
    for problem in problems:
        names = some(problem.modules[:_NAMES_MAX], len(problem.modules))
        about = f"{names} cannot be preloaded" if problem.modules else "no module can be preloaded"
        detail = f"\n{problem.detail}" if problem.detail and is_named else ""
        yield f"warning: --preload: {about}: {problem.why}{detail}"


def of_no_standby(local_rank: int) -> str:
    """A fork was to become a worker, and there is none."""
    return f"warning: the preloader has forked no worker; local rank {local_rank} starts cold"


def of_output(line: str) -> str:
    """A line that a module has written while it was imported."""
    return f"preloader: {line}"
