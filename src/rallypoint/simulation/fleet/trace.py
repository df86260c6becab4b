"""A recorded trace of failures, as CSV: which machine was down, and from when to when.

Two layouts are read, each with a header line. One row for each event: `time,node,event[,kind]`; or
one row for each outage: `start,end,node[,kind]`. Times are seconds since the job's start, or dates
(ISO 8601), which count from the first one. docs/simulate.md has the columns and their other names.
"""

from __future__ import annotations

import csv
import datetime
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from rallypoint.errors import UsageError
from rallypoint.simulation.fleet.failures import Failure

COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "time": ("time", "time_s", "timestamp", "date"),
    "start": ("start", "start_s", "start_time", "down", "failed_at", "failure_start"),
    "end": ("end", "end_s", "end_time", "stop", "stop_s", "up", "repaired_at", "failure_end"),
    "node": ("node", "node_id", "nodename", "machine", "machine_id", "host", "hostname"),
    "event": ("event", "event_type", "state", "status"),
    "kind": ("kind", "cause", "failure_type"),
}
"""Each column, and the other names under which public traces have it."""
DOWN: Final = ("down", "fail", "failed", "failure", "remove", "unavailable", "1")
UP: Final = ("up", "repair", "repaired", "recovered", "add", "available", "0")
_KINDS: Final = {
    "": "host",
    "host": "host",
    "hardware": "host",
    "network": "host",
    "process": "process",
    "software": "process",
    "freeze": "freeze",
    "preempt": "preempt",
    "preempted": "preempt",
    "preemption": "preempt",
}
HINT: Final = "the header must have time,node,event[,kind] or start,end,node[,kind]"


class Trace(msgspec.Struct, frozen=True):
    """A trace that was read. `nodes`: their names, by slot. `last_s`: its last time."""

    failures: list[Failure]
    nodes: tuple[str, ...]
    last_s: float


