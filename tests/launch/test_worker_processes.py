from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from rallypoint.errors import ProgramNotFoundError, WorkerStartError
from rallypoint.launch import guard_process, worker_processes
from rallypoint.launch.oom import OomCounter
from rallypoint.launch.worker_processes import WorkerExit, WorkerGroup, WorkerSpec
from tests.agent.processes import alive
from tests.launch.child_workers import Exits, Lines, spec, until
from tests.waiting import DEADLINE_S

pytestmark = pytest.mark.processes

SLEEP = "import time; print('ready', flush=True); time.sleep(600)"
IGNORES_TERM = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('ready', flush=True); time.sleep(600)
"""
# Starts a child, says its pid, and ends as told: by itself, or when it is asked to.
LEAVES_CHILD = """
import os, signal, subprocess, sys, time
child = "import signal, time\\n" + sys.argv[2] + "\\nprint('ready', flush=True); time.sleep(600)"
more = {"process_group": 0} if "own-group" in sys.argv[1] else {}
kept = subprocess.Popen([sys.executable, "-I", "-S", "-c", child], stdout=subprocess.PIPE, **more)
kept.stdout.readline()
print(kept.pid, flush=True)
if "stay" in sys.argv[1]: time.sleep(600)
"""
CHILD_IGNORES_TERM = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


class Registry:
    """A guard that only remembers."""

    def __init__(self) -> None:
        self.groups: list[int] = []
        self.ever: list[int] = []

    def add(self, pgid: int) -> None:
        self.groups.append(pgid)
        self.ever.append(pgid)

    def remove(self, pgid: int) -> None:
        self.groups.remove(pgid)


class Setup:
    """A group with what it needs; stop() at the end leaves nothing, whatever the test did."""

    def __init__(
        self,
        *specs: WorkerSpec,
        oom_counter: OomCounter | None = None,
        guard: Registry | None = None,
    ) -> None:
        self.output = Lines()
        self.exits = Exits()
        self.guard = guard or Registry()
        self.group = WorkerGroup(
            specs,
            output=self.output,
            exits=self.exits,
            guard=self.guard,
            oom_counter=oom_counter,
        )

    async def __aenter__(self) -> Setup:
        await self.group.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert await self.group.stop(0) == ()
        assert self.guard.groups == []
        self.output.close_all()


@pytest.fixture(params=["pidfd", "thread"])
def both_ways_to_watch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "thread":

        def refuse(pid: int) -> int:
            raise OSError(errno.ENOSYS, "as on an old kernel")

        monkeypatch.setattr(guard_process, "open_pidfd", refuse)


@pytest.mark.usefixtures("both_ways_to_watch")
def test_a_worker_runs_until_its_exit_was_reported() -> None:
    """The agent regroups after the last worker: it must have the failure that was the cause."""

    async def scenario() -> None:
        async with Setup(spec("raise SystemExit(7)", 0)) as setup:
            async with asyncio.timeout(20):
                while not setup.exits.seen:
                    assert setup.group.running == (0,)
                    await asyncio.sleep(0)
            assert setup.group.running == ()

    asyncio.run(scenario())


@pytest.mark.usefixtures("both_ways_to_watch")
def test_exits_are_reported_with_their_code_or_signal() -> None:
    async def scenario() -> None:
        codes = ["raise SystemExit(0)", "raise SystemExit(7)", SLEEP]
        specs = [
            spec(code, local_rank, rank=local_rank + 4) for local_rank, code in enumerate(codes)
        ]
        async with Setup(*specs) as setup:
            pids = setup.group.pids
            await setup.output.line(2)
            os.kill(pids[2], signal.SIGUSR1)
            exits = {(exit := await setup.exits.next()).local_rank: exit for _ in range(3)}
            assert setup.group.running == ()
        expected = [(0, None), (7, None), (None, signal.SIGUSR1)]
        assert exits == {
            n: WorkerExit(
                local_rank=n, rank=n + 4, pid=pids[n], returncode=code, signal=number, oom=False
            )
            for n, (code, number) in enumerate(expected)
        }
        assert len(setup.exits.seen) == 3

    asyncio.run(scenario())


def test_the_others_start_when_they_may() -> None:
    async def scenario() -> None:
        setup = Setup(spec(SLEEP, 0), spec(SLEEP, 1))
        starting = asyncio.create_task(setup.group.start(is_first_alone=True))
        try:
            await until(lambda: len(setup.guard.ever) == 1)
            assert not starting.done()
            setup.group.start_others()
            await starting
            assert len(setup.guard.ever) == 2
        finally:
            setup.group.start_others()
            await setup.__aexit__()

    asyncio.run(scenario())


def test_a_worker_that_has_no_others_waits_for_nobody() -> None:
    async def scenario() -> None:
        setup = Setup(spec(SLEEP))
        async with asyncio.timeout(DEADLINE_S):
            await setup.group.start(is_first_alone=True)
        await setup.__aexit__()

    asyncio.run(scenario())


def test_a_start_is_given_up_while_the_others_may_not_start() -> None:
    async def scenario() -> None:
        setup = Setup(spec(SLEEP, 0), spec(SLEEP, 1))
        starting = asyncio.create_task(setup.group.start(is_first_alone=True))
        await until(lambda: len(setup.guard.ever) == 1)
        starting.cancel()
        await asyncio.wait({starting})
        await setup.__aexit__()
        assert len(setup.guard.ever) == 1
        assert not alive(setup.guard.ever[0])

    asyncio.run(scenario())


def test_an_exit_is_noticed_at_once() -> None:
    async def scenario() -> float:
        async with Setup(spec(SLEEP)) as setup:
            await setup.output.line()
            killed_at = time.monotonic()
            os.kill(setup.group.pids[0], signal.SIGUSR1)
            await setup.exits.next()
            return setup.exits.times[0] - killed_at

    assert min(asyncio.run(scenario()) for _ in range(20)) < 0.01  # a busy machine takes longer


def test_the_guard_learns_of_a_group_while_the_loop_is_blocked() -> None:
    """If the agent is killed then, no process that the worker started stays."""
    held, told = threading.Event(), threading.Event()
    was_told: list[bool] = []

    class HoldsUp(OomCounter):
        """Read before the first start: the loop is blocked until the guard has the group."""

        def read(self) -> int | None:
            loop.call_soon_threadsafe(hold)
            assert held.wait(DEADLINE_S)
            return None

    def hold() -> None:
        held.set()
        was_told.append(told.wait(DEADLINE_S))

    class Tells(Registry):
        def add(self, pgid: int) -> None:
            super().add(pgid)
            told.set()

    async def scenario() -> None:
        async with Setup(spec(SLEEP), oom_counter=HoldsUp(), guard=Tells()):
            assert was_told == [True]

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        runner.run(scenario())


def test_a_worker_leads_its_session_and_reads_nothing() -> None:
    code = "import os, sys; print(os.getpid(), os.getsid(0), os.getpgrp(), repr(os.read(0, 1)))"

    async def scenario() -> None:
        async with Setup(spec(code)) as setup:
            pid = str(setup.group.pids[0])
            assert (await setup.output.line()).split() == [pid, pid, pid, "b''"]

    asyncio.run(scenario())


def test_a_worker_has_its_agents_first_limit_on_open_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The agent raises its own, and select() in a program does not bear as much."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(worker_processes, "OPEN_FILES", (200, hard))
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], flush=True)"

    async def scenario() -> None:
        async with Setup(spec(code)) as setup:
            assert await setup.output.line() == "200"

    asyncio.run(scenario())


def test_a_worker_dies_with_its_parent() -> None:
    code = """
