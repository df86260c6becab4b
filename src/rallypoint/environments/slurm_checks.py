"""Whether the variables of Slurm can be true together, and what they show outside of a step. Pure.

A process may have the variables of another one: of a shell, of an mpirun inside of the step, or of
a script that sets its own; a container may get only some of them. Who believes them runs alone.

Sources: Slurm 26, src/common/env.c and src/srun; its man pages of srun and sbatch.
"""

from __future__ import annotations

import re
from typing import Final

from rallypoint.environments.found import BadVariablesError, Variables, shown
from rallypoint.environments.others import PROCESSES
from rallypoint.environments.places import listed
from rallypoint.environments.script import rank_above_first

_NODES: Final = ("SLURM_JOB_NUM_NODES", "SLURM_NNODES")
_LISTS: Final = ("SLURM_JOB_NODELIST", "SLURM_NODELIST", "SLURM_STEP_NODELIST")
_TASKS: Final = ("SLURM_NTASKS", "SLURM_NPROCS")
_TASKS_LISTS: Final = ("SLURM_TASKS_PER_NODE", "SLURM_STEP_TASKS_PER_NODE")
_RANKS: Final = ("SLURM_PROCID", "SLURM_NODEID", "SLURM_LOCALID")
_TASKS_OF_NODES: Final = re.compile(r"[0-9]+(?:\(x([0-9]{1,7})\))?")


def several_nodes(variables: Variables) -> str:
    """What shows, outside of a step, that the job has several nodes or tasks; "" if nothing does.

    A job of one node may have several tasks, which are its processors: it is one node.

    Raises BadVariablesError for variables that cannot be read, and for a job of several components.
    """
    _refuse_components(variables)
    counts = {name: variables.number(name) or 0 for name in _NODES}
    counts |= {name: len(listed(name, variables.text(name))) for name in _LISTS}
    counts |= {name: _nodes_of_tasks(variables, name) for name in _TASKS_LISTS}
    for name, count in counts.items():
        if count > 1:
            return f"{_set(variables, name)}: the job has {count} nodes"
    for name in _RANKS:
        if variables.number(name):
            return f"{_set(variables, name)}: this is not the first task of a job"
    for name in _TASKS:
        # Without any count of the nodes, the tasks may be anywhere.
        tasks = variables.number(name) or 0
        if tasks > 1 and not any(counts.values()):
            return f"{_set(variables, name)}: the job has {tasks} tasks"
    return ""


def check_step(variables: Variables, tasks: int, nodes: int, index: int) -> None:
    """Raises BadVariablesError if these cannot be the variables of a task of a step."""
    _refuse_components(variables)
    check_job(variables)
    # srun starts a task on each node, and gives nodes back that would have none.
    if tasks < nodes:
        raise _contradiction(variables, "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES")
    if nodes > (variables.number("SLURM_JOB_NUM_NODES") or nodes):
        raise _contradiction(variables, "SLURM_STEP_NUM_NODES", "SLURM_JOB_NUM_NODES")
    if variables.text("SLURM_NODEID"):
        variables.below("SLURM_NODEID", "SLURM_STEP_NUM_NODES")
    _check_node(variables)
    _check_launchers_inside(variables, tasks, index)
    above = rank_above_first(variables.environ) if tasks == 1 else ""
    if above:
        # One step for each node, from a loop in the batch script. RANK=0 may be of the script.
        raise _contradiction(variables, above, "SLURM_STEP_NUM_TASKS")


def check_job(variables: Variables) -> None:
    """Raises BadVariablesError for two ids of the job."""
    jobs = {variables.number(name) for name in ("SLURM_JOB_ID", "SLURM_JOBID")} - {None}
    if len(jobs) > 1:
        raise _contradiction(variables, "SLURM_JOB_ID", "SLURM_JOBID")


def _check_node(variables: Variables) -> None:
    """This node must be among the step's. Both have the names that Slurm gives to nodes, also where
    the machines call themselves something else.
    """
    name = "SLURM_STEP_NODELIST"
    try:
        hosts = listed(name, variables.text(name))
    except BadVariablesError:
        return  # A problem of the endpoint.
    if hosts and variables.text("SLURMD_NODENAME") not in ("", *hosts):
        raise _contradiction(variables, "SLURMD_NODENAME", name)


def _refuse_components(variables: Variables) -> None:
    if (variables.number("SLURM_HET_SIZE") or 0) > 1:
        raise BadVariablesError(
            f"{_set(variables, 'SLURM_HET_SIZE')}: this is a job of several components, whose "
            "nodes Slurm does not count together",
            "start the command in all components (srun --het-group=0,1), and",
        )


def _check_launchers_inside(variables: Variables, tasks: int, index: int) -> None:
    """Another launcher, inside the step, has other processes. Those of srun --mpi are its tasks."""
    for group in PROCESSES:
        size, rank = variables.number(group.size), variables.number(group.rank)
        if size == 1 and not rank:
            continue  # One process for each task, or of the shell from which srun was called.
        if (tasks if size is None else size, index if rank is None else rank) != (tasks, index):
            names = [each for each in (group.size, group.rank) if variables.text(each)]
            raise _contradiction(
                variables,
                *names,
                "SLURM_STEP_NUM_TASKS",
                "SLURM_PROCID",
                hint=f"start the processes by srun alone, or unset {' and '.join(names)} if "
                f"{group.launcher} did not start this process; or",
            )


def _nodes_of_tasks(variables: Variables, name: str) -> int:
    """How many nodes a list such as 2(x3),1 has; 0 if it is not set."""
    parts = [each for each in variables.text(name).split(",") if each]
    found = [_TASKS_OF_NODES.fullmatch(each) for each in parts]
    if None in found:
        raise BadVariablesError(f"{_set(variables, name)} is not a list of numbers of tasks")
    return sum(int(each[1] or 1) for each in found if each is not None)


def _contradiction(variables: Variables, *names: str, hint: str = "") -> BadVariablesError:
    *first, last = (_set(variables, name) for name in names)
    return BadVariablesError(f"{', '.join(first)} and {last} contradict each other", hint)


def _set(variables: Variables, name: str) -> str:
    return f"{name}={shown(variables.text(name))}"
