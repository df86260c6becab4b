"""Wheels of two releases, built from git: the previous one and this one, each in its folder.

The previous release is the newest tag `v*` below this commit. Until there is one, it is the commit
PREVIOUS. What must not be here: a test.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PREVIOUS = "de9d518"
"""The last commit before time, chance, threads and disks came through seams: the same wire version
and ledger format as now, and other code nearly everywhere below."""
BUILT_WITHIN_S = 300.0
NO_NETWORK = ("No matching distribution", "Could not find a version", "Connection", "Temporary")
"""What pip says if it cannot reach the build backend, which it installs for each build."""


def previous() -> str:
    """The commit of the previous release. Skips where this clone does not have it."""
    tag = _git("describe", "--tags", "--abbrev=0", "--match", "v*", "HEAD^")
    name = tag.stdout.strip() if tag.returncode == 0 else PREVIOUS
    if _git("cat-file", "-e", f"{name}^{{commit}}").returncode:
        pytest.skip(f"this clone has no {name}, the previous release: git fetch --unshallow --tags")
    return name


def built(commit: str, folder: Path) -> Path:
    """A folder with the files of the commit's wheel. Skips where no wheel can be built."""
    source = folder / "source"
    source.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "x"], cwd=source, input=archive.stdout, check=True)
    if subprocess.run(
        [sys.executable, "-m", "pip", "-V"], capture_output=True, check=False
    ).returncode:
        pytest.skip("this environment has no pip, which builds the wheels")
    wheel = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet"]
    wheel += ["--disable-pip-version-check", "--wheel-dir", str(folder), str(source)]
    done = subprocess.run(
        wheel, capture_output=True, text=True, check=False, timeout=BUILT_WITHIN_S
    )
    if done.returncode and any(each in done.stderr for each in NO_NETWORK):
        pytest.skip(f"pip cannot install the build backend here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl")
    unpacked = folder / "unpacked"
    with zipfile.ZipFile(made) as file:
        file.extractall(unpacked)
    return unpacked


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
