"""Whether the kernel killed a worker for lack of memory, which only a kernel counter shows.

Best effort: the counter belongs to the agent's memory cgroup (its workers share it) or, without
one, to the whole machine. So it shows that *a* process was killed, not which one. The kernel counts
before it kills, so the count has risen when the exit is seen.
"""

from __future__ import annotations

from pathlib import Path


class OomCounter:
    """Counts the kernel's out-of-memory kills near this process.

    Call it in a thread: kernel files are slow to read on a machine without memory.

    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._candidates = _counter_files(root)

    def read(self) -> int | None:
        """The number of kills so far; None if no counter can be read."""
        counts = (_read_count(path) for path in self._candidates)
        return next((count for count in counts if count is not None), None)


def _counter_files(root: Path) -> list[Path]:
    """Files that may have the counter, the nearest first: cgroup v2, v1, the machine's."""
    v2, v1 = _own_cgroups(root)
    mounts = [(root / "sys/fs/cgroup", v2, "memory.events")]
    mounts.append((root / "sys/fs/cgroup/memory", v1, "memory.oom_control"))
    # Inside a container the mount often shows the container's cgroup as the top, although the path
    # has more parts.
    files = [top / path.lstrip("/") / name for top, path, name in mounts if path is not None]
    files += [top / name for top, path, name in mounts if path is not None]
    return [*files, root / "proc/vmstat"]


def _own_cgroups(root: Path) -> tuple[str | None, str | None]:
    v2 = v1 = None
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None, None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            v2 = path
        elif "memory" in controllers.split(","):
            v1 = path
    return v2, v1


def _read_count(path: Path) -> int | None:
    try:
        words = (line.split() for line in path.read_text().splitlines())
        return next((int(w[1]) for w in words if len(w) == 2 and w[0] == "oom_kill"), None)
    except (OSError, ValueError):
        return None
