"""`rallypoint run --preload` with real agents: named, learned, refused, and after a death."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.agent.processes import Machine, alive, program_with

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != "linux", reason="warm starts need Linux"),
]

# Says whether the module was there before the program asked for it.
SAYS = program_with("print('has', 'mine' in sys.modules, 'msgspec' in sys.modules, flush=True)")
IMPORTS = SAYS.replace(
    "while True:",
    "import importlib.util, msgspec\n"
    "assert importlib.util.find_spec('pytest') is not None\n"  # It is not imported.
    "print('imported', 'pytest' in sys.modules, flush=True)\nwhile True:",
)


def test_named_modules_are_there_in_the_first_round_and_in_later_ones(machine: Machine) -> None:
    machine.program("import fractions", "mine.py")
    agent = machine.agent(
        *("a", "--preload=mine,msgspec", "--max-restarts", "2"),
        nnodes="1",
        program=machine.program(SAYS),
    )
    for number in (1, 2):
        agent.line("has True True")
        worker = agent.worker(number)
        os.kill(worker.pid, signal.SIGUSR1)
    agent.line("has True True")
    os.kill(agent.worker(3).pid, signal.SIGUSR2)
    text = agent.ends(0)
    assert text.count("workers start warm") == 1


# Rank 0 is slow to listen, and the others try once.
ONE_TRY = """
import os, socket, time, mine
port = int(os.environ["MASTER_PORT"])
if os.environ["RANK"] == "0":
    time.sleep(0.1)
    server = socket.create_server(("", port))
else:
    socket.create_connection((os.environ["MASTER_ADDR"], port)).close()
    print("reached by " + os.environ["LOCAL_RANK"] + "\\n", end="", flush=True)
time.sleep(600)
"""


def test_others_start_when_rank_0_listens(machine: Machine) -> None:
    """Who is refused fails, so that another round follows. A busy machine may need some."""
    machine.program("", "mine.py")
    agents = [
        machine.agent(
            *(name, "--preload=mine", "--nproc-per-node", "2", "--max-restarts", "9"),
            nnodes="2",
            program=machine.program(ONE_TRY),
        )
        for name in ("a", "b")
    ]
    for agent in agents:
        agent.line("reached by 1")


@pytest.mark.parametrize("by", ["the end of the round", "time"])
def test_modules_are_learned_from_the_first_round(machine: Machine, by: str) -> None:
    after = "1h" if by == "the end of the round" else "200ms"
    agent = machine.agent(
        *("a", "--preload", "--set", f"preload_after={after}", "--max-restarts", "9"),
        nnodes="1",
        program=machine.program(IMPORTS),
    )
    agent.line("has False False")
    worker = agent.worker(1)
    agent.line("imported False")
    if by == "the end of the round":
        os.kill(worker.pid, signal.SIGUSR1)
        worker = agent.worker(2)
    agent.line("preloading \\d+ modules that a worker has imported")
    agent.line("workers start warm")
    os.kill(worker.pid, signal.SIGUSR1)
    agent.line("has False True")  # The program's own module is not learned.
    worker = agent.worker(worker.round + 1)
    agent.line("imported False")
    os.kill(worker.pid, signal.SIGUSR2)
    agent.ends(0)


def test_a_module_that_cannot_be_imported_is_named_and_workers_start_cold(machine: Machine) -> None:
    machine.program("def load():\n    raise OSError('no such table')\nload()", "mine.py")
    agent = machine.agent("a", "--preload=mine", nnodes="1", program=machine.program(SAYS))
    agent.line("has False False")
    os.kill(agent.worker(1).pid, signal.SIGUSR2)
    text = agent.ends(0)
    why = "warning: --preload: mine cannot be preloaded: its import fails: OSError: no such table"
    assert why in text
    assert 'mine.py", line 2, in load' in text
    assert "the workers start cold: these modules cannot be preloaded" in text


def test_a_program_that_is_not_pythons_starts_cold_and_the_reason_is_said_once(
    machine: Machine,
) -> None:
    script = machine.program("#!/bin/sh\ntest $RALLYPOINT_ROUND = 2\n", "shell.sh")
    Path(script).chmod(0o755)
    agent = machine.agent(
        "a", "--preload", "--no-python", "--max-restarts", "1", nnodes="1", program=script
    )
    text = agent.ends(0)
    assert text.count("the workers start cold: with --no-python") == 1


def test_workers_go_on_when_the_preloader_dies_and_another_one_follows(machine: Machine) -> None:
    path = machine.directory / "pid"
    machine.program(f"import os\nopen({str(path)!r}, 'w').write(str(os.getpid()))", "mine.py")
    agent = machine.agent(
        *("a", "--preload=mine", "--max-restarts", "9"),
        nnodes="1",
        program=machine.program(SAYS),
    )
    agent.line("has True")
    worker = agent.worker(1)
    agent.line("workers start warm")
    os.kill(int(path.read_text()), signal.SIGKILL)
    agent.line("warning: the preloader has ended: signal 9; workers start cold until")
    assert alive(worker.pid)
    agent.line("workers start warm")  # the next one, after its pause
    os.kill(worker.pid, signal.SIGUSR1)
    agent.line("has True")
    os.kill(agent.worker(2).pid, signal.SIGUSR2)
    agent.ends(0)
