"""Events with their times, as lines of JSON in a file.

Measured processes write, the scenario reads.

Times are `time.monotonic()`, which on Linux is one clock for all processes of a machine. Each line
is one write, so a process that is killed right after it leaves a complete line.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

LoggedEvent = dict[str, Any]


class EventWriter:
    """Appends to a file. Several processes may write to the same file."""

    def __init__(self, path: str | Path) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)

    def write(self, event: str, at_s: float | None = None, **more: Any) -> None:
        """Write that something happened now, or at `at_s`."""
        line = {"event": event, "at_s": time.monotonic() if at_s is None else at_s, **more}
        os.write(self._fd, json.dumps(line).encode() + b"\n")


class EventReader:
    """Reads a file that grows, each line once. A file that does not exist yet has no events."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_bytes = 0
        self._events: list[LoggedEvent] = []

    def all(self, event: str, since_s: float = 0.0) -> list[LoggedEvent]:
        """The events of this kind from `since_s` on, in order."""
        self._read()
        return [e for e in self._events if e["event"] == event and e["at_s"] >= since_s]

    def first(self, event: str, since_s: float = 0.0) -> float | None:
        """When it first happened since then; None if it did not."""
        found = self.all(event, since_s)
        return float(found[0]["at_s"]) if found else None

    def _read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read_bytes)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        self._events += [json.loads(line) for line in whole.splitlines()]
