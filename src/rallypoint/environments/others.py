"""Launchers that are not supported, but show that this process is one of several. Pure.

Without this check, four machines of one job could each train alone and end with success, and nobody
would notice the mistake.
"""

from __future__ import annotations

from typing import Final

from rallypoint.environments.found import Environ, Files, Found, refused, shown

COUNTS: Final = (
    ("MV2_COMM_WORLD_SIZE", "processes", "MVAPICH"),
    ("PMI_SIZE", "processes", "PMI"),
    ("JSM_NAMESPACE_SIZE", "processes", "JSM"),
    ("FLUX_JOB_NNODES", "nodes", "Flux"),
    ("PBS_NUM_NODES", "nodes", "PBS"),
    ("AWS_BATCH_JOB_NUM_NODES", "nodes", "AWS Batch"),
    ("SKYPILOT_NUM_NODES", "nodes", "SkyPilot"),
)


def detect(environ: Environ, files: Files) -> Found | None:
    """A launcher whose variable shows several nodes or processes; None if there is none."""
    del files
    for name, what, launcher in COUNTS:
        text = environ.get(name, "").strip()
        if text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 1:
            return _several(launcher, f"{name}={text}: there are several {what}")
    rank = environ.get("PMIX_RANK", "").strip()
    if rank:
        return _several(
            "PMIx",
            f"PMIX_RANK={shown(rank)}: there may be several processes, and PMIx does not say how "
            "many",
        )
    return None


def _several(launcher: str, message: str) -> Found:
    return refused(
        launcher,
        f"{message}; without --nnodes each of them would start its own run",
        "give --nnodes N, --endpoint HOST:PORT and --run-id ID on every node; or --nnodes 1 if "
        "each is its own run",
        ("nnodes",),
    )
