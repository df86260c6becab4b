"""The parts of states, each kept once under a number, with what each input makes of it.

A state of a world is a tuple of such numbers. A step of the shipped code depends on nothing but its
own part and its input, so it is made once for each pair and remembered: a world with millions of
states has some thousand different coordinators and some hundred different nodes.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from rallypoint.simulation.model.canonical import digest


class Part(Protocol):
    """A part of a state that changes in place."""

    def key(self) -> bytes:
        """The name of its state."""


P = TypeVar("P", bound=Part)
M = TypeVar("M")
V = TypeVar("V")


class Parts(Generic[P, M]):
    """The states of one kind of part. `facts_of`: what the moves of a world need to know of it."""

    def __init__(self, facts_of: Callable[[P], M]) -> None:
        self.facts: list[M] = []
        self._facts_of = facts_of
        self._numbers: dict[bytes, int] = {}
        self._blobs: list[bytes] = []
        self._saved = 0

    def __len__(self) -> int:
        return len(self._blobs)

    def add(self, part: P) -> int:
        """The number of this state."""
        key = part.key()
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._blobs)
            self._blobs.append(zlib.compress(pickle.dumps(part, -1), 1))
            self.facts.append(self._facts_of(part))
        return number

    def copy(self, number: int) -> P:
        """A part in this state, to change."""
        part: P = pickle.loads(zlib.decompress(self._blobs[number]))  # noqa: S301 - our own bytes
        return part

    def added(self) -> list[tuple[bytes, bytes]]:
        """What was added since the last call."""
        first, self._saved = self._saved, len(self._blobs)
        return list(zip(list(self._numbers)[first:], self._blobs[first:], strict=True))

    def add_saved(self, added: list[tuple[bytes, bytes]]) -> None:
        """Add what an earlier call of `added` returned, in the same order."""
        for key, blob in added:
            if key not in self._numbers:
                self._numbers[key] = len(self._blobs)
                self._blobs.append(blob)
                self.facts.append(self._facts_of(self.copy(self._numbers[key])))
        self._saved = len(self._blobs)


class Values(Generic[V]):
    """Values that never change, each under a number, equal ones under one. Numbers begin at 1."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self.all: list[Any] = [None]
        self._saved = 1

    def number(self, value: V) -> int:
        """The number of this value."""
        key = digest((type(value).__name__, value))
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.all)
            self.all.append(value)
        return number

    def added(self) -> list[V]:
        """What was added since the last call."""
        first, self._saved = self._saved, len(self.all)
        return self.all[first:]

    def add_saved(self, added: list[V]) -> None:
        """Add what an earlier call of `added` returned, in the same order."""
        for value in added:
            self.number(value)
        self._saved = len(self.all)
