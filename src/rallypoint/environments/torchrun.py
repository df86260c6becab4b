"""The variables by which torchrun's options are given: PET_*.

They are what a user or an operator (such as Kubeflow's) gives in place of options. So they are laid
over what the launcher says.

Sources: torch 2.13, torch.distributed.run; Kubeflow's PyTorchJob and TrainJob.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from rallypoint.environments.found import (
    BadVariablesError,
    Environ,
    Found,
    Problem,
    Value,
    Variables,
    broken,
    shown,
)
from rallypoint.environments.places import of_index
from rallypoint.environments.script import master, several

NAME: Final = "torchrun"
_SAME: Final = {
    "nnodes": "PET_NNODES",
    "nproc_per_node": "PET_NPROC_PER_NODE",
    "run_id": "PET_RDZV_ID",
    "max_restarts": "PET_MAX_RESTARTS",
}
"""Settings that have the same form as the option of torchrun."""
_BACKENDS: Final = ("", "static", "c10d", "rallypoint")
_NO_VALUE: Final = Value("", "", "")


def overlaid(environ: Environ, below: Found) -> Found:
    """What PET_* say, and for the rest what the launcher below says."""
    variables = Variables(NAME, environ)
    try:
        found = _options(variables)
    except BadVariablesError as error:
        return broken(NAME, error)
    if not (found.values or found.problems or found.warnings):
        return below
    # PET_NNODES wins over WORLD_SIZE without an error: that often counts workers, not nodes.
    if "endpoint" in found.values or "endpoint" in found.problems:
        below = below.without(
            ["host_coordinator", *(["run_id"] if below.is_id_of_endpoint else [])]
        )
    values = {**below.values, **found.values}
    problems = {**below.problems, **found.problems}
    if "nnodes" not in {**values, **problems} and variables.number("PET_NODE_RANK"):
        problems |= several(variables, ["PET_NODE_RANK"], ["PET_NNODES"]).problems
    return msgspec.structs.replace(
        below,
        launcher=f"{NAME}, {below.launcher}" if below.launcher else NAME,
        values=values,
        problems={name: each for name, each in problems.items() if name not in values},
        warnings=(*found.warnings, *below.warnings),
        is_id_of_endpoint=(found if "run_id" in found.values else below).is_id_of_endpoint,
    )


def _options(variables: Variables) -> Found:
    if variables.text("PET_STANDALONE") not in ("", "0"):
        return Found(values={"nnodes": variables.value(1, "PET_STANDALONE")})
    values = {
        setting: variables.value(variables.text(name), name)
        for setting, name in _SAME.items()
        if variables.text(name)
    }
    problems: dict[str, Problem] = {}
    backend = variables.text("PET_RDZV_BACKEND")
    if backend not in _BACKENDS:
        problems["endpoint"] = Problem(
            f"PET_RDZV_BACKEND={backend!a} is not supported by `rallypoint run`",
            "unset it, and give --endpoint, which says where the nodes meet",
            NAME,
        )
    elif variables.text("PET_RDZV_ENDPOINT"):
        text = variables.text("PET_RDZV_ENDPOINT")
        values["endpoint"] = variables.value(text, "PET_RDZV_ENDPOINT")
    elif variables.text("PET_MASTER_ADDR"):
        values = {**master(variables, "PET_MASTER_ADDR", "PET_MASTER_PORT"), **values}
    if variables.text("PET_NODE_RANK"):
        rank = variables.number("PET_NODE_RANK") or 0
        most = values["nnodes"].text.rpartition(":")[2] if "nnodes" in values else ""
        if re.fullmatch("[0-9]{1,9}", most) and rank >= int(most):
            told = f"PET_NODE_RANK={rank} and PET_NNODES={shown(variables.text('PET_NNODES'))}"
            raise BadVariablesError(f"{told} contradict each other")
        found = of_index(variables, rank, "PET_NODE_RANK")
        if "endpoint" not in values or "PET_MASTER_ADDR" not in values["endpoint"].origin:
            # Only a static rendezvous says that the first node is the host.
            del found["host_coordinator"]
        values |= found
    warnings: tuple[str, ...] = ()
    if variables.text("PET_RDZV_CONF"):
        warnings = ("PET_RDZV_CONF has no effect: give its options by --rdzv-conf",)
    return Found(
        launcher=NAME,
        values=values,
        problems=problems,
        warnings=warnings,
        is_id_of_endpoint="PET_MASTER_ADDR" in values.get("run_id", _NO_VALUE).origin,
    )
