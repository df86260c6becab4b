"""How long `import rallypoint` takes, and what the first use of it imports as well."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Final

from benchmarks.parts import clean_environment
from rallypoint.bench.figure import Figure, Target

IMPORT_S: Final = 0.15
CODES: Final = {
    "import": ("import rallypoint", Target(IMPORT_S)),
    "import and first use": (
        "import rallypoint.client.blocking, rallypoint.client.join_plan",
        None,
    ),
}


def measure(repeats: int) -> list[Figure]:
    """Fresh interpreters in turn: one that does nothing, and one with each import."""
    for code in ("pass", *(code for code, _ in CODES.values())):
        _interpreter_s(code)  # Files are read, and byte code is written, once.
    values: dict[str, list[float]] = {name: [] for name in CODES}
    for _ in range(repeats):
        start_s = _interpreter_s("pass")
        for name, (code, _) in CODES.items():
            values[name].append(_interpreter_s(code) - start_s)
    return [
        Figure(
            scenario="import",
            name=name,
            nodes=1,
            unit="s",
            values=tuple(values[name]),
            about=f"a fresh interpreter's `{code}`, minus one that does nothing; byte code is "
            "there already",
            target=target,
        )
        for name, (code, target) in CODES.items()
    ]


def _interpreter_s(code: str) -> float:
    """How long a fresh interpreter takes to run this, start and end included."""
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, env=clean_environment())
    return time.monotonic() - began_s
