"""What shows that a worker advances, without any code in the program: its output, or a file.

The output is looked at in the thread that reads it (logs.py). Regular expressions are the user's,
and may need years for one line. So they are searched by the package regex: its searches have a time
limit, and do not keep Python's lock.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any, Final

from rallypoint.settings import HangRule

LINE_BYTES_MAX: Final = 8_192
"""Only the start of a longer line is looked at."""
SEARCH_S: Final = 0.1
"""How many seconds one line may take."""
SLOW_MAX: Final = 3
"""How many lines may take longer. All workers of a node wait meanwhile, if they write much."""
LINES_KEPT: Final = 3
LINE_SHOWN: Final = 120
_LINE_END: Final = re.compile(rb"[\r\n]+")


class OutputReader:
    """Reads the output of one worker of one round, stream by stream. For one thread.

    `lines_seen`: how many lines there were. `matched`: how many matched. `went_back`: the first
    pair of a step and the one before it that was higher. `too_slow`: the last of the lines for
    which the pattern was given up. Since then any output is progress: nothing that works may end.
    """

    def __init__(self, rule: HangRule) -> None:
        self._is_any = rule.is_output
        self._pattern: Any = _compiled(rule.pattern) if rule.pattern else None
        self._slow = 0
        self._held: dict[int, bytes] = {}
        self.step: int | None = None
        self.lines_seen = 0
        self.matched = 0
        self.went_back: tuple[int, int] | None = None
        self.not_a_number = ""
        self.too_slow = ""
        self.last_lines: deque[str] = deque(maxlen=LINES_KEPT)

    def feed(self, stream: int, data: bytes) -> bool:
        """More output has come. Returns whether the worker has advanced."""
        if self._is_any or self.too_slow:
            return bool(data)
        if self._pattern is None:
            return False
        *lines, rest = _LINE_END.split(self._held.get(stream, b"") + data)
        self._held[stream] = rest[:LINE_BYTES_MAX]
        has_advanced = False
        for line in lines:
            has_advanced |= self._look(line[:LINE_BYTES_MAX])
        return has_advanced

    def _look(self, line: bytes) -> bool:
        if self.too_slow:
            return True
        text = line.decode(errors="replace")
        if not text.strip():
            return False
        self.lines_seen += 1
        try:
            found = self._pattern.search(text, timeout=SEARCH_S, concurrent=True)
        except TimeoutError:
            return self._is_slow(text)
        if found is None:
            if not self.matched:
                self.last_lines.append(text[:LINE_SHOWN])
            return False
        self.matched += 1
        if not self._pattern.groups or found[1] is None:
            return True
        step = _number(found[1])
        if step is None:
            self.not_a_number = self.not_a_number or found[1][:LINE_SHOWN]
            return False
        last = self.step
        if last is not None and step <= last:
            if step < last and self.went_back is None:
                self.went_back = (step, last)
            return False
        self.step = step
        return True

    def _is_slow(self, text: str) -> bool:
        self._slow += 1
        if self._slow < SLOW_MAX:
            return False
        self.too_slow = text[:LINE_SHOWN]
        return True


def _compiled(pattern: str) -> Any:
    import regex  # Takes 0.1 s, and most jobs have no pattern.

    return regex.compile(pattern)


def _number(text: str) -> int | None:
    """A step as programs write it: 1200, 1,200 or 1200.0."""
    plain = text.strip().replace(",", "").replace("_", "")
    try:
        return int(plain) if len(plain) <= 20 else None
    except ValueError:
        pass
    try:
        return int(float(plain)) if len(plain) <= 40 else None
    except (ValueError, OverflowError):
        return None