import ctypes
number = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(number))  # PR_GET_PDEATHSIG
print(number.value, flush=True)
"""

    async def scenario() -> None:
        worker = WorkerSpec(
            argv=(sys.executable, "-c", code), env={}, cwd=None, local_rank=0, rank=0
        )
        async with Setup(worker) as setup:
            assert await setup.output.line() == str(int(signal.SIGKILL))

    asyncio.run(scenario())


def test_the_environment_and_directory_are_those_given(tmp_path: Path) -> None:
    code = "import os; print(sorted(set(os.environ) - {'LC_CTYPE'}), os.getcwd(), flush=True)"

    async def scenario() -> None:
        argv = (sys.executable, "-I", "-S", "-c", code)
        worker = WorkerSpec(argv=argv, env={"A": "1"}, cwd=str(tmp_path), local_rank=0, rank=0)
        async with Setup(worker) as setup:
            assert await setup.output.line() == f"['A'] {tmp_path.resolve()}"

    asyncio.run(scenario())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux binds processes")
def test_a_worker_is_bound_to_its_cpus() -> None:
    cpu = min(os.sched_getaffinity(0))

    async def scenario() -> None:
        worker = spec("import os; print(sorted(os.sched_getaffinity(0)), flush=True)")
        async with Setup(msgspec.structs.replace(worker, cpus=frozenset({cpu}))) as setup:
            assert await setup.output.line() == f"[{cpu}]"

    asyncio.run(scenario())


@pytest.mark.usefixtures("both_ways_to_watch")
def test_stop_gives_the_grace_and_no_more_than_is_needed() -> None:
    code = """
