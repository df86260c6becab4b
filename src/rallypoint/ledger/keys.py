"""The names of registers, logs and records: the layout of every ledger (format 2).

    coordinators/<process>          a coordinator process's lease
    runs/<run>                      the head of a run
    chunks/<run>/<term>-<serial>    a part of the member table of a run's round
    stores/<run>/<number>.<term>.<segment>.<writer>
                                    a segment of the log of the store of a round of that term; the
                                    writer is the term of the coordinator that made it
    events/<process>/<segment>      a segment of the events of that coordinator's runs: a log
    floor                           the highest term and number of all runs that were removed
    mistake                         a coordinator was alive when its lease was revoked early
    revoked                         the ids of tokens that count no more

<run> is the quoted id of the run. It has no `/`, so a list of the names that begin with
`stores/<run>/` never includes another run's. The head of a run contains the id itself.

This file must not use the contents of registers and records.
"""

from __future__ import annotations

import hashlib
import urllib.parse
from typing import Final

FLOOR: Final = "floor"
MISTAKE: Final = "mistake"
REVOKED: Final = "revoked"
COORDINATORS: Final = "coordinators/"
"""The beginning of the names of all leases."""
RUNS: Final = "runs/"
"""The beginning of the names of all heads of runs."""
LOGS: Final = "stores/"
"""The beginning of the names of all logs."""
EVENTS: Final = "events/"
"""The beginning of the names of all logs of events."""
QUOTED_BYTES_MAX: Final = 160
"""A longer quoted id is cut, and its hash added, so that every engine accepts the name."""
_CUT_BYTES: Final = 96
_DIGITS_MAX: Final = 19
"""The digits of a 64-bit number. (Python refuses to convert more than 4,300.)"""


def lease_key(process: str) -> str:
    """The register of a coordinator process's lease."""
    return f"{COORDINATORS}{process}"


def run_key(run_id: str) -> str:
    """The register of a run's head."""
    return f"{RUNS}{quoted(run_id)}"


def chunk_prefix(run_id: str) -> str:
    """The beginning of the names of all chunks of a run's member tables."""
    return f"chunks/{quoted(run_id)}/"


def chunk_key(run_id: str, term: int, serial: int) -> str:
    """The register of a chunk: the `serial`th that the owner of `term` wrote. Used only once."""
    return f"{chunk_prefix(run_id)}{term}-{serial}"


def chunk_of(key: str) -> tuple[int, int] | None:
    """The term and serial number in the name of a chunk; None if this is no such name."""
    term, dash, serial = key.rpartition("/")[2].partition("-")
    is_one = dash and _is_number(term) and _is_number(serial)
    return (int(term), int(serial)) if is_one else None


def log_prefix(run_id: str) -> str:
    """The beginning of the names of all logs of a run."""
    return f"{LOGS}{quoted(run_id)}/"


def run_key_of_log(name: str) -> str:
    """The register of the head of the run whose log this is; it may not exist."""
    return RUNS + name.removeprefix(LOGS).partition("/")[0]


def round_prefix(run_id: str, number: int, term: int) -> str:
    """The beginning of the names of all segments of one round's log."""
    return f"{log_prefix(run_id)}{number}.{term}."


def log_name(run_id: str, number: int, term: int, segment: int, writer: int) -> str:
    """The name of one segment of one round's log. Used only once."""
    return f"{round_prefix(run_id, number, term)}{segment}.{writer}"


def log_of(name: str) -> tuple[int, int, int, int] | None:
    """The number, term, segment and writer in the name of a log; None if this is no such name.

    Format 1 had one log for each round, named only by the number of the round. It counts as a log
    of term 0.
    """
    parts = name.rpartition("/")[2].split(".")
    if not all(map(_is_number, parts)):
        return None
    match [int(part) for part in parts]:
        case [number]:
            return number, 0, 0, 0
        case [number, term, segment, writer]:
            return number, term, segment, writer
        case _:
            return None


def event_log_prefix(process: str) -> str:
    """The beginning of the names of all segments of a coordinator's events."""
    return f"{EVENTS}{process}/"


def event_log_name(process: str, segment: int) -> str:
    """A segment of a coordinator's events. Used only once."""
    return f"{event_log_prefix(process)}{segment}"


def process_of_events(name: str) -> str:
    """The process in the name of a segment of events."""
    return name.removeprefix(EVENTS).partition("/")[0]


def segment_of(name: str) -> int:
    """The number in the name of a segment of events; -1 if this is no such name."""
    number = name.rpartition("/")[2]
    return int(number) if _is_number(number) else -1


def group_of(name: str) -> str:
    """The part of a name that all names of one run share. An engine may keep them together.

    It is <run>, or <process> in a lease's name; a name without a slash is its own group.
    """
    return name.split("/", 2)[1] if "/" in name else name


def group_of_prefix(prefix: str) -> str | None:
    """The group of all names that begin with `prefix`; None if it does not say which."""
    parts = prefix.split("/", 2)
    return parts[1] if len(parts) > 2 else None


def record_name(index: int) -> str:
    """The name of a record within its log: 16 hexadecimal digits, so that names sort as indexes."""
    return f"{index:016x}"


def is_record_name(name: str) -> bool:
    """Whether this can be the name of a record: another program may have put files there."""
    return len(name) == 16 and all(digit in "0123456789abcdef" for digit in name)


def _is_number(text: str) -> bool:
    """Whether this can be a number in a name: another program may have put anything there."""
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX


def quoted(run_id: str) -> str:
    """A run's id as a part of a name: readable where possible, and different for each id."""
    whole = urllib.parse.quote(run_id, safe="")
    if len(whole) <= QUOTED_BYTES_MAX:
        return whole
    # Longer than any quoted id that is not cut, so that no other id has this name.
    return f"{whole[:_CUT_BYTES]}~{hashlib.sha256(run_id.encode()).hexdigest()}"
