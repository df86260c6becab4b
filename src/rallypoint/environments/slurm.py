"""Slurm: a node of the run is a task of the step that srun started.

Sources: Slurm's man pages of srun and sbatch (output environment variables).
"""

from __future__ import annotations

from typing import Final

from rallypoint.core import naming
from rallypoint.core.values import NAME_LENGTH_MAX
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
from rallypoint.environments.slurm_checks import check_job, check_step, several_nodes

NAME: Final = "Slurm"
_NO_STEP_MIN: Final = 0xFFFF_FFF0
"""From here on, step ids are those of a batch script, of an interactive shell, and the like."""
_UNIX_TIME_MAX: Final = 10**11
_LIST: Final = "SLURM_STEP_NODELIST"


def detect(environ: Environ, files: Files) -> Found | None:
    """What a step of Slurm says to its tasks; None outside of a step."""
    del files
    variables = Variables(NAME, environ)
    try:
        return _step(variables) if is_step(variables) else _allocation(variables)
    except BadVariablesError as error:
        return broken(NAME, error)


def run_id(variables: Variables, *, has_step: bool = True) -> Value:
    """The id of the step, or of the job: another one each time that Slurm starts the job again."""
    check_job(variables)
    names = ["SLURM_JOB_ID" if variables.text("SLURM_JOB_ID") else "SLURM_JOBID"]
    job = variables.number(names[0])
    if job is None:
        raise BadVariablesError(
            "variables of a step of Slurm are set, but SLURM_JOB_ID is not, and Slurm sets both"
        )
    text = f"slurm-{job}"
    if has_step:
        names.append("SLURM_STEP_ID")
        text += f".{variables.number('SLURM_STEP_ID')}"
    restarts = variables.number("SLURM_RESTART_COUNT")
    if restarts:
        names.append("SLURM_RESTART_COUNT")
        text += f"-r{restarts}"
    if variables.text("SLURM_CLUSTER_NAME"):
        # Each cluster counts its jobs by itself, and several may share a ledger.
        names.append("SLURM_CLUSTER_NAME")
        text += f"@{variables.id_part('SLURM_CLUSTER_NAME')}"
    return variables.value(text, *names)


def places(variables: Variables, list_name: str) -> list[Place]:
    """Where task 0 may be, the likeliest first: the first node, all others, where srun is.

    srun may be on a login node, where other coordinators may be.

    Raises BadVariablesError for a list of nodes that cannot be read.
    """
    nodes = listed(list_name, variables.text(list_name))
    launchers = ("SLURM_LAUNCH_NODE_IPADDR", "SLURM_SRUN_COMM_HOST")
    return [
        *(Place(each, list_name) for each in nodes),
        *(Place(variables.text(each), each) for each in launchers if variables.text(each)),
    ]


def node_name(variables: Variables, local_name: str, *, is_shared: bool) -> dict[str, Value]:
    """The node's name, which it keeps when its task is started again."""
    host, local = variables.text("SLURMD_NODENAME"), variables.text(local_name)
    if not host:
        return {}
    if is_shared and local:
        return {"node_name": variables.value(f"{host}-{local}", "SLURMD_NODENAME", local_name)}
    return {"node_name": variables.value(host, "SLURMD_NODENAME")}


def labels(variables: Variables) -> dict[str, Value]:
    """The switches between this node and the others, from the top one down."""
    address = variables.text("SLURM_TOPOLOGY_ADDR")
    kinds = variables.text("SLURM_TOPOLOGY_ADDR_PATTERN").split(".")
    switches = address.split(".")[:-1] if kinds[-1] == "node" else []
    text = ".".join(switches)
    if not text or len(text) > NAME_LENGTH_MAX or naming.label_problem("topology", text):
        return {}
    return {"topology": variables.value(text, "SLURM_TOPOLOGY_ADDR")}


def ends_at_s(variables: Variables) -> float | None:
    """When Slurm ends the job: at its time limit. Releases before 23.02 do not tell it."""
    try:
        return variables.number("SLURM_JOB_END_TIME", most=_UNIX_TIME_MAX) or None
    except BadVariablesError:
        return None  # Its only use is a longer time to stop.


# -- inside and outside of a step ----------------------------------------------------------------


def is_step(variables: Variables) -> bool:
    step = variables.number("SLURM_STEP_ID", most=0xFFFF_FFFF)
    return step is not None and step < _NO_STEP_MIN


def _allocation(variables: Variables) -> Found | None:
    """The batch script or a shell of a job: of several nodes, it would be one that runs alone."""
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"):
        if not variables.text("SLURM_STEP_ID") and (variables.number(name) or 0) > 1:
            variables.needed("SLURM_STEP_ID", name)
    sign = several_nodes(variables)
    if not sign:
        return None
    message = f"{sign}, but this process is in no step of it, so it would run alone"
    srun = "put srun in front of the command, which starts it on every node; or give"
    alone = f"{srun} --nnodes 1 (RALLYPOINT_NNODES=1) if it is to run alone"
    problems = {
        "nnodes": Problem(message, alone, NAME),
        "endpoint": Problem(message, f"{srun} --endpoint", NAME),
    }
    return Found(launcher=NAME, problems=problems)


def _step(variables: Variables) -> Found:
    tasks = variables.needed("SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID")
    nodes = variables.needed("SLURM_STEP_NUM_NODES", "SLURM_STEP_ID")
    index = variables.below("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    check_step(variables, tasks, nodes, index)
    is_shared = tasks > nodes
    values = {"nnodes": variables.value(tasks, "SLURM_STEP_NUM_TASKS")}
    problems: dict[str, Problem] = {}
    if tasks > 1:
        values["expected_nodes"] = values["nnodes"]
        values["run_id"] = run_id(variables)
        values |= node_name(variables, "SLURM_LOCALID", is_shared=is_shared)
        values |= of_index(variables, index, "SLURM_PROCID")
    try:
        if tasks > 1 or variables.text(_LIST):
            found = _places(variables, nodes)
        if tasks > 1:
            values["endpoint"] = endpoint(variables, found)
    except BadVariablesError as error:
        problems = broken(NAME, error, ("endpoint",)).problems
    return Found(
        launcher=NAME,
        values=values,
        problems=problems,
        labels=labels(variables),
        nodes=tasks,
        crowded=_crowded(tasks, nodes) if is_shared else None,
        ends_at_s=ends_at_s(variables),
    )


def _places(variables: Variables, nodes: int) -> list[Place]:
    found = places(variables, _LIST)
    count = len({each.host for each in found if each.variable == _LIST})
    if count != nodes:
        raise BadVariablesError(
            f"{_LIST}={shown(variables.text(_LIST))} has {count} nodes, and "
            f"SLURM_STEP_NUM_NODES={nodes}: they contradict each other"
        )
    return found


def _crowded(tasks: int, nodes: int) -> Problem:
    return Problem(
        f"SLURM_STEP_NUM_TASKS={tasks} on SLURM_STEP_NUM_NODES={nodes}: Slurm has started several "
        "tasks on a node, and each of them would start several workers on the same devices",
        "start one task on each node: srun --ntasks-per-node=1; or give --nproc-per-node 1",
        NAME,
    )