import signal, sys, time
def end(*_):
    sys.exit(3)
signal.signal(signal.SIGTERM, end)
print('ready', flush=True); time.sleep(600)
"""

    async def scenario() -> None:
        async with Setup(spec(code), spec(SLEEP, 1)) as setup:
            assert [await setup.output.line(n) for n in (0, 1)] == ["ready", "ready"]
            start = time.monotonic()
            assert await setup.group.stop(60) == ()
            assert time.monotonic() - start < 30
            exits = {exit.local_rank: exit for exit in setup.exits.seen}
            assert exits[0].returncode == 3
            assert exits[1].signal == signal.SIGTERM
            assert not any(alive(pid) for pid in setup.group.pids.values())

    asyncio.run(scenario())


def test_the_first_signal_can_be_chosen() -> None:
    async def scenario() -> None:
        async with Setup(spec(SLEEP.replace("time;", "time, signal;"))) as setup:
            await setup.output.line()
            await setup.group.stop(60, signal.SIGUSR2)
            assert setup.exits.seen[0].signal == signal.SIGUSR2

    asyncio.run(scenario())


def test_a_worker_that_ignores_the_signal_is_killed_after_the_grace() -> None:
    async def scenario() -> None:
        async with Setup(spec(IGNORES_TERM)) as setup:
            await setup.output.line()
            start = time.monotonic()
            assert await setup.group.stop(0.3) == ()
            assert time.monotonic() - start >= 0.3
            assert setup.exits.seen[0].signal == signal.SIGKILL
            assert setup.exits.seen[0].oom is False

    asyncio.run(scenario())


def test_a_second_stop_cuts_the_grace_short_but_never_lengthens_it() -> None:
    async def scenario() -> None:
        async with Setup(spec(IGNORES_TERM)) as setup:
            await setup.output.line()
            start = time.monotonic()
            first = asyncio.create_task(setup.group.stop(300))
            await asyncio.sleep(0)
            second = asyncio.create_task(setup.group.stop(0.2))
            await asyncio.sleep(0)
            third = asyncio.create_task(setup.group.stop(300))
            assert list(await asyncio.gather(first, second, third)) == [(), (), ()]
            assert 0.2 <= time.monotonic() - start < 30
            assert len(setup.exits.seen) == 1

    asyncio.run(scenario())


def test_the_grace_of_a_stop_can_be_lengthened() -> None:
    async def scenario() -> None:
        async with Setup(spec(IGNORES_TERM)) as setup:
            await setup.output.line()
            setup.group.lengthen_stop(60)  # No stop is under way: no effect.
            start = time.monotonic()
            stopping = asyncio.create_task(setup.group.stop(0.2))
            await asyncio.sleep(0)
            setup.group.lengthen_stop(1.0)
            setup.group.lengthen_stop(0.1)  # It is never shortened so.
            assert await stopping == ()
            assert time.monotonic() - start >= 1.0
            assert setup.exits.seen[0].signal == signal.SIGKILL

    asyncio.run(scenario())


def test_a_cancelled_stop_continues() -> None:
    async def scenario() -> None:
        async with Setup(spec(IGNORES_TERM)) as setup:
            await setup.output.line()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(setup.group.stop(0.2), 0.01)
            assert (await setup.exits.next()).signal == signal.SIGKILL

    asyncio.run(scenario())


def test_stop_without_a_start_and_after_the_end_does_nothing() -> None:
    async def scenario() -> None:
        unstarted = WorkerGroup([spec(SLEEP)], output=Lines(), exits=Exits())
        assert await unstarted.stop(1) == ()
        async with Setup(spec("pass")) as setup:
            await setup.exits.next()
            assert await setup.group.stop(60) == ()
            assert await setup.group.stop(60) == ()
            setup.group.signal_all(signal.SIGTERM)  # no process is left: no error

    asyncio.run(scenario())


def test_a_process_that_sigstop_stopped_is_ended_too() -> None:
    # One with a handler: it runs only when the process goes on.
    code = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
print('ready', flush=True); time.sleep(600)
"""

    async def end_of(program: str, grace_s: float) -> WorkerExit:
        async with Setup(spec(program)) as setup:
            await setup.output.line()
            os.kill(setup.group.pids[0], signal.SIGSTOP)
            await setup.group.stop(grace_s)
            return setup.exits.seen[0]

    assert asyncio.run(end_of(code, 60)).returncode == 3
    assert asyncio.run(end_of(IGNORES_TERM, 0.3)).signal == signal.SIGKILL


