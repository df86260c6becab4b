"""What makes a fork of a preloader unsafe, or unlike a cold worker, is refused, with its name."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rallypoint.launch import agent_events as on
from rallypoint.launch import preload_process
from rallypoint.launch.preloader import (
    _PR_SET_CHILD_SUBREAPER,
    LINE_BYTES_MAX,
    LINES_MAX,
    ForkedProcess,
    Preloader,
    PreloadPlan,
    become_subreaper,
    modules_in,
    program_folders,
    with_hook,
)
from rallypoint.launch.worker_env import (
    WorkerContext,
    preloader_environment,
    worker_environment,
    worker_variables,
)
from rallypoint.launch.worker_processes import WorkerSpec
from tests.agent.processes import alive
from tests.launch.child_workers import until

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != "linux", reason="warm starts need Linux"),
]


class Told:
    """A preloader of a program in this folder, and what it has told."""

    def __init__(self, folder: Path, **more: object) -> None:
        self.folder = folder
        self.events: list[on.PreloadEvent] = []
        self.lines: list[str] = []
        program = folder / "program.py"
        program.write_text(f"open({str(folder / 'ran')!r}, 'w').close()")
        plan = {
            "argv": (sys.executable, "-u", str(program)),
            "env": preloader_environment(dict(os.environ), 1),
            "watched": tuple(worker_variables()),
            "workers": 1,
            **more,
        }
        self.groups: dict[int, bool] = {}
        """Each group that was registered, and whether the program had run then."""
        self.preloader = Preloader(
            PreloadPlan(**plan),  # type: ignore[arg-type]
            tell=self.events.append,
            said=self.lines.append,
            guard=self,
        )

    def add(self, pgid: int) -> None:
        """As of the guard."""
        self.groups[pgid] = (self.folder / "ran").exists()

    def remove(self, pgid: int) -> None:
        """As of the guard."""
        self.groups.pop(pgid, None)

    async def next(self, count: int = 1) -> on.PreloadEvent:
        await until(lambda: len(self.events) >= count)
        return self.events[count - 1]


def preload(folder: Path, *modules: str, **more: object) -> on.PreloadEvent:
    """What a preloader of these modules tells first. The program has not run in it."""

    async def tell() -> on.PreloadEvent:
        told = Told(folder, **more)
        told.preloader.start(modules)
        try:
            return await told.next()
        finally:
            told.preloader.close()
            assert not (folder / "ran").exists()

    return asyncio.run(tell())


def problem(folder: Path, *modules: str, **more: object) -> on.Problem:
    event = preload(folder, *modules, **more)
    assert isinstance(event, on.PreloadRefused), event
    return event.problems[0]


def a_module(folder: Path, code: str, name: str = "mine") -> None:
    (folder / f"{name}.py").write_text(code)


def test_modules_of_the_program_and_of_the_library_are_imported(tmp_path: Path) -> None:
    a_module(tmp_path, "import fractions\nprint('hello')")
    event = preload(tmp_path, "mine", "decimal")
    assert isinstance(event, on.PreloadReady)
    assert event.memory_bytes > 2**20


def test_an_import_that_fails_is_refused_with_its_traceback(tmp_path: Path) -> None:
    a_module(tmp_path, "def load():\n    return 1 / 0\nload()")
    found = problem(tmp_path, "fractions", "mine")
    assert found.modules == ("mine",)
    assert found.why == "its import fails: ZeroDivisionError: division by zero"
    assert found.detail.startswith("Traceback (most recent call last):")
    assert "in load\n    return 1 / 0" in found.detail
    assert "preload_process" not in found.detail


@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "raise KeyboardInterrupt"])
def test_an_import_that_ends_the_process_is_refused(tmp_path: Path, code: str) -> None:
    a_module(tmp_path, code)
    assert problem(tmp_path, "mine").modules == ("mine",)


def test_an_import_that_fails_in_the_program_as_well_is_no_problem(tmp_path: Path) -> None:
    a_module(tmp_path, "raise ImportError('an optional part')")
    assert isinstance(preload(tmp_path, "mine", "fractions", may_fail=True), on.PreloadReady)


def test_who_copies_the_environment_is_named_once(tmp_path: Path) -> None:
    a_module(tmp_path, "import os\nfound = dict(os.environ)")
    event = preload(tmp_path, "mine", may_fail=True)
    assert isinstance(event, on.PreloadRefused)
    (only,) = event.problems
    assert only.why.startswith("mine reads all variables of its environment while it is imported")


def test_an_unknown_module_is_refused(tmp_path: Path) -> None:
    found = problem(tmp_path, "no_such_module")
    assert found.modules == ("no_such_module",)
    assert "No module named 'no_such_module'" in found.why


def test_a_module_that_starts_a_thread_is_refused_with_those_that_import_it(tmp_path: Path) -> None:
    a_module(
        tmp_path, "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()"
    )
    a_module(tmp_path, "import mine", "other")
    found = problem(tmp_path, "other")
    assert found.modules == ("mine", "other")
    assert found.why == "mine starts a thread of Python"


def test_a_thread_that_has_ended_does_no_harm(tmp_path: Path) -> None:
    a_module(tmp_path, "import threading\nt = threading.Thread(target=int)\nt.start()\nt.join()")
    assert isinstance(preload(tmp_path, "mine"), on.PreloadReady)


@pytest.mark.parametrize(
    "reads",
    [
        "os.environ['RANK'] if 'RANK' in os.environ else 0",
        "os.environ.get('WORLD_SIZE')",
        "os.getenv('MASTER_ADDR')",
        "os.environ.get('CUDA_VISIBLE_DEVICES')",
        "os.environ.get('RALLYPOINT_ROUND')",
        "dict(os.environ)",
        "os.environ.copy()",
    ],
)
def test_a_module_that_reads_what_differs_between_workers_is_refused(
    tmp_path: Path, reads: str
) -> None:
    a_module(tmp_path, f"import os\nfound = {reads}")
    a_module(tmp_path, "import mine", "other")
    found = problem(tmp_path, "other")
    assert found.modules == ("mine", "other")
    assert "while it is imported" in found.why


def test_a_module_that_cannot_do_without_such_a_variable_is_refused_for_that(
    tmp_path: Path,
) -> None:
    a_module(tmp_path, "import os\nrank = int(os.environ['RANK'])")
    assert problem(tmp_path, "mine").why.startswith("mine reads RANK while it is imported")


def test_other_variables_may_be_read_and_set(tmp_path: Path) -> None:
    code = "import os\nos.environ['MINE'] = os.environ.get('HOME', '')\n"
    a_module(tmp_path, f"{code}found = [name for name in os.environ if name.startswith('MINE')]")
    assert isinstance(preload(tmp_path, "mine"), on.PreloadReady)


DEVICES = [
    each
    for each in ("/dev/kmsg", "/dev/fuse", "/dev/net/tun", "/dev/kvm")
    if os.access(each, os.R_OK)
]


@pytest.mark.skipif(not DEVICES, reason="this machine has no device to open")
def test_a_module_that_opens_a_device_is_refused(tmp_path: Path) -> None:
    for device in DEVICES:
        with contextlib.suppress(OSError):
            os.close(os.open(device, os.O_RDWR))
            break
    else:
        pytest.skip("no device here can be opened")
    a_module(tmp_path, f"import os\nfd = os.open({device!r}, os.O_RDWR)")
    found = problem(tmp_path, "mine")
    assert found.modules == ("mine",)
    assert found.why == f"it keeps {device} open, which forks would share"


@pytest.mark.parametrize(
    "code",
    [
        "import socket\ns = socket.socket()",
        "import os\np = os.pipe()",
        "import select\ne = select.epoll()",
    ],
)
def test_a_module_that_keeps_a_connection_is_refused(tmp_path: Path, code: str) -> None:
    a_module(tmp_path, code)
    assert "which forks would share" in problem(tmp_path, "mine").why


def test_a_file_or_a_harmless_device_may_be_open(tmp_path: Path) -> None:
    a_module(tmp_path, "f = open(__file__)\nr = open('/dev/urandom', 'rb')")
    assert isinstance(preload(tmp_path, "mine"), on.PreloadReady)


def test_a_module_that_starts_a_process_is_refused(tmp_path: Path) -> None:
    a_module(tmp_path, "import subprocess, sys\np = subprocess.Popen(['sleep', '99'])")
    assert "it starts a process" in problem(tmp_path, "mine").why


def test_an_import_that_hangs_ends_at_its_deadline(tmp_path: Path) -> None:
    a_module(tmp_path, "import time\ntime.sleep(9999)")
    found = problem(tmp_path, "fractions", "mine", import_s=2.0)
    assert found.modules == ("mine",)
    assert found.why == "its import has not ended within 2 s"


def test_modules_whose_forks_hang_are_refused_by_the_canary(tmp_path: Path) -> None:
    a_module(
        tmp_path, "import os, time\nos.register_at_fork(after_in_child=lambda: time.sleep(999))"
    )
    found = problem(tmp_path, "mine")
    assert found.modules == ()
    assert found.why.startswith("a fork of them has hung for 5 s in a matrix product")


@pytest.mark.torch
def test_torch_passes_the_canary_unless_it_has_computed_in_parallel(tmp_path: Path) -> None:
    env = preloader_environment(dict(os.environ), 1) | {"OMP_NUM_THREADS": "2"}
    assert isinstance(preload(tmp_path, "torch", env=env), on.PreloadReady)
    a_module(tmp_path, "import torch\nx = torch.ones(2000, 2000)\ny = (x @ x + x).exp().sum()")
    found = preload(tmp_path, "mine", env=env)
    if isinstance(found, on.PreloadReady):
        pytest.skip("the threads of this torch survive a fork")
    assert isinstance(found, on.PreloadRefused)
    assert "a fork of them has hung" in found.problems[0].why


@pytest.mark.parametrize("name", ["json.py", "tempfile.py"])
def test_a_program_with_modules_that_would_be_hidden_is_refused(tmp_path: Path, name: str) -> None:
    a_module(tmp_path, "mine = 1", name.removesuffix(".py"))
    assert problem(tmp_path, "fractions").why.startswith(f"{name} in {tmp_path} has the name of")


def test_what_modules_write_is_shown(tmp_path: Path) -> None:
    a_module(tmp_path, "import os\nprint('from the import')\nos.write(2, b'and stderr\\n')")

    async def lines() -> None:
        told = Told(tmp_path)
        told.preloader.start(["mine"])
        await told.next()
        await until(lambda: len(told.lines) == 2)
        assert sorted(told.lines) == ["preloader: and stderr", "preloader: from the import"]
        told.preloader.close()

    asyncio.run(lines())


def test_a_line_without_an_end_is_not_kept(tmp_path: Path) -> None:
    a_module(tmp_path, "print('x' * 10_000_000, end='', flush=True)")

    async def lines() -> list[str]:
        told = Told(tmp_path)
        told.preloader.start(["mine"])
        await told.next()
        await until(lambda: len(told.lines) == LINES_MAX)
        told.preloader.close()
        return told.lines

    assert max(map(len, asyncio.run(lines()))) < 2 * LINE_BYTES_MAX


def pid_of(folder: Path) -> int:
    """The process that has imported `a_module_with_pid` last; 0 before."""
    path = folder / "pid"
    return int(path.read_text() or 0) if path.exists() else 0


def a_module_with_pid(folder: Path, code: str = "", name: str = "mine") -> None:
    path = str(folder / "pid")
    a_module(folder, f"import os, time\nopen({path!r}, 'w').write(str(os.getpid()))\n{code}", name)


def test_a_preloader_that_is_killed_tells_so_while_it_imports_and_after(tmp_path: Path) -> None:
    a_module_with_pid(tmp_path)
    a_module_with_pid(tmp_path, "time.sleep(9999)", "slow")

    async def dies() -> None:
        told = Told(tmp_path)
        told.preloader.start(["mine"])
        assert isinstance(await told.next(), on.PreloadReady)
        os.kill(pid_of(tmp_path), signal.SIGKILL)
        assert await told.next(2) == on.PreloaderEnded("signal 9")
        first = pid_of(tmp_path)
        told.preloader.start(["fractions", "slow"])
        await until(lambda: pid_of(tmp_path) not in (0, first))
        os.kill(pid_of(tmp_path), signal.SIGKILL)
        assert await told.next(3) == on.PreloaderEnded("signal 9 in the import of slow")
        told.preloader.close()

    asyncio.run(dies())


async def worker_of(told: Told, cwd: str | None) -> ForkedProcess:
    """A worker that its preloader has started in this folder."""
    env = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    spec = WorkerSpec(argv=("x",), env=env, cwd=cwd, local_rank=0, rank=0)
    with open(os.devnull, "r+") as file:  # noqa: PTH123
        process = await asyncio.to_thread(told.preloader.take, spec, *[file.fileno()] * 3)
    assert process is not None
    return process


def test_a_worker_is_registered_before_its_program_runs(tmp_path: Path) -> None:
    """Else what it has started is left if the agent is killed at this moment."""
    a_module(tmp_path, "")

    async def starts() -> None:
        told = Told(tmp_path)
        told.preloader.start(["mine"])
        await told.next()
        process = await worker_of(told, None)
        assert told.groups[process.pid] is False
        await asyncio.to_thread(os.waitid, os.P_PID, process.pid, os.WEXITED)
        assert (tmp_path / "ran").exists()
        told.preloader.close()

    become_subreaper()
    try:
        asyncio.run(starts())
    finally:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.mark.parametrize("own", ["", "of-a-library"])
def test_a_preloader_and_its_standbys_have_names_and_a_worker_has_its_own(
    own: str, tmp_path: Path
) -> None:
    """Also if a module that is imported has set one, as it does in a cold worker."""
    named = f"open('/proc/self/comm', 'w').write({own!r})" if own else ""
    a_module(tmp_path, named)
    (tmp_path / "cold").mkdir()
    shows = "from pathlib import Path\nPath('name').write_text(Path('/proc/self/comm').read_text())"

    def names() -> set[str]:
        found = set()
        for each in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                head, _, rest = each.read_text().rpartition(") ")
                if int(rest.split()[1]) == os.getpid():
                    found.add(head.partition(" (")[2])
        return found

    async def starts() -> None:
        told = Told(tmp_path)
        (tmp_path / "program.py").write_text(shows)
        told.preloader.start(["mine"])
        await told.next()
        wanted = {preload_process.PRELOADER_NAME.decode(), preload_process.STANDBY_NAME.decode()}
        await until(lambda: wanted <= names())
        process = await worker_of(told, str(tmp_path))
        await asyncio.to_thread(os.waitid, os.P_PID, process.pid, os.WEXITED)
        told.preloader.close()

    become_subreaper()
    try:
        asyncio.run(starts())
    finally:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    cold = subprocess.run([sys.executable, "-c", shows], cwd=tmp_path / "cold", check=True)
    assert cold.returncode == 0
    expected = own or (tmp_path / "cold/name").read_text().strip()
    assert (tmp_path / "name").read_text().strip() == expected


def test_a_preloader_that_hangs_is_waited_for_once(tmp_path: Path) -> None:
    a_module_with_pid(tmp_path)

    async def hangs() -> None:
        told = Told(tmp_path, workers=0, hand_over_s=2.0)
        told.preloader.start(["mine"])
        assert isinstance(await told.next(), on.PreloadReady)
        pid = pid_of(tmp_path)
        os.kill(pid, signal.SIGSTOP)
        spec = WorkerSpec(argv=("x",), env={}, cwd=None, local_rank=0, rank=0)

        def all_workers() -> list[float]:
            times_s = [time.monotonic()]
            for _ in range(8):
                assert told.preloader.take(spec, 0, 1, 2) is None
                times_s.append(time.monotonic())
            return times_s

        first, second, *_, last = await asyncio.to_thread(all_workers)
        assert last - second < second - first
        assert await told.next(2) == on.PreloaderEnded("a fork of it has not answered for 2 s")
        await until(lambda: not alive(pid))
        assert len(told.events) == 2

    asyncio.run(hangs())


def test_a_preloader_that_is_closed_ends_also_in_an_import_that_hangs(tmp_path: Path) -> None:
    a_module_with_pid(tmp_path, "time.sleep(9999)")

    async def closes() -> None:
        told = Told(tmp_path)
        told.preloader.start(["mine"])
        await until(lambda: pid_of(tmp_path) != 0)
        told.preloader.close()
        await until(lambda: not alive(pid_of(tmp_path)))
        assert told.events == []

    asyncio.run(closes())


def test_an_interpreter_that_ignores_the_hook_never_runs_the_program(tmp_path: Path) -> None:
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    wrapper.chmod(0o755)
    event = preload(tmp_path, "fractions", argv=(str(wrapper), "-u", str(tmp_path / "program.py")))
    assert isinstance(event, on.PreloaderEnded)
    assert "does not import sitecustomize at its start" in event.why


# -- pure ----------------------------------------------------------------------------------------


def test_the_preloaders_environment_is_a_workers_without_what_differs() -> None:
    base = {"HOME": "/h", "RANK": "7", "CUDA_VISIBLE_DEVICES": "0,1", "RALLYPOINT_TOKEN": "secret"}
    context = WorkerContext(
        run_id="r",
        rank=0,
        local_rank=0,
        world_size=2,
        local_world_size=2,
        node_rank=0,
        nodes=1,
        restart_count=0,
        max_restarts=0,
        master_addr="h",
        master_port=1,
        node_name="n",
        term=1,
        round_number=1,
        min_nodes=1,
        max_nodes=1,
        agent_path="@a",
        agent_secret="s",
        error_file="/e",
        interface="eth0",
        is_interface_wanted=True,
    )
    worker = worker_environment(context, base)
    preloader = preloader_environment(base, 2)
    assert preloader["OMP_NUM_THREADS"] == worker["OMP_NUM_THREADS"] == "1"
    assert preloader["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert "RALLYPOINT_TOKEN" not in preloader
    differs = {name for name in worker if preloader.get(name) != worker[name]}
    assert differs <= set(worker_variables())
    assert not preloader.keys() - worker.keys()


def test_the_hook_comes_first_in_the_path_and_knows_the_users(tmp_path: Path) -> None:
    assert with_hook({}, do="x")["PYTHONPATH"].endswith("preloading")
    both = with_hook({"PYTHONPATH": "/mine:/other"}, do="x")
    assert both["PYTHONPATH"].endswith("preloading:/mine:/other")
    assert '"pythonpath": "/mine:/other"' in both[preload_process.HOOK_VARIABLE]


def test_learned_modules_are_listed_once_without_the_program() -> None:
    text = "numpy\ntorch\nnumpy\npkg.train\nsitecustomize\nincompl"
    assert modules_in(text, ("python", "-u", "-m", "pkg.train")) == ("numpy", "torch")
    assert modules_in("", ("python", "-u", "train.py")) == ()


def test_modules_are_found_where_the_program_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "train.py").write_text("")
    (tmp_path / "link.py").symlink_to(tmp_path / "sub" / "train.py")
    assert program_folders(("python", "-u", "link.py")) == (str(tmp_path / "sub"),)
    assert program_folders(("python", "-u", "sub")) == (str(tmp_path / "sub"),)
    assert program_folders(("python", "-u", "-m", "train")) == (str(tmp_path),)
