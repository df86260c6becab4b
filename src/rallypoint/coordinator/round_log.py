"""The names of the logs of a run's rounds, and which of them are out of date.

A round's store is kept in one or more logs, its *segments*. Each name tells the round's number and
term, the segment, and the term of the coordinator that made it. So two coordinators never make
a log of the same name, and a log that a deposed one makes late is nobody else's.
"""

from __future__ import annotations

from typing import NamedTuple

from rallypoint.ledger.keys import log_name, log_of


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

    def name(self, run_id: str) -> str:
        """The log's name in the ledger."""
        return log_name(run_id, self.number, self.term, self.segment, self.writer)


def first_log(term: int, number: int) -> LogId:
    """The segment that is created before the round is committed, by the coordinator of its term."""
    return LogId(term, number, 0, term)


def parse(name: str) -> LogId | None:
    """The log of this name; None if it is no log's."""
    found = log_of(name)
    if found is None:
        return None
    number, term, segment, writer = found
    return LogId(term, number, segment, writer)


def older(names: tuple[str, ...], live: LogId) -> list[str]:
    """Which of a run's logs nobody needs once `live` is all that is needed, oldest first.

    Not those of later rounds, terms or segments: another coordinator may have made them since.
    """
    found = [(log, name) for name in names if (log := parse(name)) is not None]
    return [name for log, name in sorted(found) if log < live]


def first_of(names: tuple[str, ...]) -> LogId | None:
    """Where a reader of one round begins, given the names of all segments of it that there are.

    The segment before a later one is dropped only after its last record had named that later one.
    So the earliest that is there counts. Two coordinators may have made one of the same number: the
    earlier of them was sealed off before its own was named, so the later one's counts.
    """
    found = [log for name in names if (log := parse(name)) is not None]
    earliest = min((log.segment for log in found), default=None)
    return max((log for log in found if log.segment == earliest), default=None)