def test_signal_all_reaches_every_group() -> None:
    async def scenario() -> None:
        async with Setup(spec(SLEEP), spec(SLEEP, 1)) as setup:
            for local_rank in (0, 1):
                await setup.output.line(local_rank)
            setup.group.signal_all(signal.SIGUSR1)
            assert {(await setup.exits.next()).signal for _ in range(2)} == {signal.SIGUSR1}

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["end", "end own-group"])
@pytest.mark.usefixtures("both_ways_to_watch")
def test_processes_that_a_worker_leaves_behind_are_killed(how: str) -> None:
    async def scenario() -> None:
        async with Setup(spec(LEAVES_CHILD, 0, how, CHILD_IGNORES_TERM), spec(SLEEP, 1)) as setup:
            child = int(await setup.output.line(0))
            assert (await setup.exits.next()).returncode == 0
            await until(lambda: not alive(child))
            assert setup.group.running == (1,)

    asyncio.run(scenario())


def test_within_a_stop_remaining_processes_have_the_grace_too() -> None:
    # `sh -c "python train.py; ..."`: the shell ends at once, the program is saving its state.
    saves = """
import os, sys
def save(*_):
    time.sleep(0.2)
    os.write(2, b"saved\\n")
    sys.exit()
signal.signal(signal.SIGTERM, save)
"""

    async def scenario() -> None:
        async with Setup(spec(LEAVES_CHILD, 0, "stay", saves)) as setup:
            child = int(await setup.output.line())
            stop = asyncio.create_task(setup.group.stop(60))
            assert (await setup.exits.next()).signal == signal.SIGTERM
            assert await setup.output.line() == "saved"
            assert await stop == ()
            assert not alive(child)

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["stay", "stay own-group"])
def test_remaining_processes_are_killed_after_the_grace(how: str) -> None:
    async def scenario() -> None:
        async with Setup(spec(LEAVES_CHILD, 0, how, CHILD_IGNORES_TERM)) as setup:
            child = int(await setup.output.line())
            start = time.monotonic()
            assert await setup.group.stop(0.3) == ()
            assert time.monotonic() - start >= 0.3
            assert not alive(child)

    asyncio.run(scenario())


