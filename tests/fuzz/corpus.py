"""The corpus: inputs that have found a fault, or that reach code which no input before reached.

`make test` replays all of it. `python -m tests.fuzz --collect 300` looks for more, for so many
seconds: an input is kept if it reaches a line of the shipped code that no kept one reaches.

    corpus/etcd/*.json         a call of a ledger, and the answers of etcd that it gets
    corpus/stored/<reader>/*   bytes that a reader of tests/fuzz/stored.py gets
    corpus/texts/<way>/*       a text that a person may have written
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, Final

from tests.fuzz import engines, stored, texts

FOLDER: Final = Path(__file__).with_name("corpus")
SOURCE: Final = str(Path(__file__).parents[2] / "src" / "rallypoint")
INPUT_BYTES_MAX: Final = 4_096
"""A larger input is not kept."""


def entries() -> list[Path]:
    """All inputs of the corpus."""
    return sorted(path for path in FOLDER.rglob("*") if path.is_file())


def replay(path: Path) -> None:
    """Give one input of the corpus to the code that it is for. Raises what the fuzzer would see."""
    target, *rest = path.relative_to(FOLDER).parts
    match target:
        case "etcd":
            _replay_etcd(path)
        case "stored":
            stored.check(rest[0], path.read_bytes())
        case "texts":
            texts.check(rest[0], path.read_bytes().decode("utf-8", "surrogateescape"), Random(1))
        case _:
            raise ValueError(f"{path} is of no target")


def _replay_etcd(path: Path) -> None:
    from tests.loops import run_virtual

    entry = json.loads(path.read_text())
    answers = [json.dumps(each).encode() for each in entry["answers"]]
    run_virtual(engines.replayed(entry["call"], answers))


# -- what reaches new code -------------------------------------------------------------------------


class Lines:
    """The lines of the shipped code that ran. A context manager."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, int]] = set()

    def __enter__(self) -> Lines:
        sys.settrace(self._called)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _called(self, frame: FrameType, event: str, argument: object) -> Any:
        name = frame.f_code.co_filename
        return self._ran if name.startswith(SOURCE) else None

    def _ran(self, frame: FrameType, event: str, argument: object) -> Any:
        self.seen.add((frame.f_code.co_filename, frame.f_lineno))
        return self._ran


def collect(seconds: float, seed: int) -> int:
    """Look for inputs that reach new lines, and keep them. Returns how many were kept."""
    known: dict[str, set[tuple[str, int]]] = {}
    for path in entries():
        if path.relative_to(FOLDER).parts[0] != "etcd":
            with Lines() as lines:
                replay(path)
            known.setdefault(str(path.parent), set()).update(lines.seen)
    kept, rng = 0, Random(seed)
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        target = rng.choice(("stored", "texts"))
        name, data, run = _one(target, rng)
        folder = FOLDER / target / name
        with Lines() as lines:
            run()
        seen = known.setdefault(str(folder), set())
        if lines.seen - seen and len(data) <= INPUT_BYTES_MAX:
            seen |= lines.seen
            folder.mkdir(parents=True, exist_ok=True)
            (folder / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
            kept += 1
    return kept


def _one(target: str, rng: Random) -> tuple[str, bytes, Callable[[], None]]:
    """An input: the name of what it is for, its bytes, and how it is given to it."""
    if target == "stored":
        name, data = stored.made(rng)
        return name, data, lambda: stored.check(name, data)
    way, text = texts.made(rng)
    data = text.encode("utf-8", "surrogateescape")
    return way, data, lambda: texts.check(way, text, Random(1))
