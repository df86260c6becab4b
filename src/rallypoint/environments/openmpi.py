"""Open MPI: a node of the run is a process that mpirun started.

mpirun inside a job of Slurm starts its daemons by srun, one on each node but the first. So the
variables of Slurm's step count those daemons, and the first node has none. Those of the job hold.

Sources: Open MPI 4's orterun(1), "environment variables"; orte/util/regex for the list of nodes.
"""

from __future__ import annotations

import hashlib
from typing import Final

from rallypoint.environments import node_list, slurm
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
from rallypoint.environments.places import Place, endpoint, of_index

NAME: Final = "Open MPI"
SIZE: Final = "OMPI_COMM_WORLD_SIZE"
RANK: Final = "OMPI_COMM_WORLD_RANK"
_LOCAL_RANK: Final = "OMPI_COMM_WORLD_LOCAL_RANK"
_LOCAL_SIZE: Final = "OMPI_COMM_WORLD_LOCAL_SIZE"
_NODES: Final = "OMPI_MCA_orte_node_regex"
_MPIRUN: Final = "OMPI_MCA_orte_hnp_uri"
_TASKS: Final = "SLURM_STEP_NUM_TASKS"
KEY: Final = "OMPI_MCA_orte_precondition_transports"
NAMESPACES: Final = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid")


def detect(environ: Environ, files: Files) -> Found | None:
    """What mpirun says to its processes; None outside of it."""
    del files
    variables = Variables(NAME, environ)
    if not variables.text(SIZE) and not variables.text(RANK):
        return None
    try:
        return _process(variables)
    except BadVariablesError as error:
        return broken(NAME, str(error))


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
            values["endpoint"] = endpoint(variables, _places(variables))
        except BadVariablesError as error:
            problems = broken(NAME, str(error), ("endpoint",)).problems
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


def _places(variables: Variables) -> list[Place]:
    """Where rank 0 may be: in the job's first node, in mpirun's own, in any of its nodes."""
    listed = [Place(each, _NODES) for each in _listed(variables)]
    job = slurm.places(variables, "SLURM_JOB_NODELIST")
    return [*job[:1], *listed[:1], *_mpirun(variables), *listed[1:], *job[1:]]


def _listed(variables: Variables) -> tuple[str, ...]:
    text = variables.text(_NODES)
    try:
        # What follows the @ numbers the daemons.
        return node_list.expand(text.partition("@")[0]) if text else ()
    except ValueError as error:
        raise BadVariablesError(f"the node list {_NODES}={shown(text)} {error}") from None


def _mpirun(variables: Variables) -> list[Place]:
    """The addresses of mpirun: JOB.VPID;tcp://A,B:PORT;tcp6://[C],[D]:PORT."""
    found = []
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
