"""Open MPI: a node of the run is a process that mpirun started.

mpirun inside a job of Slurm starts its daemons by srun, one on each node but the first. So the
variables of Slurm's step count those daemons, and the first node has none. Those of the job hold.

Sources: Open MPI 4's orterun(1), "environment variables"; orte/util/regex for the list of nodes. Of
Open MPI 5: PRRTE 3.0, src/mca/plm/base/plm_base_jobid.c for the namespace.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from rallypoint.endpoints import is_ip
from rallypoint.environments import slurm
from rallypoint.environments.found import (
    BadVariablesError,
    Environ,
    Files,
    Found,
    Problem,
    Value,
    Variables,
    broken,
    shown,
)
from rallypoint.environments.places import Place, endpoint, listed, of_index

NAME: Final = "Open MPI"
SIZE: Final = "OMPI_COMM_WORLD_SIZE"
RANK: Final = "OMPI_COMM_WORLD_RANK"
_LOCAL_RANK: Final = "OMPI_COMM_WORLD_LOCAL_RANK"
_LOCAL_SIZE: Final = "OMPI_COMM_WORLD_LOCAL_SIZE"
_NODES: Final = "OMPI_MCA_orte_node_regex"
_MPIRUN: Final = "OMPI_MCA_orte_hnp_uri"
_TASKS: Final = "SLURM_STEP_NUM_TASKS"
_OWN_NAME: Final = "/proc/sys/kernel/hostname"
_NAMESPACE: Final = re.compile(r"(?:prterun|prte|mpirun|mpiexec)-(.+)-[0-9]+@[0-9]+")
KEY: Final = "OMPI_MCA_orte_precondition_transports"
NAMESPACES: Final = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid")


def detect(environ: Environ, files: Files) -> Found | None:
    """What mpirun says to its processes; None outside of it."""
    variables = Variables(NAME, environ)
    if not variables.text(SIZE) and not variables.text(RANK):
        return None
    try:
        _check(variables, files)
        return _process(variables)
    except BadVariablesError as error:
        return broken(NAME, error)


def _check(variables: Variables, files: Files) -> None:
    """Raises BadVariablesError for variables that are of a former mpirun."""
    rank, size = variables.below(RANK, SIZE), variables.needed(SIZE, RANK)
    local_size = variables.number(_LOCAL_SIZE)
    if local_size is not None and local_size > size:
        raise _stale(variables, _LOCAL_SIZE, SIZE)
    if variables.text(_LOCAL_RANK) and local_size is not None:
        variables.below(_LOCAL_RANK, _LOCAL_SIZE)
    if variables.number("PMIX_RANK") not in (None, rank):
        raise _stale(variables, RANK, "PMIX_RANK")
    host = variables.text("PMIX_HOSTNAME")
    if host and slurm.is_step(variables) and variables.text("SLURMD_NODENAME"):
        # A machine may call itself something else than Slurm does.
        own = (variables.text("SLURMD_NODENAME"), (files(_OWN_NAME) or "").strip())
        if _short(host) not in map(_short, own):
            raise _stale(variables, "PMIX_HOSTNAME", "SLURMD_NODENAME")


def _stale(variables: Variables, *names: str) -> BadVariablesError:
    texts = (f"{name}={shown(variables.text(name))}" for name in names)
    return BadVariablesError(
        f"{' and '.join(texts)} contradict each other",
        f"unset {SIZE}, {RANK} and PMIX_RANK if they are of a former mpirun, which did not start "
        "this process; or",
    )


def _short(host: str) -> str:
    return host if is_ip(host, 4) else host.partition(".")[0]


def _process(variables: Variables) -> Found:
    rank = variables.below(RANK, SIZE)
    size = variables.needed(SIZE, RANK)
    tasks = variables.number(_TASKS) if size == 1 and slurm.is_step(variables) else None
    if tasks is not None and tasks > 1:
        raise BadVariablesError(
            f"{SIZE}=1 and {_TASKS}={tasks}: mpirun has started one process, and Slurm several, so "
            "each would run alone"
        )
    local_size = variables.number(_LOCAL_SIZE) or 1
    values = {"nnodes": variables.value(size, SIZE)}
    problems: dict[str, Problem] = {}
    if size > 1:
        values["expected_nodes"] = values["nnodes"]
        values |= of_index(variables, rank, RANK)
        values |= _run_id(variables)
        values |= _node_name(variables, is_shared=local_size > 1)
        try:
            values["endpoint"] = _endpoint(variables)
        except BadVariablesError as error:
            problems = broken(NAME, error, ("endpoint",)).problems
    return Found(
        launcher=NAME,
        values=values,
        problems=problems,
        labels=slurm.labels(variables),
        nodes=size,
        crowded=_crowded(variables, local_size) if local_size > 1 else None,
    )


def _run_id(variables: Variables) -> dict[str, Value]:
    """The id of this call of mpirun."""
    name = next((each for each in NAMESPACES if variables.text(each)), "")
    if not name:
        return {}
    # A namespace is a number of 16 bits on each machine, so that it may come again. The key is
    # drawn for each call of mpirun; it is a secret of MPI, so only a hash of it is used.
    parts, names = [variables.id_part(name)], [name]
    if variables.text(KEY):
        names.append(KEY)
        parts.append(_hash(variables.text(KEY)))
    if variables.text("SLURM_JOB_ID") or variables.text("SLURM_JOBID"):
        job = slurm.run_id(variables, has_step=False)
        parts.insert(0, job.text)
        names.insert(0, job.origin)
    return {"run_id": variables.value("-".join(["mpi", *parts]), *names)}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _endpoint(variables: Variables) -> Value:
    """Where rank 0 may be: in the job's first node, in mpirun's own, in any of its nodes."""
    # What follows the @ numbers the daemons.
    nodes = listed(_NODES, variables.text(_NODES).partition("@")[0])
    of_mpirun = [Place(each, _NODES) for each in nodes]
    of_job = slurm.places(variables, "SLURM_JOB_NODELIST")
    found = [*of_job[:1], *of_mpirun[:1], *_mpirun(variables), *of_mpirun[1:], *of_job[1:]]
    if not found:
        raise BadVariablesError(
            "the variables of Open MPI do not say on which host the first node is: neither "
            f"{_NODES} nor {_MPIRUN} is set, and PMIX_NAMESPACE="
            f"{shown(variables.text('PMIX_NAMESPACE'))} has no host in it",
            "give --endpoint HOST (RALLYPOINT_ENDPOINT), where HOST is the host of rank 0; or",
        )
    return endpoint(variables, found)


def _mpirun(variables: Variables) -> list[Place]:
    """The host of mpirun, whose nodes usually begin with it.

    Open MPI 5 has it in the namespace: TOOL-HOST-PID@JOB. Open MPI 4 has its addresses:
    JOB.VPID;tcp://A,B:PORT;tcp6://[C],[D]:PORT.
    """
    namespace = _NAMESPACE.fullmatch(variables.text("PMIX_NAMESPACE"))
    found = [Place(namespace[1], "PMIX_NAMESPACE")] if namespace else []
    for part in variables.text(_MPIRUN).split(";")[1:]:
        hosts = part.partition("://")[2].rpartition(":")[0]
        found += [Place(each.strip("[]"), _MPIRUN) for each in hosts.split(",") if each]
    return found


def _node_name(variables: Variables, *, is_shared: bool) -> dict[str, Value]:
    found = slurm.node_name(variables, _LOCAL_RANK, is_shared=is_shared)
    host = variables.text("PMIX_HOSTNAME")
    if found or not host:
        return found
    if is_shared:
        text = f"{host}-{variables.needed(_LOCAL_RANK, _LOCAL_SIZE)}"
        return {"node_name": variables.value(text, "PMIX_HOSTNAME", _LOCAL_RANK)}
    return {"node_name": variables.value(host, "PMIX_HOSTNAME")}


def _crowded(variables: Variables, local_size: int) -> Problem:
    return Problem(
        f"{_LOCAL_SIZE}={local_size}: mpirun has started {local_size} processes on this host, and "
        "each of them would start several workers on the same devices",
        "start one process on each host: mpirun -N 1; or give --nproc-per-node 1",
        NAME,
    )
