"""The error of a broken rule, with the steps that led to it as lines of text.

The checkers share this file. It must not contain a rule.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from rallypoint.core import effects as do
from rallypoint.core import events as on
from rallypoint.core.values import NAMES_SHOWN_MAX, FrozenStruct, NodeId, RoundRecord

HISTORY_LENGTH: Final = 20
"""How many steps a violation shows."""


class InvariantViolation(AssertionError):
    """A rule of the protocol was broken. The text names it, with the steps before, oldest first."""

    def __init__(self, rule: str, problem: str, history: Sequence[str] = ()) -> None:
        self.rule = rule
        self.problem = problem
        self.history = tuple(history)
        super().__init__("\n".join([f"{rule}: {problem}", *self.history]))


def step_line(event: on.Event, now_s: float, effects: Sequence[do.Effect]) -> str:
    """One step: its time, its event and its effects."""
    return f"{now_s:10.3f} s  {short(event)} -> {', '.join(map(short, effects)) or 'nothing'}"


def short(value: object) -> str:
    """A value in short: without fields that have their default, a round without its table."""
    match value:
        case RoundRecord(head=head, members=members):
            names = [row.name for row in members[:NAMES_SHOWN_MAX]]
            return f"round {head.number} of {head.nodes}: {' '.join(names)}"
        case NodeId(name=name, incarnation=incarnation):
            return f"{name}/{incarnation}"
        case FrozenStruct():
            fields = ", ".join(short(each) for each in _told(value))
            return f"{type(value).__name__}({fields})"
        case str():
            return str(value)
    return repr(value)


@functools.cache
def _fields_of(kind: type[FrozenStruct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """They are read from annotations each time, which takes longer than the rest of a check."""
    return msgspec.structs.fields(kind)


def _told(value: FrozenStruct) -> Iterator[object]:
    for field in _fields_of(type(value)):
        each = getattr(value, field.name)
        if each != field.default:
            yield each
