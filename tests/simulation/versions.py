"""`python -m tests.simulation.versions python3.12 python3.13`: the same histories with each Python.

Installs this package for each of them in an environment of its own, plays the same seeds, and
compares what happened with what happens with the Python that runs this. Exits with 0 if all
histories are equal, with 1 if one differs, and with 2 if a Python is missing or cannot be used.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
OLDEST = (3, 11)
SHOWN = 9
LINES_SHOWN = 8
VERSION = "import sys; print(*sys.version_info[:3], sep='.')"


class UnusablePython(Exception):
    """A Python cannot be compared with. The text says why, and what to do."""


def version(python: str) -> str:
    """Its version, such as "3.12.1". Raises UnusablePython."""
    try:
        # A name on PATH may be a script that only looks for an interpreter.
        told = subprocess.run([python, "-c", VERSION], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise UnusablePython(
            f"there is no {python} here\n"
            "hint: install it, or name those that are here: make versions PYTHONS=/path/to/python"
        ) from None
    found = told.stdout.strip()
    if tuple(map(int, found.split(".")[:2])) < OLDEST:
        raise UnusablePython(
            f"{python} is Python {found}\nhint: Rallypoint needs Python 3.11 or later"
        )
    return found


def histories(python: Path | str, seeds: str) -> dict[str, str]:
    """The digest of each seed's history, played with this Python. Raises UnusablePython."""
    command = [str(python), "-m", "rallypoint.simulation", "--seeds", seeds, "--digests"]
    told = _run(command, f"the simulator fails with {python}", cwd=os.sep)
    return dict(line.split() for line in told.splitlines())


def installed(python: str, folder: Path) -> Path:
    """The Python of a new environment that has this package. Raises UnusablePython."""
    what = f"Rallypoint cannot be installed for {python}"
    _run([python, "-m", "venv", str(folder)], what)
    made = folder / "bin" / "python"
    _run([str(made), "-m", "pip", "install", "--quiet", str(ROOT)], what)
    return made


def _run(command: list[str], what: str, cwd: str | None = None) -> str:
    """What the command prints. Raises UnusablePython."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-LINES_SHOWN:])
        raise UnusablePython(f"{what}:\n{said}\nhint: mend the cause, or leave it out of PYTHONS")
    return done.stdout


def main(arguments: list[str]) -> int:
    """See above."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.versions")
    parser.add_argument("pythons", nargs="+", metavar="PYTHON", help="such as python3.13")
    parser.add_argument("--seeds", default="0:200", metavar="A:B")
    given = parser.parse_args(arguments)
    try:
        versions = {python: version(python) for python in given.pythons}
        _check_other(versions)
        return _compare(versions, given.seeds)
    except UnusablePython as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _check_other(versions: dict[str, str]) -> None:
    """Raises UnusablePython if one is of the version that runs this: it would tell nothing."""
    own = version(sys.executable)
    for python, found in versions.items():
        if found.split(".")[:2] == own.split(".")[:2]:
            raise UnusablePython(
                f"{python} is Python {found}, and so is the one that it is compared with\n"
                "hint: name others in PYTHONS, or another one for PYTHON (after make clean)"
            )


def _compare(versions: dict[str, str], seeds: str) -> int:
    own = version(sys.executable)
    print(f"plays seeds {seeds} with this Python, {own}", flush=True)
    here, code = histories(sys.executable, seeds), 0
    with tempfile.TemporaryDirectory() as folder:
        for number, (python, its_version) in enumerate(versions.items()):
            print(f"installs Rallypoint for Python {its_version}, and plays them", flush=True)
            there = histories(installed(python, Path(folder, str(number))), seeds)
            other = [seed for seed in here if here[seed] != there.get(seed)]
            if other:
                code = 1
                few = ", ".join(other[:SHOWN]) + (", ..." if len(other) > SHOWN else "")
                print(f"{its_version}: {len(other)} of {len(here)} seeds differ from {own}: {few}")
            else:
                print(f"{its_version}: {len(here)} seeds have the same history as with {own}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
