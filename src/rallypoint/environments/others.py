"""Launchers that are not supported, but show that this process is one of several. Pure.

Without this check, four machines of one job could each train alone and end with success, and nobody
would notice the mistake. A job of one host with several slots is one node.

Sources: MPICH 4 and Intel MPI 2021, as their mpiexec sets them; flux-environment(7); the man pages
of qsub (OpenPBS, Grid Engine) and of bsub (LSF); Slurm's mpi/cray_shasta plugin for PALS;
kubernetes-sigs/lws, leaderworkerset_types.go; the documentation of AWS Batch, SkyPilot and
Azure ML.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rallypoint.core.values import FrozenStruct
from rallypoint.environments.found import (
    OVERRIDES,
    BadVariablesError,
    Environ,
    Files,
    Found,
    Variables,
    broken,
    refused,
    shown,
)


class Group(FrozenStruct, frozen=True):
    """The variables by which a launcher counts (`size`) and numbers (`rank`, from 0) what it
    starts; "" for one that it has not.
    """

    launcher: str
    size: str
    rank: str = ""
    what: str = "processes"


PROCESSES: Final = (
    Group("MVAPICH", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    Group("PMI", "PMI_SIZE", "PMI_RANK"),
    Group("JSM", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"),
    Group("Flux", "FLUX_JOB_SIZE", "FLUX_TASK_RANK", "tasks"),
    Group("PALS", "", "PALS_RANKID"),
    Group("PMIx", "", "PMIX_RANK"),
)
"""Launchers that start and number each process. Their variables may be set in a step of Slurm."""
_NODES: Final = (
    Group(
        "Open MPI",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "processes on this host",
    ),
    Group("Hydra", "MPI_LOCALNRANKS", "MPI_LOCALRANKID", "processes on this host"),
    Group("Flux", "FLUX_JOB_NNODES", what="nodes"),
    Group("PBS", "PBS_NUM_NODES", "PBS_NODENUM", "nodes"),
    Group("Grid Engine", "NHOSTS", what="hosts"),
    Group("LeaderWorkerSet", "LWS_GROUP_SIZE", "LWS_WORKER_INDEX", "pods"),
    Group("AWS Batch", "AWS_BATCH_JOB_NUM_NODES", "AWS_BATCH_JOB_NODE_INDEX", "nodes"),
    Group("SkyPilot", "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK", "nodes"),
    Group("Azure ML", "AZUREML_NODE_COUNT", what="nodes"),
)
NAMES: Final = frozenset(
    {name for each in (*PROCESSES, *_NODES) for name in (each.size, each.rank) if name}
    | {"LSB_MCPU_HOSTS", "LSB_HOSTS", "PBS_NODEFILE"}
)
"""Every variable that is read here."""


def detect(environ: Environ, files: Files) -> Found | None:
    """A launcher whose variables show several nodes or processes; None if there is none."""
    for group in (*PROCESSES, *_NODES):
        try:
            told = _told(group, Variables(group.launcher, environ))
        except BadVariablesError as error:
            return broken(group.launcher, error, ("nnodes",))
        if told:
            return _several(group.launcher, told)
    for launcher, name, hosts in _listed(environ, files):
        if len(hosts) > 1:
            text = f"{name}={shown(environ[name])}: the job has {len(hosts)} hosts"
            return _several(launcher, text)
    return None


def _told(group: Group, variables: Variables) -> str:
    """What shows that there are several; "" if nothing does."""
    size = variables.number(group.size)
    rank = variables.number(group.rank)
    if size is not None and size > 1:
        return f"{group.size}={size}: there are several {group.what}"
    if rank is None or (rank == 0 and (size or group in _NODES)):
        return ""
    if size is not None:
        variables.below(group.rank, group.size)
    # Also with rank 0, which may have others beside it.
    return f"{group.rank}={rank}: there may be several {group.what}, and nothing says how many"


def _listed(environ: Environ, files: Files) -> Iterator[tuple[str, str, set[str]]]:
    """The hosts of launchers that list them, one time for each slot or beside their slots."""
    yield "LSF", "LSB_MCPU_HOSTS", set(environ.get("LSB_MCPU_HOSTS", "").split()[::2])
    yield "LSF", "LSB_HOSTS", set(environ.get("LSB_HOSTS", "").split())
    path = environ.get("PBS_NODEFILE", "").strip()
    # A job of one host has the variable, too: in a container, where the file is missing, nothing
    # says that there are more.
    yield "PBS", "PBS_NODEFILE", set((files(path) or "").split() if path else ())


def _several(launcher: str, message: str) -> Found:
    return refused(
        launcher,
        f"{message}; without --nnodes each of them would start its own run",
        OVERRIDES,
        ("nnodes",),
    )
