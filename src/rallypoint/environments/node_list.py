"""Node lists as Slurm and Open MPI write them: `n[01-16,20],login`. Pure.

    list   = {separator} part {separator {separator} part} {separator}
    part   = {text | "[" [WIDTH ":"] range {"," range} "]"}
    range  = NUMBER ["-" NUMBER]

A separator is a comma or a space: Slurm reads `n1, n2,` too. A number that begins with zeros has a
fixed width. Open MPI writes the width before the ranges. A part with several brackets has all
combinations in Slurm's order: the last bracket changes first, then the first, the second, and so
on.

Sources: Slurm's man page of scontrol (show hostnames) and src/common/hostlist.c; Open MPI 4,
orte/util/regex.
"""

from __future__ import annotations

import functools
import itertools
import re
from typing import Final

HOSTS_MAX: Final = 100_000
_TEXT_MAX: Final = 1_000_000
_SEPARATORS: Final = ", \t\n"
_TEXT: Final = re.compile(r"[A-Za-z0-9_.-]*")
_PIECE: Final = re.compile(r"([^\[\]]*)(?:\[([^\[\]]*)\])?")
_RANGE: Final = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")
_WIDTH: Final = re.compile(r"([0-9]{1,2}):(.*)", re.DOTALL)


@functools.lru_cache(maxsize=16)
def expand(text: str) -> tuple[str, ...]:
    """The names of the hosts in their order, each once: a host that is listed twice is one place.

    Raises ValueError, with a sentence that can follow the list, if this is no list of hosts, or if
    it has more than HOSTS_MAX of them.
    """
    if len(text) > _TEXT_MAX:
        raise ValueError(f"has more than {_TEXT_MAX} characters")
    parts = [each for each in _parts(text) if each]
    if not parts:
        raise ValueError("has no name")
    hosts: list[str] = []
    for part in parts:
        hosts += _expanded(part, HOSTS_MAX - len(hosts))
    return tuple(dict.fromkeys(hosts))


def _parts(text: str) -> list[str]:
    """The text, split at the separators that are outside of brackets; some may be empty."""
    parts, start, is_inside = [], 0, False
    for at, each in enumerate(text):
        match each:
            case "[" if is_inside:
                raise ValueError("has a bracket within brackets")
            case "]" if not is_inside:
                raise ValueError("closes a bracket that is not open")
            case "[" | "]":
                is_inside = each == "["
            case _ if each in _SEPARATORS and not is_inside:
                parts.append(text[start:at])
                start = at + 1
    if is_inside:
        raise ValueError("has a bracket that is not closed")
    return [*parts, text[start:]]


def _expanded(part: str, most: int) -> list[str]:
    form, choices = "", []
    count = 1
    for found in _PIECE.finditer(part):
        literal, numbers = found[1], found[2]
        if _TEXT.fullmatch(literal) is None:
            raise ValueError(f"has {literal!a}, which is not part of a host name")
        form += literal
        if numbers is not None:
            form += "%s"
            choices.append(_numbers(numbers, most // count))
            count *= len(choices[-1])
    if count > most:
        raise ValueError(f"has more than {HOSTS_MAX} hosts")
    # product() changes its last argument first.
    slowest_first = [*reversed(choices[:-1]), *choices[-1:]]
    return [form % (*reversed(each[:-1]), *each[-1:]) for each in itertools.product(*slowest_first)]


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
