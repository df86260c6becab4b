"""Runs one module of these benchmarks in a separate process: a part.

rallypoint/bench/processes.py starts, watches and ends all other processes.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Final

from rallypoint.bench import processes
from rallypoint.bench.processes import DEADLINE_S, BenchError

ROOT: Final = Path(__file__).resolve().parents[1]


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment with default settings; this checkout can be imported as well."""
    kept = processes.clean_environment()
    return kept | {"PYTHONPATH": os.pathsep.join([kept["PYTHONPATH"], str(ROOT)])} | more


def run_part(module: str, *arguments: object, **environment: str) -> list[dict[str, Any]]:
    """The lines of JSON that `benchmarks.MODULE` prints. Raises BenchError."""
    part = processes.start(
        ("-m", f"benchmarks.{module}", *map(str, arguments)),
        env=clean_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with part:
        try:
            out, err = part.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            part.kill()
            raise BenchError(f"{module} has not ended within {DEADLINE_S:g} s") from None
    if part.returncode != 0:
        said = err.decode("utf-8", "replace")[-2_000:]
        raise BenchError(f"{module} ended with exit code {part.returncode}: {said}")
    return [json.loads(line) for line in out.splitlines()]
