"""The names of the logs of a run's rounds, and which of them are out of date.

A round's store is kept in one or more logs, its *segments*. Each name tells the round's number and
term, the segment, and the term of the coordinator that made it. So two coordinators never make
a log of the same name, and a log that a deposed one makes late is nobody else's.
"""

from __future__ import annotations

from typing import NamedTuple


class LogId(NamedTuple):
    """One segment of the log of one round. Those of a run are in the order of their age.

    `term` is the round's, `writer` the term of the coordinator that made the segment. A later
    coordinator of the same round has the higher `writer`, and makes no segment with a lower number
    than those that it found.
    """

    term: int
    number: int
    segment: int = 0
    writer: int = 0

    def name(self, prefix: str) -> str:
        """The log's name in the ledger. `prefix`: what all logs of the run begin with."""
        return f"{round_prefix(prefix, self.term, self.number)}{self.segment}.{self.writer}"


def first_log(term: int, number: int) -> LogId:
    """The segment that is created before the round is committed, by the coordinator of its term."""
    return LogId(term, number, 0, term)


def round_prefix(prefix: str, term: int, number: int) -> str:
    """What the names of all segments of one round begin with."""
    return f"{prefix}{number}.{term}."


def parse(prefix: str, name: str) -> LogId | None:
    """The log of this name; None if it is no log of this run.

    Releases with format 1 had one log a round, named by the round's number alone: older than all.
    """
    parts = name.removeprefix(prefix).split(".") if name.startswith(prefix) else []
    if not all(part.isascii() and part.isdigit() for part in parts):
        return None
    numbers = [int(part) for part in parts]
    match numbers:
        case [number]:
            return LogId(0, number)
        case [number, term, segment, writer]:
            return LogId(term, number, segment, writer)
        case _:
            return None


def older(prefix: str, names: tuple[str, ...], live: LogId) -> list[str]:
    """The names of the logs that nobody needs once `live` is all that is needed, oldest first.

    Not those of later rounds, terms or segments: another coordinator may have made them since.
    """
    found = [(log, name) for name in names if (log := parse(prefix, name)) is not None]
    return [name for log, name in sorted(found) if log < live]
