"""Workers of an agent: their launcher has started the agent, and not them. Pure.

A worker may also submit a job (`sbatch` passes its environment on) or start a step, whose processes
then have the variables of an agent that is not theirs. So an agent tells its workers which launch
it belongs to, and another launch makes what the agent has set stale.
"""

from __future__ import annotations

import hashlib
from typing import Final

from rallypoint.environments import openmpi, slurm
from rallypoint.environments.found import Environ, Files, Found, refused, shown

LAUNCH: Final = "RALLYPOINT_LAUNCH"
"""An agent's own launch, as `launch_of` tells it; an agent sets it in its workers."""
_AGENTS: Final = ("RALLYPOINT_AGENT", "TORCHELASTIC_RUN_ID")
_COUNTED: Final = (openmpi.detect, slurm.detect)
"""Launchers whose variables say how many processes there are, and reach other machines."""
_NO_LAUNCH: Final = "none"
_RANKS: Final = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
)
_PLACE: Final = (
    *("RALLYPOINT_AGENT", "RALLYPOINT_AGENT_SECRET", "RALLYPOINT_NODE", "RALLYPOINT_TERM"),
    *("RALLYPOINT_ROUND", "RALLYPOINT_MIN_NODES", "RALLYPOINT_MAX_NODES"),
    "RALLYPOINT_LOCAL_RANK",
)


def launch_of(environ: Environ) -> str:
    """What tells this process's launch from others: words of Slurm and mpirun, or "none"."""
    return " ".join(_words(environ)) or _NO_LAUNCH


def without_stale(environ: Environ) -> Environ:
    """The same without what an agent of another launch has set; most often `environ` itself."""
    known = environ.get(LAUNCH)
    if not known or set(_words(environ)) <= set(known.split()):
        return environ
    stale = {LAUNCH, *_PLACE, *_RANKS}
    stale |= {name for name in environ if name.startswith("TORCHELASTIC_")}
    # An agent gives the run's id by both names. One that is different is of the user.
    if environ.get("RALLYPOINT_RUN_ID") == environ.get("TORCHELASTIC_RUN_ID"):
        stale.add("RALLYPOINT_RUN_ID")
    return {name: text for name, text in environ.items() if name not in stale}


def is_worker(environ: Environ) -> bool:
    """Whether an agent has started this process."""
    return any(environ.get(name) for name in _AGENTS)


def doubt(environ: Environ, files: Files) -> Found | None:
    """Why this process, if it is to be a node, may be one of several although an agent has set its
    variables; None without such a reason.

    Agents that set LAUNCH leave no doubt. Those of torchrun, and of older releases, do not.
    """
    if environ.get(LAUNCH):
        return None
    found = next(filter(None, (each(environ, files) for each in _COUNTED)), None)
    if found is None or (found.nodes < 2 and "nnodes" not in found.problems):
        return None
    names = [name for name in _AGENTS if environ.get(name)]
    if "nnodes" in found.problems:
        told = found.problems["nnodes"].message
    else:
        told = f"{found.values['nnodes'].origin}={found.nodes}: there are several nodes"
    return refused(
        found.launcher,
        f"{told}, and {names[0]}={shown(environ[names[0]])} says that this process is a worker of "
        "an agent, so it would run alone",
        f"unset {' and '.join(names)} if this is a node of a job of its own; or give --nnodes 1 "
        "(RALLYPOINT_NNODES=1) if it is to run alone",
        ("nnodes",),
    )


def _words(environ: Environ) -> list[str]:
    """One word for each thing that is known. Programs remove some variables; no word is missed."""
    words = []
    job = environ.get("SLURM_JOB_ID") or environ.get("SLURM_JOBID")
    if job:
        words.append(f"slurm/{job}")
        names = ("SLURM_STEP_ID", "SLURM_RESTART_COUNT", "SLURM_CLUSTER_NAME")
        words += [f"{name}/{job}/{environ[name]}" for name in names if environ.get(name)]
    if environ.get(openmpi.SIZE) or environ.get(openmpi.RANK):
        space = next(filter(None, (environ.get(name) for name in openmpi.NAMESPACES)), "")
        # The key is a secret of MPI.
        key = environ.get(openmpi.KEY, "").encode("utf-8", "surrogateescape")
        words.append(f"mpi/{space}/{hashlib.sha256(key).hexdigest()[:8]}")
    return ["_".join(word.split()) for word in words]
