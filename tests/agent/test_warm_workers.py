"""A worker that was forked from a preloader is as one that was started: the two, side by side."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.agent.processes import Machine, Process, alive, gone, program_with
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != "linux", reason="warm starts need Linux"),
]

# Writes what a program can see of its process.
FACTS = r"""
import atexit, ctypes, faulthandler, gc, json, multiprocessing, os, resource, signal, subprocess
import sys, threading, time, warnings

def text(name):
    with open("/proc/self/" + name) as file:
        return file.read()

def child(queue):
    queue.put([sys.argv, sys.path[0], os.environ["RANK"], os.environ.get("PYTHONPATH")])

def in_child(method):
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    got = queue.get()
    process.join()
    return [got, process.exitcode]

def of_stream(stream):
    names = ["encoding", "errors", "line_buffering", "write_through", "name", "mode"]
    return [type(stream.buffer).__name__, *(repr(getattr(stream, name)) for name in names)]

def pdeathsig():
    number = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(number), 0, 0, 0)
    return number.value

def facts():
    status = dict(line.split(":\t", 1) for line in text("status").splitlines())
    kept = ("Umask", "SigBlk", "SigIgn", "SigCgt", "CapEff", "NoNewPrivs", "Threads")
    kept += ("Cpus_allowed",)
    with open(f"/proc/{os.getppid()}/cmdline") as file:
        parent = file.read()
    own = ("RALLYPOINT_AGENT", "RALLYPOINT_AGENT_SECRET", "MASTER_PORT", "TORCHELASTIC_ERROR_FILE")
    return {
        "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path, "flags": repr(sys.flags),
        "executable": sys.executable, "cmdline": text("cmdline"), "comm": text("comm"),
        "exe": os.readlink("/proc/self/exe"), "limits": text("limits"), "cwd": os.getcwd(),
        "oom": text("oom_score_adj"), "cgroup": text("cgroup"), "nice": os.nice(0),
        "status": {name: status.get(name) for name in kept},
        "files": sorted(os.readlink(f"/proc/self/fd/{fd}").split(":")[0]
                        for fd in (0, 1, 2)),
        "fds": sorted(int(each) for each in os.listdir("/proc/self/fd") if int(each) != LISTING),
        "leads": [os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid()],
        "parent is the agent": "--node-name" in parent, "pdeathsig": pdeathsig(),
        "names": [__name__, __file__, __package__, __spec__ and __spec__.name],
        "environ": {n: t for n, t in os.environ.items() if n not in own}, "order": list(os.environ),
        "getenv": ctypes.CDLL(None).getenv, "environb": len(os.environb),
        "posix": sorted(n.decode() for n in sys.modules["posix"].environ),
        "signals": {n: repr(signal.getsignal(n)) for n in range(1, 32) if n not in (9, 19)},
        "rlimits": [resource.getrlimit(n) for n in range(10)],
        "stdin": [sys.stdin.read(), *of_stream(sys.stdin)],
        "stdout": of_stream(sys.stdout), "stderr": of_stream(sys.stderr),
        "gc": [gc.isenabled(), gc.get_threshold()], "threads": threading.active_count(),
        "main thread": threading.main_thread() is threading.current_thread(),
        "finders": [getattr(each, "__name__", type(each).__name__) for each in sys.meta_path],
        "hooks": len(sys.path_hooks), "filters": [repr(each) for each in warnings.filters],
        "custom": sorted(n for n in sys.modules if "custom" in n or "rallypoint" in n),
        "site": sys.modules["sitecustomize"].MARK,
        "faults": faulthandler.is_enabled(), "environ class": type(os.environ).__name__,
        "fork": in_child("fork"), "spawn": in_child("spawn"),
        "run": subprocess.run([sys.executable, "-c", "import os; print(os.getcwd())"],
                              capture_output=True, text=True).stdout,
        "modules": sorted(sys.modules),
    }

