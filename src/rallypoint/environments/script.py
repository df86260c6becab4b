"""The variables of a user's own script, or of an operator: MASTER_ADDR and friends, NNODES.

They count only where there is no launcher: a script for Slurm often sets them for its own program.

Sources: torch 2.13, torch.distributed, initialization by environment variables; NNODES and
NODE_RANK are what most scripts around torchrun call its options.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from rallypoint.endpoints import DEFAULT_PORT, is_ip, is_loopback
from rallypoint.environments.found import (
    OVERRIDES,
    BadVariablesError,
    Environ,
    Files,
    Found,
    Value,
    Variables,
    broken,
    refused,
    shown,
)
from rallypoint.environments.places import of_index

_LAUNCHER: Final = "environment"
_RANKED: Final = ("WORLD_SIZE", "RANK", "MASTER_ADDR")
_NODES: Final = ("NNODES", "NODE_RANK")
NAMES: Final = frozenset({*_RANKED, "MASTER_PORT", *_NODES})
"""Every variable that is read here."""


def detect(environ: Environ, files: Files) -> Found | None:
    """What MASTER_ADDR, RANK and WORLD_SIZE say, and NNODES and NODE_RANK.

    None for one process, and if nothing shows that there are more.
    """
    del files
    variables = Variables(_LAUNCHER, environ)
    try:
        is_whole = all(variables.text(name) for name in _RANKED)
        return (_ranked(variables) if is_whole else None) or _part(variables)
    except BadVariablesError as error:
        return broken(_LAUNCHER, error)


def rank_above_first(environ: Environ) -> str:
    """The variable that says that this process is not the first of several; "" if none does."""
    variables = Variables(_LAUNCHER, environ)
    texts = {name: variables.text(name) for name in ("RANK", "NODE_RANK")}
    return next((name for name, text in texts.items() if re.fullmatch("0*[1-9][0-9]*", text)), "")


def several(variables: Variables, told: Sequence[str], missing: Sequence[str]) -> Found:
    """A process that would run alone, though the variables `told` show that there are others."""
    texts = ", ".join(f"{name}={shown(variables.text(name))}" for name in told)
    rest = " and ".join(missing)
    lacks = f", but {rest} {'are' if len(missing) > 1 else 'is'} not set" if missing else ""
    set_rest = f"set {rest} on every node; or " if missing else ""
    return refused(
        variables.launcher,
        f"{texts}{lacks}: there are several nodes, and this one would run alone",
        f"{set_rest}{OVERRIDES}",
        ("nnodes",),
    )


def master(variables: Variables, host: str, port: str) -> dict[str, Value]:
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


def _ranked(variables: Variables) -> Found | None:
    rank = variables.below("RANK", "WORLD_SIZE")
    size = variables.needed("WORLD_SIZE", "RANK")
    if size < 2:
        return None
    values = {
        "nnodes": variables.value(size, "WORLD_SIZE"),
        "expected_nodes": variables.value(size, "WORLD_SIZE"),
        **of_index(variables, rank, "RANK"),
        **master(variables, "MASTER_ADDR", "MASTER_PORT"),
    }
    return Found(launcher=_LAUNCHER, values=values, nodes=size, is_id_of_endpoint=True)


def _part(variables: Variables) -> Found | None:
    """Variables that show that there are several nodes, but do not suffice for a run."""
    missing = [name for name in _RANKED if not variables.text(name)]
    if (variables.number("NNODES") or 0) > 1 or rank_above_first(variables.environ):
        is_part = True
    elif "WORLD_SIZE" in missing or len(missing) == 2:
        # WORLD_SIZE alone shows nothing: scripts and images set it to the number of all workers, it
        # says neither which one this is nor where the others are, and torchrun ignores it.
        is_part = False
    else:
        # Usual in the batch script of a Slurm job of one node, and for workers of one host.
        is_one = variables.text("SLURM_JOB_NUM_NODES") == "1"
        is_one |= is_loopback(variables.text("MASTER_ADDR"))
        is_part = (variables.number("WORLD_SIZE") or 0) > 1 and not is_one
    told = [name for name in (*_NODES, *_RANKED) if variables.text(name)]
    return several(variables, told, missing) if is_part else None
