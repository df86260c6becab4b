"""A small agent for test_guard.py: starts two workers with children, prints pids, waits.

The workers print every pid of theirs, and the agent its own and its guard's: the test kills the
agent and then looks for processes that are left.
"""

from __future__ import annotations

import asyncio
import os
import sys

from rallypoint.launch.guard import Guard
from rallypoint.launch.logs import LogPump
from rallypoint.launch.worker_processes import WorkerExit, WorkerGroup, WorkerSpec

# Each child says its pid when it is as it should be; the stopped one is stopped by its parent.
WORKER = """
import os, signal, subprocess, sys, time
def child(code, **more):
    code = "import os, signal, sys, time\\n" + code + "\\nprint('pid', os.getpid(), flush=True)\\n"
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", code + "time.sleep(600)"], **more)
print("pid", os.getpid(), flush=True)
child("signal.signal(signal.SIGTERM, signal.SIG_IGN)")
child("", process_group=0)
stopped = child("", stdout=subprocess.PIPE)
print(stopped.stdout.readline().decode(), end="", flush=True)
os.kill(stopped.pid, signal.SIGSTOP)
os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)
print("ready", flush=True)
time.sleep(600)
"""


async def main() -> None:
    guard = Guard()
    guard.start()
    specs = [
        WorkerSpec(
            argv=(sys.executable, "-I", "-S", "-c", WORKER),
            env=dict(os.environ),
            cwd=None,
            local_rank=local_rank,
            rank=local_rank,
        )
        for local_rank in range(2)
    ]

    def exits(exit: WorkerExit) -> None:
        print("exit", exit.pid, flush=True)

    group = WorkerGroup(specs, output=LogPump(), exits=exits, guard=guard)
    await group.start()
    print("guard", guard.pid, flush=True)
    print("agent", os.getpid(), flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
