"""Installs each peer in its own virtual environment, so that none can disturb another."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Final

from benchmarks.peers.catalogue import Environment

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / ".venv" / "peers"
_STAMP: Final = "peers-installed.json"
_PIP: Final = ("-m", "pip", "--quiet", "--disable-pip-version-check")


def python_of(environment: Environment, folder: Path) -> Path | None:
    """Its interpreter; None if it is not installed, or with other packages than it names now."""
    stamp = folder / environment.name / _STAMP
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != _written(environment):
        return None
    return folder / environment.name / "bin" / "python"


def install(
    environments: Iterable[Environment], folder: Path, say: Callable[[str], None]
) -> list[str]:
    """Install those that are not installed yet; returns the names of those that failed."""
    failed = []
    for environment in environments:
        if python_of(environment, folder) is not None:
            say(f"{environment.name}: is installed")
            continue
        say(f"{environment.name}: is being installed")
        try:
            _install(environment, folder / environment.name)
        except subprocess.CalledProcessError as error:
            said = (error.stderr or "").strip().splitlines()
            say(f"{environment.name}: could not be installed: {said[-1] if said else error}")
            failed.append(environment.name)
    return failed


def _install(environment: Environment, where: Path) -> None:
    _run(sys.executable, "-m", "venv", "--clear", str(where))
    python = str(where / "bin" / "python")
    for packages in environment.installs:
        _run(python, *_PIP, "install", *packages)
    if environment.unpacked:
        _unpack(python, environment.unpacked)
    (where / _STAMP).write_text(_written(environment), encoding="utf-8")


def _unpack(python: str, wheel: Iterable[str]) -> None:
    """Unpack a wheel that pip refuses for this Python to where Python looks for packages."""
    told = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    with tempfile.TemporaryDirectory() as folder:
        options = ("--no-deps", "--only-binary", ":all:", "--dest", folder)
        _run(python, *_PIP, "download", *options, *wheel)
        for path in Path(folder).glob("*.whl"):
            _run(python, "-m", "zipfile", "-e", str(path), told.strip())


def _run(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout


def _written(environment: Environment) -> str:
    return json.dumps(asdict(environment), indent=1)
