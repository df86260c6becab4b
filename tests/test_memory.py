"""Whose limit on memory counts: the cgroup's, one around it, or the machine's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rallypoint import memory
from rallypoint.core.budget import BYTES_MIN
from rallypoint.memory import EMBEDDED_BYTES_MAX, MemoryLimit, memory_limit

MIB = 1024**2
V2 = "31 23 0:28 {mounted} {at} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "35 31 0:32 {mounted} {at} rw - cgroup cgroup rw,memory\n"
OTHER = "34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"


def machine(root: Path, cgroup: str, mounts: str, **limits: str) -> Path:
    """As much of a file system as is read. `limits`: path, with __ for a slash, and content."""
    files = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts}
    files |= {path.replace("__", "/"): text for path, text in limits.items()}
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def whole() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_cgroup_v2_has_the_smallest_limit_up_to_the_root(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        "0::/a/b/c\n",
        OTHER + V2.format(mounted="/", at="/sys/fs/cgroup"),
        **{
            "sys/fs/cgroup/a/b/c/memory.max": "max\n",
            "sys/fs/cgroup/a/b/memory.max": f"{300 * MIB}\n",
            "sys/fs/cgroup/a/memory.max": f"{200 * MIB}\n",
        },
    )
    assert memory_limit(root) == MemoryLimit(200 * MIB, "/sys/fs/cgroup/a/memory.max")


def test_a_container_may_see_only_its_own_cgroup(tmp_path: Path) -> None:
    """With a namespace its path is "/", or leads outside; without one it is the host's."""
    for number, (path, mounted) in enumerate(
        [("/", "/"), ("/../../x", "/"), ("/docker/1", "/docker/1"), ("/docker/1", "/elsewhere")]
    ):
        root = machine(
            tmp_path / str(number),
            f"0::{path}\n",
            V2.format(mounted=mounted, at="/sys/fs/cgroup"),
            **{"sys/fs/cgroup/memory.max": f"{100 * MIB}\n"},
        )
        assert memory_limit(root).bytes == 100 * MIB, path


def test_cgroup_v1_has_a_limit(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        "4:memory,hugetlb:/jobs/7\n2:cpuset:/\n0::/\n",
        OTHER
        + V1.format(mounted="/", at="/sys/fs/cgroup/memory")
        + V2.format(mounted="/", at="/sys/fs/cgroup/unified"),
        **{
            "sys/fs/cgroup/memory/jobs/7/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/jobs/memory.limit_in_bytes": f"{50 * MIB}\n",
        },
    )
    limit = memory_limit(root)
    assert limit == MemoryLimit(50 * MIB, "/sys/fs/cgroup/memory/jobs/memory.limit_in_bytes")


@pytest.mark.parametrize("text", ["max\n", "", "0\n", "none\n", "9223372036854771712\n"])
def test_without_a_limit_the_machine_counts(tmp_path: Path, text: str) -> None:
    mounts = V2.format(mounted="/", at="/sys/fs/cgroup")
    root = machine(tmp_path, "0::/\n", mounts, **{"sys/fs/cgroup/memory.max": text})
    assert memory_limit(root) == MemoryLimit(whole(), "this machine's memory")


def test_a_limit_above_the_machine_does_not_count(tmp_path: Path) -> None:
    mounts = V2.format(mounted="/", at="/sys/fs/cgroup")
    root = machine(tmp_path, "0::/\n", mounts, **{"sys/fs/cgroup/memory.max": f"{2 * whole()}\n"})
    assert memory_limit(root).bytes == whole()


def test_without_cgroups_the_machine_counts(tmp_path: Path) -> None:
    assert memory_limit(tmp_path).bytes == whole()


@pytest.mark.parametrize("garbage", ["", "nonsense", "1:2", "35 31 - cgroup2", "\0 - \0"])
def test_unreadable_cgroup_files_do_not_count(tmp_path: Path, garbage: str) -> None:
    assert memory_limit(machine(tmp_path, garbage, garbage)).bytes == whole()


def test_a_coordinator_keeps_half_and_one_inside_a_node_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for size, served, embedded in [
        (64 * 1024**3, 32 * 1024**3, EMBEDDED_BYTES_MAX),
        (500 * MIB, 250 * MIB, 250 * MIB),
        (MIB, BYTES_MIN, BYTES_MIN),
    ]:
        limit = MemoryLimit(size, "somewhere")
        monkeypatch.setattr(memory, "memory_limit", lambda limit=limit: limit)
        assert memory.default_budget(is_embedded=False).bytes == served
        assert memory.default_budget(is_embedded=True).bytes == embedded