def test_a_stop_leaves_a_worker_that_ends_by_itself_alone_and_kills_what_it_leaves() -> None:
    before = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})"
    ends = "signal.sigwait({signal.SIGUSR1}); sys.exit(1)"
    code = f"{before}\n{LEAVES_CHILD}\n{ends}"

    async def scenario() -> None:
        async with Setup(spec(code, 0, "", CHILD_IGNORES_TERM), spec(SLEEP, 1)) as setup:
            child = int(await setup.output.line(0))
            stop = asyncio.create_task(setup.group.stop(600, ending=(0,)))
            assert (await setup.exits.next()).local_rank == 1
            assert alive(child)
            setup.group.signal_leaders(signal.SIGUSR1)
            assert (await setup.exits.next()).returncode == 1
            assert await stop == ()
            assert not alive(child)

    asyncio.run(scenario())


def test_a_worker_that_does_not_end_by_itself_is_killed_after_the_grace() -> None:
    async def scenario() -> None:
        async with Setup(spec(SLEEP)) as setup:
            await setup.output.line()
            assert await setup.group.stop(0.1, ending=(0,)) == ()
            assert (await setup.exits.next()).signal == signal.SIGKILL

    asyncio.run(scenario())


def test_a_stop_ends_with_the_last_process_of_the_group() -> None:
    async def scenario() -> None:
        async with Setup(spec(LEAVES_CHILD, 0, "stay", "")) as setup:
            child = int(await setup.output.line())
            start = time.monotonic()
            await setup.group.stop(60)
            assert time.monotonic() - start < 30
            assert not alive(child)

    asyncio.run(scenario())


def _not_executable(tmp_path: Path) -> str:
    path = tmp_path / "script"
    path.write_text("echo hello\n")
    return str(path)


