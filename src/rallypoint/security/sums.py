"""Which of many like records are written one by one, and how many others are only counted.

Strangers cause some records, so their number must not depend on strangers. Pure: time is an
argument, in seconds.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

K = TypeVar("K")

AT_ONCE: Final = 5
WINDOW_S: Final = 10.0
"""At most AT_ONCE records of one key are written in this time; the others are summed up."""
KEYS_MAX: Final = 1_024
"""How many keys are known at once. What comes under more keys is summed up together."""


class Sums(Generic[K]):
    """The records of the present windows, by key. `others`: the key of those that have no room."""

    def __init__(self, others: K, keys_max: int = KEYS_MAX) -> None:
        self._others = others
        self._keys_max = keys_max
        self._windows: dict[K, tuple[float, int]] = {}
        """When the window of a key ends, and how many records came in it. The oldest come first."""

    def __len__(self) -> int:
        return len(self._windows)

    def admits(self, key: K, now_s: float) -> bool:
        """Count a record. Whether it is to be written."""
        if key not in self._windows and len(self._windows) >= self._keys_max:
            key = self._others
        ends_s, count = self._windows.get(key, (now_s + WINDOW_S, 0))
        self._windows[key] = ends_s, count + 1
        return count < AT_ONCE and key != self._others

    def over(self, now_s: float) -> list[tuple[K, int]]:
        """Forget the windows that have ended. Returns how many records of each were not written."""
        found: list[tuple[K, int]] = []
        while self._windows:
            key = next(iter(self._windows))
            ends_s, count = self._windows[key]
            if ends_s > now_s:
                break
            del self._windows[key]
            left = count if key == self._others else count - AT_ONCE
            if left > 0:
                found.append((key, left))
        return found

    def ends_s(self) -> float | None:
        """When the first window ends; None if there is none."""
        return next((ends_s for ends_s, _ in self._windows.values()), None)
