"""Makes text fit to be shown: control characters are escaped, and long texts and lists are cut.

Quick to import: it imports nothing else of `core/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def escaped(text: str, *, lines: bool = False) -> str:
    """The text with each control character written as a Python escape.

    `lines` True keeps line breaks. Otherwise the result is always one line.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or (lines and each == "\n") else ascii(each)[1:-1]
        for each in text
    )


def shortened(text: str, most: int) -> str:
    """The text, or its beginning and three dots if it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def some(names: Sequence[str], count: int = 0) -> str:
    """Names in words, with the number of those left out: 'a, b and 3 more'."""
    total = max(count, len(names))
    if not names:
        return counted(total, "node") if total else "a node"
    shown = ", ".join(names)
    return f"{shown} and {total - len(names)} more" if total > len(names) else shown


def counted(number: int, noun: str) -> str:
    """ "1 node", "2 nodes"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def spans(numbers: Iterable[int]) -> str:
    """Numbers in order, in few characters: 0-3,7."""
    found: list[list[int]] = []
    for each in numbers:
        if found and found[-1][-1] == each - 1:
            found[-1][-1] = each
        else:
            found.append([each, each])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def are_ready(ready: int, minimum: int, maximum: int) -> str:
    """How many of a round's nodes are ready: "1 of 3 nodes ready", "4 nodes ready for 3 places"."""
    if ready > maximum:
        return f"{counted(ready, 'node')} ready for {counted(maximum, 'place')}"
    if minimum == maximum:
        return f"{ready} of {counted(minimum, 'node')} ready"
    if ready < minimum:
        return f"{ready} of at least {counted(minimum, 'node')} ready (at most {maximum})"
    return f"{ready} of at most {counted(maximum, 'node')} ready (at least {minimum})"


def size_of(minimum: int, maximum: int) -> str:
    """How many nodes a round may have: "3 nodes"; or as --nnodes has it, "2:4 nodes"."""
    if minimum == maximum:
        return counted(minimum, "node")
    return f"{minimum}:{maximum} nodes"
