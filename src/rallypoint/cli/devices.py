"""How many workers fit this machine, if `--nproc-per-node` is no number."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from rallypoint import settings
from rallypoint.errors import UsageError

NVIDIA_GPUS: Final = Path("/proc/driver/nvidia/gpus")
"""One entry for each GPU of the driver; in a container, of the whole machine."""


def count_workers(
    wanted: int | str,
    *,
    environ: Mapping[str, str] | None = None,
    note: Callable[[str], None],
    driver: Path = NVIDIA_GPUS,
) -> int:
    """A number as it is; "gpu": one for each GPU; "cpu": one for each CPU; "auto": gpu or one.

    torchrun's auto takes all CPUs if there is no GPU, which users rarely want; here that is "cpu".
    Raises UsageError if "gpu" finds none.
    """
    if isinstance(wanted, int):
        return wanted
    if wanted == "cpu":
        return count_cpus()
    gpus = count_gpus(environ, driver)
    if gpus == 0 and wanted == "gpu":
        raise UsageError(
            "--nproc-per-node gpu: there is no GPU here, or CUDA_VISIBLE_DEVICES hides it",
            hint="give a number, or cpu",
        )
    if wanted == "auto":
        note(f"--nproc-per-node auto: {gpus} GPUs" if gpus else "--nproc-per-node auto: no GPU, 1")
    return max(1, gpus)


def count_gpus(environ: Mapping[str, str] | None = None, driver: Path = NVIDIA_GPUS) -> int:
    """The number of GPUs in CUDA_VISIBLE_DEVICES, or else of the driver."""
    visible = settings.visible_gpus(environ)
    if visible is not None:
        return len(visible)
    try:
        return sum(1 for _ in driver.iterdir())
    except OSError:
        return 0


def count_cpus() -> int:
    """The number of CPUs on which this process may run."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
