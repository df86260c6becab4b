"""Programs of jobs. Each runs as a worker; the tests read what it prints.

What must not be here: anything that a test asserts.
"""

from __future__ import annotations

STEADY = """
import os, signal, time
from pathlib import Path
import rallypoint

name = f"worker {os.environ['GROUP_RANK']}"

def say(*words):
    # In one write: mpirun does not keep lines apart.
    print(" ".join(map(str, (name, *words))) + "\\n", end="", flush=True)

signal.signal(signal.SIGTERM, lambda *_: say("has TERM"))
with rallypoint.join() as run:
    for world in run.worlds():
        world.barrier("met")
        say(f"of {world.size} works in round {world.number} of {run.run_id}")
        while not world.change and not Path("finish").exists():
            time.sleep(0.05)
        if world.change:
            say("sees", world.change)
        else:
            run.close("finished")
say("has left")
"""
"""Works until there is a file `finish` where the job was submitted."""
