"""`python -m tests.simulation.versions python3.12 python3.13`: the same histories with each Python.

Installs this package for each of them in an environment of its own, plays the same seeds, and
compares what happened with what happens with the Python that runs this. Exits with 1 if it differs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def histories(python: Path | str, seeds: str) -> dict[str, str]:
    """The digest of each seed's history, played with this Python."""
    command = [str(python), "-m", "rallypoint.simulation", "--seeds", seeds, "--digests"]
    told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=os.sep)
    return dict(line.split() for line in told.stdout.splitlines())


def installed(python: str, folder: Path) -> Path:
    """The Python of a new environment that has this package."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    made = folder / "bin" / "python"
    subprocess.run([made, "-m", "pip", "install", "--quiet", ROOT], check=True)
    return made


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.versions")
    parser.add_argument("pythons", nargs="+", metavar="PYTHON", help="such as python3.13")
    parser.add_argument("--seeds", default="0:200", metavar="A:B")
    given = parser.parse_args(arguments)
    here, code = histories(sys.executable, given.seeds), 0
    with tempfile.TemporaryDirectory() as folder:
        for number, python in enumerate(given.pythons):
            there = histories(installed(python, Path(folder, str(number))), given.seeds)
            other = [seed for seed in here if here[seed] != there.get(seed)]
            print(f"{python}: {len(here)} seeds, {len(other)} with another history {other[:9]}")
            code = 1 if other else code
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
