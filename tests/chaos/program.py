"""A program of ours as chaos starts it. It does what it always does, and

- keeps a second name of each version of a register in files (attic.py), in the folder CHAOS_KEPT;
- has a planted bug (tests/simulation/planted), if CHAOS_BUG names one, to see that chaos finds it.

    python program.py SCRIPT ARGUMENTS...
    python program.py -c CODE ARGUMENTS...
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import time
from pathlib import Path

from rallypoint.ledger.file.file_system import PosixFileSystem
from rallypoint.ledger.file.index import Kind


def keep_versions(where: Path) -> None:
    """A segment of old versions is removed as soon as the next one begins."""
    link = PosixFileSystem.link

    def kept(self: PosixFileSystem, path: Path, name: Path) -> None:
        link(self, path, name)
        linked_ns = time.time_ns()
        if name.parents[2].name == Kind.REGISTERS:
            with contextlib.suppress(OSError):  # the disk is full, and then somebody looks, too
                link(self, path, where / f"{name.parents[1].name}~{name.name}~{linked_ns}")

    vars_of: object = PosixFileSystem
    setattr(vars_of, "link", kept)  # noqa: B010 - a method is replaced on purpose


def with_bug(name: str) -> contextlib.AbstractContextManager[object]:
    """The bug while it is planted. Loaded only then: it loads the simulator."""
    if not name:
        return contextlib.nullcontext()
    from tests.simulation.planted import BUGS
    from tests.simulation.planted.planting import planted

    return planted(BUGS[name])


if __name__ == "__main__":
    if "CHAOS_KEPT" in os.environ:
        keep_versions(Path(os.environ["CHAOS_KEPT"]))
    what = sys.argv[1]
    del sys.argv[0]
    with with_bug(os.environ.get("CHAOS_BUG", "")):
        if what == "-c":
            code = sys.argv.pop(1)
            exec(code, {"__name__": "__main__"})  # noqa: S102 - the code is this test's own
        else:
            runpy.run_path(what, run_name="__main__")
