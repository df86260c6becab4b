"""The names of the logs of a run's rounds, and which of them are out of date.

A round's store is kept in one or more logs, its *segments*. The name of a log has the round's
number and term, the segment, and the term of the coordinator that created it. So two coordinators
never create logs of the same name, even if a deposed one creates its log late.
"""

from __future__ import annotations

import msgspec

from rallypoint.ledger.keys import log_name, log_of


class LogId(msgspec.Struct, frozen=True, order=True):
    """One segment of the log of one round. The segments of a run sort by age.

    `term`: of the round. `writer`: the term of the coordinator that created the segment. A later
    coordinator of the same round has a higher `writer`, and creates no segment with a lower number
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
    """The segment that the coordinator of the round's term creates before it commits the round."""
    return LogId(term, number, 0, term)


def parse(name: str) -> LogId | None:
    """The log with this name; None if it is not the name of a log."""
    found = log_of(name)
    if found is None:
        return None
    number, term, segment, writer = found
    return LogId(term, number, segment, writer)


def older(names: tuple[str, ...], live: LogId) -> list[str]:
    """The logs of a run that are older than `live`, oldest first. `live` is still needed.

    Logs of later rounds, terms or segments are not returned, because another coordinator may have
    created them.
    """
    found = [(log, name) for name in names if (log := parse(name)) is not None]
    return [name for log, name in sorted(found) if log < live]


def first_of(names: tuple[str, ...]) -> LogId | None:
    """The segment where a reader of one round begins. `names`: the names of all its segments.

    A segment is dropped only after its last record has named the next one. So it is the earliest
    segment. Two coordinators may have created segments with the same number. The earlier
    coordinator was deposed before its own was named, so it is the later coordinator's.
    """
    found = [log for name in names if (log := parse(name)) is not None]
    earliest = min((log.segment for log in found), default=None)
    return max((log for log in found if log.segment == earliest), default=None)
