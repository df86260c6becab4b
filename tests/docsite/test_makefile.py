"""What the targets of the Makefile install: torch is large, and few of them need it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docsite.pages import ROOT

PACKAGE, TOOLS, TORCH = "--editable .", "--editable '.[dev,examples]'", "'torch=="


@pytest.mark.parametrize(
    ("target", "installs"),
    [
        ("simulate", [PACKAGE]),
        ("model", [PACKAGE]),
        ("versions", [PACKAGE]),
        ("planted", [TOOLS]),
        ("mutants", [TOOLS]),
        ("fuzz", [TOOLS]),
        ("chaos", [TOOLS]),
        ("soak", [TOOLS]),
        ("unit", [TOOLS]),
        ("test", [TOOLS, TORCH]),
        ("verify", [TORCH, TOOLS]),
    ],
)
def test_a_target_installs_what_it_needs(target: str, installs: list[str], tmp_path: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make here")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MF"))}
    told = subprocess.run(
        [make, "--dry-run", f"VENV={tmp_path / 'none'}", target],
        cwd=ROOT,
        env=env | {"TORCH": "torch==9"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = re.findall(r"-m pip install .*?(--editable .*|'torch==)", told.stdout)
    assert found == installs
