"""A program with a planted bug (tests/simulation/planted), to see that chaos finds it.

python with_bug.py NAME SCRIPT ARGUMENTS...
python with_bug.py NAME -c CODE ARGUMENTS...
"""

from __future__ import annotations

import runpy
import sys

from tests.simulation.planted import BUGS
from tests.simulation.planted.planting import planted

if __name__ == "__main__":
    name, what = sys.argv[1:3]
    del sys.argv[:2]
    with planted(BUGS[name]):
        if what == "-c":
            code = sys.argv.pop(1)
            exec(code, {"__name__": "__main__"})  # noqa: S102 - the code is this test's own
        else:
            runpy.run_path(what, run_name="__main__")
