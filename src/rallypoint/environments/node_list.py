"""Node lists as Slurm and Open MPI write them: `n[01-16,20],login`. Pure.

    list   = part {"," part}
    part   = {text | "[" [WIDTH ":"] range {"," range} "]"}
    range  = NUMBER ["-" NUMBER]

A number that begins with zeros has a fixed width. Open MPI writes the width before the ranges.
A part with several brackets has all combinations, the last bracket first to change.

Sources: Slurm's man page of scontrol (show hostlist); Open MPI 4, orte/util/regex.
"""

from __future__ import annotations

import functools
import itertools
import re
from typing import Final

HOSTS_MAX: Final = 100_000
_TEXT_MAX: Final = 1_000_000
_TEXT: Final = re.compile(r"[A-Za-z0-9_.-]*")
_PIECE: Final = re.compile(r"([^\[\]]*)(?:\[([^\[\]]*)\])?")
_RANGE: Final = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_WIDTH: Final = re.compile(r"([0-9]{1,2}):(.*)", re.DOTALL)


@functools.lru_cache(maxsize=16)
def expand(text: str) -> tuple[str, ...]:
    """The names of the hosts in their order, each once.

    Raises ValueError, with a sentence that can follow the list, if this is no list of hosts, or if
    it has more than HOSTS_MAX of them.
    """
    if len(text) > _TEXT_MAX:
        raise ValueError(f"has more than {_TEXT_MAX} characters")
    hosts: list[str] = []
    for part in _parts(text):
        hosts += _expanded(part, HOSTS_MAX - len(hosts))
    return tuple(dict.fromkeys(hosts))


def _parts(text: str) -> list[str]:
    """The text, split at the commas that are outside of brackets."""
    parts, start, is_inside = [], 0, False
    for at, each in enumerate(text):
        match each:
            case "[" if is_inside:
                raise ValueError("has a bracket within brackets")
            case "]" if not is_inside:
                raise ValueError("closes a bracket that is not open")
            case "[" | "]":
                is_inside = each == "["
            case "," if not is_inside:
                parts.append(text[start:at])
                start = at + 1
    if is_inside:
        raise ValueError("has a bracket that is not closed")
    return [*parts, text[start:]]


def _expanded(part: str, most: int) -> list[str]:
    if not part:
        raise ValueError("has an empty name")
    choices: list[list[str]] = []
    count = 1
    for found in _PIECE.finditer(part):
        literal, numbers = found[1], found[2]
        if _TEXT.fullmatch(literal) is None:
            raise ValueError(f"has {literal!a}, which is not part of a host name")
        choices.append([literal])
        if numbers is not None:
            choices.append(_numbers(numbers, most // count))
            count *= len(choices[-1])
    if count > most:
        raise ValueError(f"has more than {HOSTS_MAX} hosts")
    return ["".join(each) for each in itertools.product(*choices)]


def _numbers(text: str, most: int) -> list[str]:
    """The numbers of one bracket, as text. `most`: how many it may have."""
    fixed = _WIDTH.fullmatch(text)
    width = int(fixed[1]) if fixed else 0
    numbers: list[str] = []
    for each in (fixed[2] if fixed else text).split(","):
        found = _RANGE.fullmatch(each)
        if found is None:
            raise ValueError(f"has {each!a} in brackets, which is not a number or a range")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise ValueError(f"has the range {each}, which runs backwards")
        if len(numbers) + last - first >= most:
            raise ValueError(f"has more than {HOSTS_MAX} hosts")
        digits = width or len(found[1])
        numbers += [str(number).zfill(digits) for number in range(first, last + 1)]
    return numbers