def load(path: Path) -> Trace:
    """Read a trace. Raises UsageError, which names the file and the line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            return read(lines, str(path))
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise UsageError(
            f"--trace {str(path)!r} cannot be read: {what}", hint="give the path of a CSV file"
        ) from error


def read(lines: Iterable[str], name: str) -> Trace:
    """Read the lines of a trace. Raises UsageError."""
    return _Reader(name).read(lines)


class _Outage(msgspec.Struct):
    node: str
    kind: str
    start_s: float
    end_s: float
    line: int


class _Reader:
    def __init__(self, name: str) -> None:
        self._name = name
        self._line = 1
        self._first_s: float | None = None
        self._down: dict[str, _Outage] = {}
        self._known: dict[str, None] = {}
        self._outages: list[_Outage] = []

    def read(self, lines: Iterable[str]) -> Trace:
        rows = csv.reader(lines)
        try:
            header = next(rows, [])
            at = self._columns(header)
            for row in rows:
                self._line = rows.line_num
                if any(cell.strip() for cell in row):
                    self._row({column: self._cell(row, index) for column, index in at.items()})
        except csv.Error as error:
            self._refuse(f"is not CSV: {error}", "write one row on each line")
        if not self._known:
            self._refuse("has no events", "give a trace with at least one failure")
        self._outages += self._down.values()
        self._check_apart()
        names = tuple(sorted(self._known, key=_natural))
        slots = {node: slot for slot, node in enumerate(names)}
        return Trace(_failures(self._outages, slots), names, self._last_s())

    def _last_s(self) -> float:
        ends = [each.end_s for each in self._outages if not math.isinf(each.end_s)]
        return max([each.start_s for each in self._outages] + ends, default=0.0)

    def _columns(self, header: list[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for index, cell in enumerate(header):
            plain = cell.strip().lower().replace(" ", "_")
            column = next((c for c, names in COLUMNS.items() if plain in names), None)
            if column is None:
                self._refuse(f"has an unknown column {cell.strip()!r}", HINT)
            if column in found:
                self._refuse(f"has two columns for {column!r}", HINT)
            found[column] = index
        for needed in (("time", "node", "event"), ("start", "end", "node")):
            if all(each in found for each in needed):
                # Without the columns of the other layout, which a file may have as well.
                return {each: found[each] for each in (*needed, "kind") if each in found}
        missing = [each for each in ("time", "node", "event") if each not in found]
        self._refuse(f"has no column {' and no column '.join(map(repr, missing))}", HINT)

    def _cell(self, row: list[str], index: int) -> str:
        return row[index].strip() if index < len(row) else ""

    def _row(self, cells: dict[str, str]) -> None:
        node, kind = cells["node"], cells.get("kind", "").lower()
        if not node:
            self._refuse("has no node", "name the node that failed")
        if kind not in _KINDS:
            self._refuse(f"has the unknown kind {kind!r}", "write host, process, freeze or preempt")
        if "event" in cells:
            self._event(node, _KINDS[kind], cells["event"].lower(), self._time(cells["time"]))
            return
        start_s = self._time(cells["start"])
        end_s = self._time(cells["end"]) if cells["end"] else math.inf
        if end_s < start_s:
            self._refuse("ends before it starts", "give each outage its start, then its end")
        self._known[node] = None
        self._outages.append(_Outage(node, _KINDS[kind], start_s, end_s, self._line))

    def _event(self, node: str, kind: str, event: str, at_s: float) -> None:
        if event in DOWN:
            before = self._down.get(node)
            if before is not None:
                self._refuse(
                    f"has node {node!r} fail again, and it has not come back since line "
                    f"{before.line}",
                    "add the row in which it is up again, or remove one of the two",
                )
            self._down[node] = _Outage(node, kind, at_s, math.inf, self._line)
        elif event in UP:
            # A node that was never down has begun: public traces list all their machines so.
            outage = self._down.pop(node, None)
            if outage is not None:
                if at_s < outage.start_s:
                    self._refuse(
                        f"has node {node!r} come back before it failed (line {outage.line})",
                        "sort the rows by time",
                    )
                outage.end_s = at_s
                self._outages.append(outage)
        else:
            self._refuse(f"has the unknown event {event!r}", "write down or up")
        self._known[node] = None

    def _check_apart(self) -> None:
        until: dict[str, _Outage] = {}
        for each in sorted(self._outages, key=lambda outage: (outage.start_s, outage.line)):
            before = until.get(each.node)
            if before is not None and each.start_s < before.end_s:
                self._line = each.line
                self._refuse(
                    f"has node {each.node!r} fail again before it is back (line {before.line})",
                    "give each node's outages one after another",
                )
            until[each.node] = each

    def _time(self, text: str) -> float:
        try:
            at_s = float(text)
        except ValueError:
            return self._date(text)
        if not 0 <= at_s < 1e12:
            self._refuse(f"has the time {text!r}", "give seconds since the job's start, from 0 on")
        return at_s

    def _date(self, text: str) -> float:
        try:
            date = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
        except ValueError:
            self._refuse(
                f"has the time {text!r}",
                "give seconds since the job's start, or a date such as 2026-03-01T12:00:00",
            )
        if date.tzinfo is None:
            date = date.replace(tzinfo=datetime.UTC)
        stamp_s = date.timestamp()
        if self._first_s is None:
            self._first_s = stamp_s
        if stamp_s < self._first_s:
            self._refuse(f"has {text!r} before the first date", "sort the rows by time")
        return stamp_s - self._first_s

    def _refuse(self, what: str, hint: str) -> NoReturn:
        raise UsageError(f"--trace {self._name!r}, line {self._line}: it {what}", hint=hint)


def _failures(outages: list[_Outage], slots: dict[str, int]) -> list[Failure]:
    """One failure for all nodes that fail at the same time, in the same way, for as long."""
    together: dict[tuple[float, str, float], list[int]] = {}
    for each in outages:
        key = (each.start_s, each.kind, each.end_s - each.start_s)
        together.setdefault(key, []).append(slots[each.node])
    return [
        Failure(at_s, kind, tuple(sorted(found)), back_s)
        for (at_s, kind, back_s), found in sorted(together.items())
    ]


def _natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """`node9` before `node10`."""
    parts = re.split("([0-9]+)", text)
    return tuple((1, int(p[:300]), p) if i % 2 else (0, 0, p) for i, p in enumerate(parts))
