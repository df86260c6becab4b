"""Programs of jobs. Each runs as a worker; the tests read what it prints.

What must not be here: anything that a test asserts.
"""

from __future__ import annotations

STEADY = """
import os, signal, time
from pathlib import Path
import rallypoint

name = f"worker {os.environ['GROUP_RANK']}"
signal.signal(signal.SIGTERM, lambda *_: print(name, "has TERM", flush=True))
with rallypoint.join() as run:
    for world in run.worlds():
        world.barrier("met")
        print(name, f"of {world.size} works in round {world.number} of {run.run_id}", flush=True)
        while not world.change and not Path("finish").exists():
            time.sleep(0.05)
        if world.change:
            print(name, "sees", world.change, flush=True)
        else:
            run.close("finished")
print(name, "has left", flush=True)
"""
"""Works until there is a file `finish` where the job was submitted."""