def _no_first_line(tmp_path: Path) -> str:
    path = tmp_path / "script"
    path.write_text("echo hello\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("program", "hint"),
    [
        (lambda tmp_path: "no-such-program", "check the path"),
        (lambda tmp_path: str(tmp_path / "none"), "check the path"),
        (lambda tmp_path: str(tmp_path), "executable"),
        (_not_executable, "chmod"),
        (_no_first_line, "first line"),
    ],
)
def test_a_program_that_cannot_be_started_leaves_nothing_running(
    program: Callable[[Path], str], hint: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        path = program(tmp_path)
        bad = WorkerSpec(argv=(path,), env=dict(os.environ), cwd=None, local_rank=2, rank=2)
        setup = Setup(spec(SLEEP, 0), spec(IGNORES_TERM, 1), bad, spec(SLEEP, 3))
        with pytest.raises(ProgramNotFoundError) as caught:
            await setup.group.start()
        assert caught.value.path == path
        assert hint in caught.value.hint
        assert path in str(caught.value)
        assert len(setup.guard.ever) == 2
        assert not any(map(alive, setup.guard.ever))
        await asyncio.sleep(0)
        assert setup.guard.groups == []
        assert setup.exits.seen == []
        assert await setup.group.stop(60) == ()
        setup.output.close_all()

    asyncio.run(scenario())


def test_a_missing_working_directory_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        missing = str(tmp_path / "none")
        worker = WorkerSpec(argv=(sys.executable,), env={}, cwd=missing, local_rank=0, rank=0)
        with pytest.raises(ProgramNotFoundError, match="none") as caught:
            await Setup(worker).group.start()
        assert "directory" in caught.value.hint

    asyncio.run(scenario())


def test_a_zero_byte_is_an_error_of_ours() -> None:
    async def scenario() -> None:
        worker = WorkerSpec(
            argv=(sys.executable,), env={"A": "a\0b"}, cwd=None, local_rank=0, rank=0
        )
        with pytest.raises(WorkerStartError, match="null byte"):
            await Setup(worker).group.start()

    asyncio.run(scenario())


@pytest.mark.parametrize("count", [1, 2])
def test_a_cancelled_start_leaves_nothing_running(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A program on a file system that hangs: the start waits, the loop does not.
    hanging, release = asyncio.Event(), contextlib.ExitStack()
    read_end, write_end = os.pipe()
    release.callback(os.close, read_end)
    popen = worker_processes._popen

    async def scenario() -> None:
        loop = asyncio.get_running_loop()

        def hang(*arguments: object) -> object:
            process = popen(*arguments)  # type: ignore[arg-type]
            loop.call_soon_threadsafe(hanging.set)
            os.read(read_end, 1)
            return process

        monkeypatch.setattr(worker_processes, "_popen", hang)
        setup = Setup(*(spec(SLEEP, local_rank) for local_rank in range(count)))
        start = asyncio.create_task(setup.group.start())
        async with asyncio.timeout(DEADLINE_S):
            await hanging.wait()
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        # R13: a stop for the next round waits for processes that the start may still bring.
        stop = asyncio.create_task(setup.group.stop(0))
        await asyncio.wait({stop}, timeout=0.05)
        assert not stop.done()
        os.write(write_end, b"x")
        os.close(write_end)
        assert await stop == ()
        assert setup.guard.groups == []
        assert len(setup.guard.ever) == 1  # the second was not started any more
        assert not any(map(alive, setup.guard.ever))
        setup.output.close_all()

    with release:
        asyncio.run(scenario())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_nearest_memory_counter_is_read(tmp_path: Path) -> None:
    _write(tmp_path / "proc/self/cgroup", "5:cpu:/x\n4:memory:/job/a\n0::/job/b\n")
    counter = OomCounter(tmp_path)
    assert counter.read() is None
    for path, count in (
        ("proc/vmstat", 3),
        ("sys/fs/cgroup/memory/memory.oom_control", 4),
        ("sys/fs/cgroup/memory.events", 5),
        ("sys/fs/cgroup/memory/job/a/memory.oom_control", 6),
        ("sys/fs/cgroup/job/b/memory.events", 7),
    ):
        _write(tmp_path / path, f"low 0\noom_kill {count}\n")
        assert counter.read() == count, path


@pytest.mark.parametrize(
    ("number", "rises", "oom"),
    [
        (signal.SIGKILL, True, True),
        (signal.SIGKILL, False, False),
        (signal.SIGUSR1, True, False),
    ],
)
def test_a_kill_while_the_counter_rose_is_out_of_memory(
    number: int, rises: bool, oom: bool, tmp_path: Path
) -> None:
    _write(tmp_path / "proc/vmstat", "oom_kill 1\n")

    async def scenario() -> None:
        async with Setup(spec(SLEEP), oom_counter=OomCounter(tmp_path)) as setup:
            await setup.output.line()
            _write(tmp_path / "proc/vmstat", f"oom_kill {1 + rises}\n")
            os.kill(setup.group.pids[0], number)
            assert (await setup.exits.next()).oom is oom

    asyncio.run(scenario())


def test_a_kill_of_ours_is_never_out_of_memory(tmp_path: Path) -> None:
    _write(tmp_path / "proc/vmstat", "oom_kill 1\n")

    async def scenario() -> None:
        async with Setup(spec(IGNORES_TERM), oom_counter=OomCounter(tmp_path)) as setup:
            await setup.output.line()
            _write(tmp_path / "proc/vmstat", "oom_kill 2\n")
            await setup.group.stop(0.1)
            (exit,) = setup.exits.seen
            assert (exit.signal, exit.oom) == (signal.SIGKILL, False)

    asyncio.run(scenario())
