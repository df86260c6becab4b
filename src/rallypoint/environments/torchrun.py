"""The variables by which torchrun's options are given: PET_*, and MASTER_ADDR and its friends.

PET_* are what a user or an operator (such as Kubeflow's) gives in place of options. So they are
laid over what the launcher says. MASTER_ADDR, RANK and WORLD_SIZE alone often come from a user's
own script, so they count only where there is no launcher.

Sources: torch 2.13, torch.distributed.run; Kubeflow's PyTorchJob and TrainJob.
"""

from __future__ import annotations

from typing import Final

import msgspec

from rallypoint.endpoints import DEFAULT_PORT, is_ip
from rallypoint.environments.found import (
    BadVariablesError,
    Environ,
    Files,
    Found,
    Problem,
    Value,
    Variables,
    broken,
)
from rallypoint.environments.places import of_index

NAME: Final = "torchrun"
_SAME: Final = {
    "nnodes": "PET_NNODES",
    "nproc_per_node": "PET_NPROC_PER_NODE",
    "run_id": "PET_RDZV_ID",
    "max_restarts": "PET_MAX_RESTARTS",
}
"""Settings that have the same form as the option of torchrun."""
_BACKENDS: Final = ("", "static", "c10d", "rallypoint")
_RANKED: Final = ("WORLD_SIZE", "RANK", "MASTER_ADDR")


_NO_VALUE: Final = Value("", "", "")


def overlaid(environ: Environ, below: Found) -> Found:
    """What PET_* say, and for the rest what the launcher below says."""
    variables = Variables(NAME, environ)
    try:
        found = _options(variables)
    except BadVariablesError as error:
        return broken(NAME, str(error))
    if not found.values and not found.problems:
        return below
    if "endpoint" in found.values or "endpoint" in found.problems:
        below = below.without(
            ["host_coordinator", *(["run_id"] if below.is_id_of_endpoint else [])]
        )
    values = {**below.values, **found.values}
    problems = {**below.problems, **found.problems}
    return msgspec.structs.replace(
        below,
        launcher=f"{NAME}, {below.launcher}" if below.launcher else NAME,
        values=values,
        problems={name: each for name, each in problems.items() if name not in values},
        warnings=(*found.warnings, *below.warnings),
        is_id_of_endpoint=(found if "run_id" in found.values else below).is_id_of_endpoint,
    )


def detect(environ: Environ, files: Files) -> Found | None:
    """What MASTER_ADDR, RANK and WORLD_SIZE say; None unless all are set, for several processes."""
    del files
    variables = Variables("environment", environ)
    if not all(variables.text(name) for name in _RANKED):
        return None
    try:
        size = variables.needed("WORLD_SIZE", "RANK")
        if size < 2:
            return None
        rank = variables.below("RANK", "WORLD_SIZE")
        values = {
            "nnodes": variables.value(size, "WORLD_SIZE"),
            "expected_nodes": variables.value(size, "WORLD_SIZE"),
            **of_index(variables, rank, "RANK"),
            **_master(variables, "MASTER_ADDR", "MASTER_PORT"),
        }
    except BadVariablesError as error:
        return broken("environment", str(error))
    return Found(launcher="environment", values=values, nodes=size, is_id_of_endpoint=True)


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
        values = {**_master(variables, "PET_MASTER_ADDR", "PET_MASTER_PORT"), **values}
    if variables.text("PET_NODE_RANK"):
        rank = variables.number("PET_NODE_RANK") or 0
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


def _master(variables: Variables, host: str, port: str) -> dict[str, Value]:
    """The endpoint of a static rendezvous, and an id for the only run that it can have."""
    name = variables.text(host)
    number = variables.number(port, most=65_535) or DEFAULT_PORT
    where = f"[{name}]:{number}" if is_ip(name, 6) else f"{name}:{number}"
    names = [host, port] if variables.text(port) else [host]
    return {
        "endpoint": variables.value(where, *names),
        # Not the host: the first node often has another name for itself.
        "run_id": variables.value(f"torch-{number}", *names),
    }
