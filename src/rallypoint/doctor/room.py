"""Memory: of this process's cgroup or machine, and of /dev/shm, which workers share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from rallypoint.core.sizes import size_text
from rallypoint.doctor.case import Case
from rallypoint.doctor.findings import Finding, Notes
from rallypoint.memory import memory_limit

CHECK: Final = "memory"
LEFT_MIN: Final = 512 << 20
SHARED_MIN: Final = 512 << 20
"""A container of Docker has 64 MiB by default: a few batches of torch's DataLoader fill it."""


def check(case: Case, root: Path = Path("/"), shared: Path = Path("/dev/shm")) -> Finding:
    """Look at the memory that is left. `root`: where /proc and the cgroups are."""
    notes = Notes(CHECK)
    _check_limit(root, notes)
    _check_shared(shared, notes)
    return notes.finding("there is memory left for workers")


def _check_limit(root: Path, notes: Notes) -> None:
    limit = memory_limit(root)
    used = _used_of_cgroup(limit.source, root)
    left = _available(root)
    if used is not None:
        left = limit.bytes - used if left is None else min(left, limit.bytes - used)
    notes.facts |= {"memory_bytes": limit.bytes, "memory_left_bytes": left}
    notes.saw(f"{size_text(limit.bytes)} may be used: {limit.source}")
    if left is None:
        return
    if left < LEFT_MIN:
        advice = "end other programs here, or raise the limit of the container or the job"
        notes.warn(f"only {size_text(left)} of memory are left", advice)
    else:
        notes.saw(f"{size_text(left)} are left")


def _used_of_cgroup(source: str, root: Path) -> int | None:
    """How much of a cgroup's limit is used; None if the limit is not a cgroup's."""
    names = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}
    path = Path(source)
    if path.name not in names:
        return None
    file = root / path.parent.relative_to("/") / names[path.name]
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _available(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _check_shared(shared: Path, notes: Notes) -> None:
    try:
        about = os.statvfs(shared)
    except OSError:
        notes.missed(f"there is no {shared} here")
        return
    size, free = about.f_blocks * about.f_frsize, about.f_bavail * about.f_frsize
    notes.facts |= {"shm_bytes": size, "shm_free_bytes": free}
    line = f"{shared} has {size_text(size)}, of which {size_text(free)} are free"
    if free < SHARED_MIN:
        notes.warn(
            f"{line}: workers that share tensors or use NCCL between GPUs of a machine need more",
            "give the container more (--shm-size=8g, or an emptyDir with medium: Memory), or "
            f"remove old files in {shared}",
        )
    else:
        notes.saw(line)
