"""Python runs this at its start, in each process of chaos: the wall clock of its host.

The file CHAOS_CLOCK has the seconds by which the host's wall clock is wrong. It may change at any
time, as when somebody sets the clock. Monotonic clocks differ by time namespaces.
"""

import os
import time

_path = os.environ.get("CHAOS_CLOCK", "")
_true = time.time


def _wrong() -> float:
    try:
        with open(_path) as file:  # noqa: PTH123 - pathlib would be loaded by every process
            return _true() + float(file.read() or 0)
    except (OSError, ValueError):
        return _true()


if _path:
    time.time = _wrong
