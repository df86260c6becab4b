"""Which of many like records are written one by one, and how many others are only counted.

Strangers cause some records, so their number must not depend on strangers. Pure: time is an
argument, in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

K = TypeVar("K")

AT_ONCE: Final = 5
WINDOW_S: Final = 10.0
"""At most AT_ONCE records of one key are written in this time; the others are summed up."""
KEYS_MAX: Final = 1_024
"""How many keys are known at once. What comes under more keys is summed up under coarser ones."""


class Sums(Generic[K]):
    """The records of the present windows, by key.

    `coarser`: what takes the place of a key that has no room, the finest first. Each has room for
    `keys_max` more keys, and the last one always has room, so it must make few keys.
    """

    def __init__(self, *coarser: Callable[[K], K], keys_max: int = KEYS_MAX) -> None:
        self._coarser = coarser
        self._keys_max = keys_max
        self._windows: dict[K, tuple[float, int]] = {}
        """When the window of a key ends, and how many records came in it. The oldest come first."""

    def __len__(self) -> int:
        return len(self._windows)

    def admits(self, key: K, now_s: float) -> bool:
        """Count a record. Whether it is to be written."""
        key = self._known_as(key)
        ends_s, count = self._windows.get(key, (now_s + WINDOW_S, 0))
        self._windows[key] = ends_s, count + 1
        return count < AT_ONCE

    def over(self, now_s: float) -> list[tuple[K, int]]:
        """Forget the windows that have ended. Returns how many records of each were not written."""
        found: list[tuple[K, int]] = []
        while self._windows:
            key = next(iter(self._windows))
            ends_s, count = self._windows[key]
            if ends_s > now_s:
                break
            del self._windows[key]
            if count > AT_ONCE:
                found.append((key, count - AT_ONCE))
        return found

    def ends_s(self) -> float | None:
        """When the first window ends; None if there is none."""
        return next((ends_s for ends_s, _ in self._windows.values()), None)

    def _known_as(self, key: K) -> K:
        """The key under which a record counts: itself, or a coarser one if there is no room."""
        found, room = key, self._keys_max
        for coarser in self._coarser:
            if found in self._windows or len(self._windows) < room:
                break
            found, room = coarser(key), room + self._keys_max
        return found
