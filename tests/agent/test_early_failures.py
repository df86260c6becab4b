"""A warm worker whose program has failed: its agent knows before the process has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent.processes import SRC, Machine, alive, program_with

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != "linux", reason="warm starts need Linux"),
]

# In round 1, its process ends only when the file GO is there. Python destroys what a module has
# after all that was registered with atexit. A signal must not cut this short.
SLOW_END = """
class End:
    def __init__(self):
        import time
        self.sleep, self.access, self.mkdir = time.sleep, os.access, os.mkdir

    def __del__(self):
        while not self.access("go", 0):
            self.sleep(0.01)
        self.mkdir("ended")

end = End() if os.environ["RALLYPOINT_ROUND"] == "1" else None
"""


def test_the_others_learn_of_a_failure_while_its_process_ends(machine: Machine) -> None:
    """Nothing of its end is lost, and the next round waits for it (R13)."""
    program = machine.program(program_with(SLOW_END), "slow_end.py")
    # More than the deadline of a test, so that the process is not killed instead.
    options = ("--max-restarts", "1", "--set", "regroup_stop_timeout=10m")
    agents = {
        name: machine.agent(name, "--preload=fractions", *options, nnodes="2", program=program)
        for name in ("a", "b")
    }
    workers = {name: agent.worker(1) for name, agent in agents.items()}
    failed = workers["a"].pid
    os.kill(failed, signal.SIGUSR1)
    agents["b"].line("bad batch in shard 7")
    assert alive(failed)
    assert "worker 2 " not in agents["a"].text
    assert not (machine.directory / "ended").exists()
    (machine.directory / "go").touch()
    for agent in agents.values():
        agent.rewind()
        os.kill(agent.worker(2).pid, signal.SIGUSR2)
    assert (machine.directory / "ended").exists()
    for agent in agents.values():
        agent.ends(0)
    assert agents["a"].text.count(f"[a] round 1: rank {workers['a'].rank} exited") == 1


ENDS_WELL = """
import atexit, os, sys
def end(*_):
    os._exit(0)
{}
raise ValueError("not the end")
"""


A_CHILD = "if os.fork():\n    os.wait()\n    sys.exit()"


@pytest.mark.parametrize("how", ["sys.excepthook = end", "atexit.register(end)", A_CHILD])
def test_a_program_that_ends_well_after_its_exception_has_not_failed(
    machine: Machine, how: str
) -> None:
    machine.program(ENDS_WELL.format(how), "ends_well.py")
    agent = machine.command("run", "--standalone", "--preload=fractions", "ends_well.py")
    assert "workers start warm" in agent.ends(0)


FAILED: dict[str, tuple[str, int]] = {
    "raise ValueError('x')": ("True", 1),
    "def f(): 1 / 0\nf()": ("True", 1),
    "raise BaseException('x')": ("True", 1),
    "pass": ("False", 0),
    "raise SystemExit(3)": ("False", 3),
    "raise KeyboardInterrupt": ("False", -signal.SIGINT),
    "os.fork() or exit(); os.wait()": ("False", 0),
    "console = code.InteractiveConsole()\nconsole.runsource('1 / 0')": ("False", 0),
    # C code prints an error, and goes on.
    "ctypes.pythonapi.PyRun_SimpleString(b'1 / 0')": ("False", 0),
    "call = ctypes.PYFUNCTYPE(None)(lambda: 1 / 0)\ncall()": ("False", 0),
    "threading.Thread(target=lambda: 1 / 0).start()": ("False", 0),
}


AS_MODULE = ("raise ValueError('x')", "pass")


@pytest.mark.parametrize(
    ("program", "is_module"),
    [*((each, False) for each in FAILED), *((each, True) for each in AS_MODULE)],
)
def test_an_exception_that_has_left_the_program_is_known_at_its_end(
    tmp_path: Path, program: str, is_module: bool
) -> None:
    first = """
import atexit, code, ctypes, os, threading
from rallypoint.launch.preload_process import has_failed

own = os.getpid()
atexit.register(lambda: os.getpid() == own and print("\\n", has_failed()))
"""
    (tmp_path / "program.py").write_text(first + program)
    what = ["-m", "program"] if is_module else ["program.py"]
    done = subprocess.run(
        [sys.executable, *what],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.split()[-1], done.returncode) == FAILED[program], done.stderr