if __name__ == "__main__":
    LISTING = os.open("/proc/self/fd", os.O_RDONLY)
    os.close(LISTING)
    found = facts()
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    found["getenv"] = libc.getenv(b"RANK").decode()
    with open(os.environ["FACTS"] + "-" + os.environ["RANK"], "w") as file:
        json.dump(found, file)
    ends = os.environ["FACTS"] + "-end"
    print("no newline", end="")
    if os.environ["RANK"] == "0":
        atexit.register(lambda: open(ends, "w").write("ended"))
    else:
        while not os.path.exists(ends):
            time.sleep(0.01)
    raise SystemExit(int(os.environ["RANK"]))
"""
CUSTOM = "MARK = 'of the user'\nimport sys\nsys.MARKED = getattr(sys, 'MARKED', 0) + 1\n"


def facts(machine: Machine, *arguments: str, warm: bool) -> tuple[list[dict[str, Any]], str]:
    """What two workers see, and what their agent says."""
    folder = machine.directory / "of-user"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(CUSTOM)
    path = machine.directory / ("warm" if warm else "cold")
    src = machine.env["PYTHONPATH"]
    agent = machine.command(
        *("run", "--standalone", "--nproc-per-node", "2", "--node-name", "n", "--run-id", "facts"),
        *(("--preload=fractions,decimal",) if warm else ()),
        *arguments,
        env={
            "FACTS": str(path),
            "PYTHONPATH": f"{folder}{os.pathsep}{src}",
            "PYTHONFAULTHANDLER": "1",
        },
    )
    text = agent.ends(1)
    assert ("workers start warm" in text) == warm, text
    assert Path(f"{path}-end").read_text() == "ended"
    found = [json.loads(Path(f"{path}-{rank}").read_text()) for rank in range(2)]
    for each in found:
        each["environ"].pop("FACTS")
    return found, text


@pytest.mark.parametrize("is_module", [False, True])
def test_a_warm_worker_sees_what_a_cold_one_sees(machine: Machine, is_module: bool) -> None:
    machine.program(FACTS, "shows.py")
    arguments = ("-m", "shows", "--lr", "1") if is_module else ("shows.py", "--lr", "1")
    cold, cold_text = facts(machine, *arguments, warm=False)
    warm, warm_text = facts(machine, *arguments, warm=True)
    for rank in range(2):
        modules = [set(each[rank].pop("modules")) for each in (cold, warm)]
        assert modules[1] >= modules[0]
        assert {"fractions", "decimal"} <= modules[1]
        assert not {"fractions", "decimal"} & modules[0]
        assert warm[rank] == cold[rank]
        assert warm[rank]["parent is the agent"]
        assert warm[rank]["pdeathsig"] == signal.SIGKILL
    for text in (cold_text, warm_text):
        assert text.count("no newline") == 2
        assert "rank 1 exited with code 1" in text


def test_a_traceback_and_an_error_file_are_those_of_a_cold_worker(machine: Machine) -> None:
    code = """
import json, os
def inner():
    raise ValueError("bad batch")
try:
    inner()
except ValueError as error:
    message = {"message": {"message": "from the error file", "extraInfo": {"py_callstack": ""}}}
    with open(os.environ["TORCHELASTIC_ERROR_FILE"], "w") as file:
        json.dump(message, file)
    raise
"""
    machine.program(code, "raises.py")
    texts = []
    for more in ((), ("--preload=fractions",)):
        agent = machine.command(
            "run", "--standalone", "--run-id", "r", "--node-name", "n", *more, "raises.py"
        )
        lines = agent.ends(1).splitlines()
        texts.append([line for line in lines if "modules are loaded" not in line])
    assert texts[0] == texts[1]
    assert any("from the error file" in line for line in texts[0])


def test_a_warm_worker_reads_what_its_agent_is_given(machine: Machine) -> None:
    machine.program("import sys; print('got', sys.stdin.read().upper())", "reads.py")
    code = f"""
