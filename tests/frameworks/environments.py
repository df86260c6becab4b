"""Environments with a framework that the tests alone need, in .venv-frameworks of the checkout.

Each sees the packages of the Python that runs the tests, torch among them, and installs the rest by
pip, once. The tests are skipped where that fails: there may be no network, or no such release.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-frameworks"
WITHIN_S = 240.0


def python_with(*requirements: str) -> str:
    """The Python of an environment with these packages, pinned. Skips the test without them."""
    key = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()[:12]
    made = FOLDER / key
    python = made / "bin" / "python"
    if python.exists():
        return str(python)
    FOLDER.mkdir(exist_ok=True)
    # Another run of the tests may make the same one.
    with tempfile.TemporaryDirectory(dir=FOLDER, ignore_cleanup_errors=True) as folder:
        begun = Path(folder) / "new"
        problem = _made(begun, requirements)
        if problem:
            pytest.skip(f"{' '.join(requirements)} cannot be installed: {problem}")
        if not made.exists():
            shutil.move(begun, made)
    return str(python)


def _made(folder: Path, requirements: tuple[str, ...]) -> str:
    """Create it. Returns why that failed."""
    # The rest of sys.path is what a venv of the same Python has by itself.
    of_tests = [each for each in sys.path if each.endswith(("site-packages", f"{os.sep}src"))]
    inside = sysconfig.get_path("purelib", vars={"base": str(folder)})
    pip = (str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--retries", "1")
    try:
        subprocess.run(
            [sys.executable, "-m", "venv", folder],
            check=True,
            timeout=WITHIN_S,
            capture_output=True,
            text=True,
        )
        (Path(inside) / "of_the_tests.pth").write_text("\n".join(of_tests))
        subprocess.run(
            [*pip, "--timeout", "20", "--disable-pip-version-check", *requirements],
            check=True,
            timeout=WITHIN_S,
            capture_output=True,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return f"pip has not ended within {WITHIN_S:g} s"
    except subprocess.CalledProcessError as error:
        return (error.stderr.strip().splitlines() or [str(error)])[-1]
    return ""
