"""With which seed each planted bug was found last, by a scan from seed 0.

`python -m tests.simulation.planted --write` measures them anew, and writes docs/verification.md. A
change of plans, faults or programs changes what a seed means; then a seed near it finds the bug.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

PATH: Final = Path(__file__).with_name("known.json")


class Known(msgspec.Struct, frozen=True):
    """How a bug was found. `cpu_s`: of all seeds that were played, in seconds."""

    seed: int
    cpu_s: float
    said: str
    """The rule that spoke."""


KNOWN: Final = msgspec.json.decode(PATH.read_bytes(), type=dict[str, Known])


def write(known: dict[str, Known]) -> None:
    """Keep this for the next run, and for the tests."""
    lines = [
        f"{msgspec.json.encode(name).decode()}: {msgspec.json.encode(each).decode()}"
        for name, each in sorted(known.items())
    ]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")