import subprocess, sys
argv = [sys.executable, "-c", {machine.main!r}, "run", "--standalone", "--preload=fractions"]
done = subprocess.run([*argv, "reads.py"], input=b"typed", capture_output=True)
print(done.stdout.decode(), done.returncode)
"""
    machine.program(code, "feeds.py")
    process = Process(
        [sys.executable, "feeds.py"], machine.env, machine.directory, "types", read=True
    )
    machine.processes.append(process)
    assert "got TYPED" in process.ends(0)


def warm_agent(machine: Machine, *options: str, program: str | None = None) -> Process:
    return machine.agent("a", "--preload=fractions", *options, nnodes="1", program=program)


def test_what_a_dead_agent_leaves_ends_with_it(machine: Machine) -> None:
    child = program_with("""
import subprocess
kept = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", kept.pid, flush=True)
""")
    agent = warm_agent(machine, program=machine.program(child))
    agent.line("workers start warm")
    child_pid = int(agent.line(r"child (\d+)").group(1))
    worker = agent.worker()
    everything = [*descendants(agent.pid), worker.pid, child_pid]
    agent.popen.kill()
    gone(everything)


def descendants(pid: int) -> list[int]:
    children = [
        int(each)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for each in (task / "children").read_text().split()
    ]
    return children + [other for child in children for other in descendants(child)]


def test_a_warm_worker_is_stopped_and_reaped_as_a_cold_one(machine: Machine) -> None:
    agent = warm_agent(machine, "--max-restarts", "3")
    first = agent.worker(1)
    os.kill(first.pid, signal.SIGUSR1)
    second = agent.worker(2)
    assert not alive(first.pid)
    assert not Path(f"/proc/{first.pid}").exists()
    os.kill(second.pid, signal.SIGKILL)
    third = agent.worker(3)
    agent.line(r"\(signal 9\)")
    agent.signal(signal.SIGTERM)
    agent.ends(143)
    assert not alive(third.pid)


def test_standbys_that_die_are_not_left_as_zombies(machine: Machine) -> None:
    agent = warm_agent(machine)
    worker = agent.worker()
    agent.line("workers start warm")

    def standbys() -> list[int]:
        found = []
        for pid in descendants(agent.pid):
            try:
                parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
                is_same = Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"program.py\0")
            except OSError:
                continue
            if is_same and int(parent) == agent.pid and pid != worker.pid:
                found.append(pid)
        return found

    wait_until(lambda: len(standbys()) == 2)  # the preloader, and one standby
    preloader, standby = sorted(standbys())
    os.kill(standby, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{standby}").exists())
    assert alive(preloader)
    os.kill(worker.pid, signal.SIGUSR2)
    agent.ends(0)


def test_a_daemon_that_a_worker_leaves_is_waited_for_by_its_new_parent(machine: Machine) -> None:
    child = program_with("""
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while os.getppid() != int(os.environ["AGENT"]):
            time.sleep(0.01)
        say("daemon", os.getpid())
        os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(0)
os.wait()
""")
    child = child.replace('os.environ["AGENT"]', "AGENT").replace(
        "def end", "AGENT = os.getppid()\n\ndef end"
    )
    agent = warm_agent(machine, program=machine.program(child))
    daemon = int(agent.line(r"daemon (\d+)").group(1))
    agent.rewind()
    worker = agent.worker()
    os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{daemon}").exists())
    os.kill(worker.pid, signal.SIGUSR2)
    agent.ends(0)


LEAVES_OPEN = """
def unused():
    pass

class Ends:
    def __del__(self, mkdir=__import__("os").mkdir):
        mkdir("destroyed")

ends = Ends()
file = open("written", "w")
file.write("to its end")
"""


@pytest.mark.parametrize("is_module", [False, True])
def test_what_a_program_leaves_open_is_written_at_its_end(
    machine: Machine, is_module: bool
) -> None:
    """Python destroys its module then, although the preloader has frozen what it had."""
    machine.program(LEAVES_OPEN, "leaves_open.py")
    what = ("-m", "leaves_open") if is_module else ("leaves_open.py",)
    agent = machine.command("run", "--standalone", "--preload=fractions", *what)
    assert "workers start warm" in agent.ends(0)
    assert (machine.directory / "written").read_text() == "to its end"
    assert (machine.directory / "destroyed").exists()
