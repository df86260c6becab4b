"""The names of registers and logs: the one place that says how a ledger is laid out (format 2).

    coordinators/<process>          a coordinator process's lease
    runs/<run>                      the head of a run
    chunks/<run>/<term>-<serial>    a part of the member table of a run's round
    stores/<run>/<number>.<term>.<segment>.<writer>
                                    a segment of the log of the store of a round of that term; the
                                    writer is the term of the coordinator that made it
    floor                           the highest term and number of all runs that were removed

<run> is the quoted id of the run. It holds no `/`, so that a list of the names that begin with
`stores/<run>/` never holds those of another run. The head of a run holds its id as it is.
"""

from __future__ import annotations

import hashlib
import urllib.parse
from typing import Final

FLOOR: Final = "floor"
COORDINATORS: Final = "coordinators/"
"""What the names of all leases begin with."""
RUNS: Final = "runs/"
"""What the names of all heads of runs begin with."""
LOGS: Final = "stores/"
"""What the names of all logs begin with."""
QUOTED_BYTES_MAX: Final = 160
"""A quoted id that is longer is cut, and its hash is added: every engine takes such a name."""
_CUT_BYTES: Final = 96
_DIGITS_MAX: Final = 19
"""Of a 64-bit number. Python refuses to read one of more than 4,300."""


def lease_key(process: str) -> str:
    """The register of a coordinator process's lease."""
    return f"{COORDINATORS}{process}"


def run_key(run_id: str) -> str:
    """The register of a run's head."""
    return f"{RUNS}{quoted(run_id)}"


def chunk_prefix(run_id: str) -> str:
    """What the names of all chunks of a run's member tables begin with."""
    return f"chunks/{quoted(run_id)}/"


def chunk_key(run_id: str, term: int, serial: int) -> str:
    """The register of a chunk: the owner of `term` wrote it as its `serial`th. Never used again."""
    return f"{chunk_prefix(run_id)}{term}-{serial}"


def chunk_of(key: str) -> tuple[int, int] | None:
    """The term and the serial number in a chunk's name; None if it is no such name."""
    term, dash, serial = key.rpartition("/")[2].partition("-")
    is_one = dash and _is_number(term) and _is_number(serial)
    return (int(term), int(serial)) if is_one else None


def log_prefix(run_id: str) -> str:
    """What the names of all logs of a run begin with."""
    return f"{LOGS}{quoted(run_id)}/"


def run_key_of_log(name: str) -> str:
    """The register of the run that a log is of, whether or not it is there."""
    return RUNS + name.removeprefix(LOGS).partition("/")[0]


def round_prefix(run_id: str, number: int, term: int) -> str:
    """What the names of all segments of the log of one round begin with."""
    return f"{log_prefix(run_id)}{number}.{term}."


def log_name(run_id: str, number: int, term: int, segment: int, writer: int) -> str:
    """One segment of the log of the store of one round. Never used again."""
    return f"{round_prefix(run_id, number, term)}{segment}.{writer}"


def log_of(name: str) -> tuple[int, int, int, int] | None:
    """The number, term, segment and writer in a log's name; None if it is no such name.

    Format 1 had one log a round, named by its number alone: as of term 0.
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
    """Whether this is a number as names have them: other writers may have put anything there."""
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX


def quoted(run_id: str) -> str:
    """A run's id as a part of a name: readable where it can be, and different for different ids."""
    whole = urllib.parse.quote(run_id, safe="")
    if len(whole) <= QUOTED_BYTES_MAX:
        return whole
    # Longer than any that is not cut, so that no other id can be given this name.
    return f"{whole[:_CUT_BYTES]}~{hashlib.sha256(run_id.encode()).hexdigest()}"
