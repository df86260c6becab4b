"""How many nodes a launcher's variables in the environment announce. Pure.

Without this check, four machines of one job could each train alone and end with success, and nobody
would notice the mistake. So `rallypoint run` checks this before it assumes one node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec


class MoreThanOne(msgspec.Struct, frozen=True):
    """A variable that shows that there are several nodes, or several processes like this one."""

    variable: str
    text: str
    what: str
    """What it counts: "nodes" or "processes"."""


# In order of precedence. The innermost launcher comes first: mpirun inside
# sbatch keeps the batch job's variables. A step's own count comes before the job's.
_COUNTS: Final = (
    ("PET_NNODES", "nodes"),
    ("OMPI_COMM_WORLD_SIZE", "processes"),
    ("MV2_COMM_WORLD_SIZE", "processes"),
    ("PMI_SIZE", "processes"),
    ("JSM_NAMESPACE_SIZE", "processes"),
    ("SLURM_STEP_NUM_TASKS", "processes"),
    ("SLURM_STEP_NUM_NODES", "nodes"),
    ("SLURM_JOB_NUM_NODES", "nodes"),
    ("SLURM_NNODES", "nodes"),
    ("FLUX_JOB_NNODES", "nodes"),
)
_STEP: Final = "SLURM_STEP_NUM_NODES"
_OF_THE_JOB: Final = frozenset({"SLURM_JOB_NUM_NODES", "SLURM_NNODES"})
# Kubeflow's PyTorchJob sets these three in each pod; so does an agent in each worker, together with
# its run id.
_RANKED: Final = ("WORLD_SIZE", "RANK", "MASTER_ADDR")
_AGENT: Final = "TORCHELASTIC_RUN_ID"


def more_than_one(environ: Mapping[str, str]) -> MoreThanOne | None:
    """The first variable that shows that this process is one of several; None if there is none."""
    for variable, what in _COUNTS:
        if variable in _OF_THE_JOB and _STEP in environ:
            continue  # `srun -N1` in a job of four nodes is one node.
        text = environ.get(variable, "")
        if _most(text) > 1:
            return MoreThanOne(variable, text, what)
    has_rank = all(environ.get(name) for name in _RANKED)
    if has_rank and _AGENT not in environ and _most(environ["WORLD_SIZE"]) > 1:
        return MoreThanOne("WORLD_SIZE", environ["WORLD_SIZE"], "processes")
    return None


def _most(text: str) -> int:
    """The number that it is, or the larger of MIN:MAX; 0 for anything else."""
    last = text.rpartition(":")[2].strip()
    return int(last) if last.isascii() and last.isdigit() and len(last) < 10 else 0
