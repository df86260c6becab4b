"""What the launcher of this process says about its run: Slurm, Open MPI, Kubernetes, torchrun.

One file for each launcher. Each has a pure function `detect(environ, files)`, which returns the
settings' values with their origins, and the problems that some of them have. `settings/` asks for
them after the arguments and the variables RALLYPOINT_..., and before the defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rallypoint.environments import agents, kubernetes, openmpi, others, script, slurm, torchrun
from rallypoint.environments.agents import LAUNCH, launch_of, without_stale
from rallypoint.environments.found import (
    NOTHING,
    Environ,
    Files,
    Found,
    Problem,
    Value,
)

__all__ = [
    "LAUNCH",
    "NOTHING",
    "Environ",
    "Files",
    "Found",
    "Problem",
    "Value",
    "detect",
    "is_launchers",
    "launch_of",
    "without_stale",
]

_LAUNCHERS: Final[tuple[Callable[[Environ, Files], Found | None], ...]] = (
    openmpi.detect,
    slurm.detect,
    kubernetes.detect,
    script.detect,
    others.detect,
)
"""The innermost comes first: mpirun inside a job of Slurm keeps the job's variables."""
_PREFIXES: Final = ("SLURM_", "SLURMD_", "OMPI_", "PMIX_", "PMI_", "PET_", "JOB_COMPLETION_INDEX")
_NAMES: Final = others.NAMES | script.NAMES


def is_launchers(name: str) -> bool:
    """Whether a variable is one that makes a process a node of a launcher's run."""
    return name.startswith(_PREFIXES) or name in _NAMES


def detect(environ: Environ, files: Files, *, is_node: bool = False) -> Found:
    """What the launcher of this process says; NOTHING without one, and in a worker of an agent.

    `is_node`: this process is to be a node, as `rallypoint run`, and no worker. Then a count of
    several nodes beside an agent's variables is a problem.
    """
    environ = without_stale(environ)
    if agents.is_worker(environ):
        return (agents.doubt(environ, files) if is_node else None) or NOTHING
    found = next(filter(None, (each(environ, files) for each in _LAUNCHERS)), NOTHING)
    return torchrun.overlaid(environ, found)
