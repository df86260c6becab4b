"""The worker processes of one round on this machine, which start and end together.

Every worker leads its own session, so that it and all its children can be signalled and ended as a
group. This file must not handle rounds, restarts or causes: it reports an exit, and the agent
decides. The loop never waits: processes are started (which may use a hanging file system) and /proc
is searched in a thread of the group.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import functools
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Protocol, TypeVar

import msgspec

from rallypoint.core.values import repr_without
from rallypoint.errors import ProgramNotFoundError, WorkerStartError
from rallypoint.launch import guard_process
from rallypoint.launch.oom import OomCounter
from rallypoint.threads import call_from_loop, settle

T = TypeVar("T")

_SEARCH_PAUSE_S = 0.005
_SEARCH_PAUSE_S_MAX = 0.1
_PR_SET_PDEATHSIG = 1


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A worker to start. `env`: its whole environment. `cwd` None: the agent's folder.

    `has_stdin`: whether it reads the agent's standard input; otherwise it has none. `cpus`: on
    which it may run; None: on the agent's.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str | None
    local_rank: int
    rank: int
    has_stdin: bool = False
    cpus: frozenset[int] | None = None

    def __post_init__(self) -> None:
        if not self.argv:
            raise ValueError("argv must name a program")

    def __repr__(self) -> str:
        return repr_without(self, "env")


class WorkerExit(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker ended: exactly one of `returncode` and `signal` is set.

    `oom`: the kernel killed a process for lack of memory while the worker ran, and the worker died
    by a SIGKILL that the agent did not send (best effort: see oom.py).
    """

    local_rank: int
    rank: int
    pid: int
    returncode: int | None
    signal: int | None
    oom: bool


class OutputSink(Protocol):
    """Takes over the read ends of a worker's pipes. Called from the group's thread."""

    def attach(self, local_rank: int, rank: int, stdout_fd: int, stderr_fd: int) -> None: ...


class GroupRegistry(Protocol):
    """Registers process groups that must not outlive the agent. Called from any thread."""

    def add(self, pgid: int) -> None: ...
    def remove(self, pgid: int) -> None: ...


class Process(Protocol):
    """A child of this process: subprocess.Popen, or preloader.ForkedProcess."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...


class Forks(Protocol):
    """Forks workers that have their modules already: see preloader.Preloader."""

    def take(self, spec: WorkerSpec, stdin: int, stdout: int, stderr: int) -> Process | None:
        """Start a worker with these files; None if it must start cold."""


class Worker:
    """One started worker. Its pid cannot be reused, because it stays a zombie until `reap`."""

    def __init__(self, spec: WorkerSpec, process: Process) -> None:
        self.spec = spec
        self.process = process
        self.pid = process.pid
        self.exited: asyncio.Future[int]
        self.is_told = False
        self.killed_by_us = False
        self.ends_by_itself = False
        """Whether the present stop leaves it and its children alone until it has ended."""
        self.reaped = False

    def signal_group(self, number: int) -> None:
        """Signal the whole process group. Safe at any time, as its number cannot be reused yet."""
        if self.reaped:
            return
        self.killed_by_us = self.killed_by_us or number == signal.SIGKILL
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def signal_leader(self, number: int) -> None:
        if not self.reaped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def reap(self) -> None:
        self.reaped = True
        self.process.poll()

    def destroy(self) -> None:
        """Kill it and wait, in a thread. For a worker that is not watched yet."""
        self.signal_group(signal.SIGKILL)
        guard_process.kill_groups({self.pid: 0}, guard_process.KILL_WITHIN_S)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(guard_process.KILL_WITHIN_S)
        self.reaped = True


class WorkerGroup:
    """All workers of one round on this machine. Used once, from one running loop.

    `exits` is called in the loop, once for each worker when it ends, also if stop() ended it, and
    never before start() has returned. Processes that an ended worker leaves in its session are
    killed: at once, or during a stop when the grace is over. Each group is registered with `guard`
    as soon as it exists, and unregistered when all its processes have ended. `forks`, if given,
    starts the workers as far as it can.
    """

    def __init__(
        self,
        specs: Sequence[WorkerSpec],
        *,
        output: OutputSink,
        exits: Callable[[WorkerExit], None],
        guard: GroupRegistry | None = None,
        oom_counter: OomCounter | None = None,
        forks: Forks | None = None,
    ) -> None:
        self._specs = tuple(specs)
        self._output = output
        self._exits = exits
        self._guard = guard
        self._oom_counter = oom_counter
        self._forks = forks
        self._oom_before: int | None = None
        self._workers: list[Worker] = []
        self._lives: list[asyncio.Task[None]] = []
        self._thread: _GroupThread | None = None
        self._abandoned = threading.Event()
        self._others_may_start = threading.Event()
        self._given_up: asyncio.Future[None] | None = None
        self._kill_at: float | None = None  # None: no stop is under way
        self._changed = asyncio.Event()
        self._stopping: asyncio.Task[tuple[int, ...]] | None = None

    @property
    def pids(self) -> dict[int, int]:
        """The pid of each worker by its local rank, including ended ones."""
        return {worker.spec.local_rank: worker.pid for worker in self._workers}

    @property
    def running(self) -> tuple[int, ...]:
        """The local ranks of the workers whose end has not been reported yet.

        A caller that finds none running has received the exit of each worker.
        """
        return tuple(w.spec.local_rank for w in self._workers if not w.is_told)

    async def start(self, *, is_first_alone: bool = False) -> None:
        """Start all workers or none: if one start fails, the workers before it are killed.

        `is_first_alone`: the others start after `start_others`, which must follow.
        A cancellation gives up the start. Started processes are killed as soon as the system
        answers, and stop() waits for that. Raises ProgramNotFoundError, or WorkerStartError (no
        memory, too many processes or files).
        """
        assert self._thread is None, "a group is started once"
        if not is_first_alone:
            self.start_others()
        self._thread = _GroupThread("rallypoint-workers")
        spawning = self._thread.call(self._spawn_all)
        try:
            workers = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            self._give_up_start(spawning)
            raise
        except BaseException:
            self._thread.close()
            raise
        if not workers:
            self._thread.close()
        self._workers = workers
        self._lives = [asyncio.create_task(self._live(self._watch(w))) for w in workers]

    def start_others(self) -> None:
        """Let the workers after the first one start. Idempotent."""
        self._others_may_start.set()

    async def go_on(self) -> None:
        """Its workers stay for a round that begins: a kill for lack of memory before is no cause.

        Called when `start` has returned.
        """
        counter = self._oom_counter
        if counter is not None and not all(worker.reaped for worker in self._workers):
            self._oom_before = await self._in_thread(counter.read)

    def signal_all(self, number: int) -> None:
        """Send a signal to every worker's process group."""
        for worker in self._workers:
            worker.signal_group(number)

    def signal_leaders(self, number: int) -> None:
        """Send a signal to the workers and not to their children.

        SIGUSR1 makes a program save its state, and would kill the data loaders that it has forked.
        """
        for worker in self._workers:
            worker.signal_leader(number)

    async def stop(
        self,
        grace_s: float,
        first_signal: int = signal.SIGTERM,
        ending: Sequence[int] = (),
        *,
        kill_wait_s: float = guard_process.KILL_WITHIN_S,
    ) -> tuple[int, ...]:
        """End every worker and its whole session. Returns when all are reaped.

        Each group gets `first_signal`, and SIGKILL after `grace_s` seconds, with all processes that
        its leader has left. `ending`: the local ranks of workers that end by themselves: they get
        no first signal, and what they leave is killed when they have ended. A call while a stop is
        under way may shorten its grace, never lengthens it (see `lengthen_stop`), and sends no
        further first signal. Idempotent. A cancellation only ends the waiting. Returns the local
        ranks with a process that could not be killed within `kill_wait_s` (one in uninterruptible
        sleep), normally none.
        """
        kill_at = asyncio.get_running_loop().time() + grace_s
        self._kill_at = kill_at if self._kill_at is None else min(kill_at, self._kill_at)
        self._changed.set()
        if self._stopping is None:
            for worker in self._workers:
                worker.ends_by_itself = worker.spec.local_rank in ending
                if not worker.ends_by_itself:
                    worker.signal_group(first_signal)
            self.signal_all(signal.SIGCONT)  # a stopped process cannot end on a signal
            self._stopping = asyncio.create_task(self._finish(kill_wait_s))
        return await asyncio.shield(self._stopping)

    def lengthen_stop(self, grace_s: float) -> None:
        """Give the stop that is under way `grace_s` seconds from now, if it has less.

        It has no effect once the grace is over, because the workers have been killed then.
        """
        if self._kill_at is not None:
            self._kill_at = max(self._kill_at, asyncio.get_running_loop().time() + grace_s)
            self._changed.set()

    # -- starting: in the group's thread ---------------------------------------------------------

    def _spawn_all(self) -> list[Worker]:
        self._oom_before = self._oom_counter.read() if self._oom_counter is not None else None
        workers: list[Worker] = []
        try:
            for spec in self._specs:
                if workers:
                    self._others_may_start.wait()
                if self._abandoned.is_set():
                    raise WorkerStartError(
                        spec.argv[0],
                        "the start was given up",
                        hint="the agent was stopped before all workers had started",
                    )
                workers.append(self._spawn(spec))
        except BaseException:
            self._destroy(workers)
            raise
        return workers

    def _spawn(self, spec: WorkerSpec) -> Worker:
        with contextlib.ExitStack() as on_error:
            try:
                (stdout_fd, stdout_write), (stderr_fd, stderr_write) = two_pipes(on_error)
                process = self._process(spec, stdout_write, stderr_write)
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                raise _start_error(spec, error) from error
            on_error.pop_all()
        if self._guard is not None:
            # At once, and not by the loop, which may be busy while the agent is killed.
            self._guard.add(process.pid)
        os.close(stdout_write)
        os.close(stderr_write)
        self._output.attach(spec.local_rank, spec.rank, stdout_fd, stderr_fd)
        return Worker(spec, process)

    def _process(self, spec: WorkerSpec, stdout: int, stderr: int) -> Process:
        forked: Process | None = None
        if self._forks is not None:
            with contextlib.ExitStack() as opened:
                stdin = 0
                if not spec.has_stdin:
                    stdin = os.open(os.devnull, os.O_RDWR)
                    opened.callback(os.close, stdin)
                forked = self._forks.take(spec, stdin, stdout, stderr)
        return _popen(spec, stdout, stderr) if forked is None else forked

    def _destroy(self, workers: Sequence[Worker]) -> None:
        for worker in workers:
            worker.destroy()
            if self._guard is not None:
                self._guard.remove(worker.pid)

    def _give_up_start(self, spawning: asyncio.Future[list[Worker]]) -> None:
        thread = self._thread
        assert thread is not None
        self._abandoned.set()
        self.start_others()
        given_up = self._given_up = thread.loop.create_future()

        def nothing_is_left(_: object = None) -> None:
            thread.close()
            given_up.set_result(None)

        def destroy_what_came(done: asyncio.Future[list[Worker]]) -> None:
            if done.cancelled() or done.exception() is not None:
                nothing_is_left()
            else:
                destroying = thread.call(functools.partial(self._destroy, done.result()))
                destroying.add_done_callback(nothing_is_left)

        spawning.add_done_callback(destroy_what_came)

    # -- the life of a started worker: in the loop -----------------------------------------------

    def _watch(self, worker: Worker) -> Worker:
        worker.exited = asyncio.get_running_loop().create_future()
        try:
            pidfd = guard_process.open_pidfd(worker.pid)
        except OSError:  # an old kernel, a sandbox, macOS
            _watch_in_thread(worker)
        else:
            _watch_pidfd(worker, pidfd)
        return worker

    async def _live(self, worker: Worker) -> None:
        status = await worker.exited
        oom = await self._was_oom(worker, status)
        # Not called here, because an exception of it must not prevent that the session is emptied.
        asyncio.get_running_loop().call_soon(self._tell, worker, _describe(worker, status, oom))
        await self._empty_session(worker)
        if self._guard is not None:
            self._guard.remove(worker.pid)  # while its pid cannot be reused
        worker.reap()
        self._changed.set()
        if self._thread is not None and all(w.reaped for w in self._workers):
            self._thread.close()

    def _tell(self, worker: Worker, exit: WorkerExit) -> None:
        worker.is_told = True
        self._exits(exit)

    async def _was_oom(self, worker: Worker, status: int) -> bool:
        counter, before = self._oom_counter, self._oom_before
        if status != -signal.SIGKILL or worker.killed_by_us or counter is None or before is None:
            return False
        return (await self._in_thread(counter.read) or 0) > before

    async def _empty_session(self, worker: Worker) -> None:
        """Wait until all processes of the worker's session have ended; kill them when due."""
        pause_s = _SEARCH_PAUSE_S
        while True:
            is_stopped = self._kill_at is not None and not worker.ends_by_itself
            kill = not is_stopped or self._is_grace_over
            if kill:
                worker.signal_group(signal.SIGKILL)
            search = functools.partial(_search_session, worker.pid, kill=kill)
            if not await self._in_thread(search):
                return
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _SEARCH_PAUSE_S_MAX)

    @property
    def _is_grace_over(self) -> bool:
        kill_at = self._kill_at
        return kill_at is not None and kill_at <= asyncio.get_running_loop().time()

    async def _finish(self, kill_wait_s: float) -> tuple[int, ...]:
        await self._spend_grace()
        self.signal_all(signal.SIGKILL)
        if self._lives:
            await asyncio.wait(self._lives, timeout=kill_wait_s)
        if self._given_up is not None:
            await asyncio.wait({self._given_up}, timeout=kill_wait_s)
        left = tuple(w.spec.local_rank for w in self._workers if not w.reaped)
        for life in self._lives:
            life.cancel()
        if left and self._thread is not None:
            self._thread.close()
        return left

    async def _spend_grace(self) -> None:
        loop = asyncio.get_running_loop()
        while not all(worker.reaped for worker in self._workers):
            assert self._kill_at is not None
            left_s = self._kill_at - loop.time()
            if left_s <= 0:
                return
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._changed.wait()

    def _in_thread(self, function: Callable[[], T]) -> asyncio.Future[T]:
        assert self._thread is not None
        return self._thread.call(function)


class _GroupThread:
    """Makes a group's slow calls one after the other, and is the parent of its workers.

    The kernel sends the parent-death signal when the *thread* that forked ends. So this thread must
    outlive the workers, which a thread of an executor might not. It is a daemon, so that the agent
    can end while a call hangs.
    """

    def __init__(self, name: str) -> None:
        self.loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.loop.create_future()
        self._jobs.put(functools.partial(settle, future, function))
        return future

    def close(self) -> None:
        """End the thread after the earlier calls."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def _search_session(session: int, *, kill: bool) -> bool:
    """Whether a process of the session is alive."""
    members = [p for p in guard_process.read_all_processes() if p.session == session]
    living = [member for member in members if member.alive]
    for member in living if kill else ():
        guard_process.kill_member(member.pid, session)
    for member in members:
        # An agent that is process 1 of its container inherits orphans, and must reap them.
        if not member.alive and member.parent == os.getpid() and member.pid != session:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(member.pid, os.WNOHANG)
    return bool(living)


# -- one process ---------------------------------------------------------------------------------


def two_pipes(on_error: contextlib.ExitStack) -> tuple[tuple[int, int], tuple[int, int]]:
    """Both or none, if `on_error` is closed. Raises OSError."""
    pipes = []
    for _ in range(2):
        pipes.append(os.pipe())
        for fd in pipes[-1]:
            on_error.callback(os.close, fd)
    return pipes[0], pipes[1]


def _popen(spec: WorkerSpec, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    with warnings_of_forks_ignored():
        return subprocess.Popen(
            spec.argv,
            env=spec.env,
            cwd=spec.cwd,
            stdin=None if spec.has_stdin else subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=functools.partial(before_exec, os.getpid(), OPEN_FILES, spec.cpus),
        )


@contextlib.contextmanager
def warnings_of_forks_ignored() -> Iterator[None]:
    """For Popen with before_exec.

    Python 3.12 warns of a fork beside other threads. The code between fork and exec takes no lock:
    it makes two system calls, through a library that is already loaded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_KILL = int(signal.SIGKILL)


# The limit with which this process was started. An agent raises it for its own connections, but a
# program may fail with that (select() only accepts descriptors below 1,024).
OPEN_FILES: Final = resource.getrlimit(resource.RLIMIT_NOFILE)


def before_exec(parent: int, open_files: tuple[int, int], cpus: frozenset[int] | None) -> None:
    """Runs in the child, between fork and exec."""
    resource.setrlimit(resource.RLIMIT_NOFILE, open_files)
    if cpus is not None and sys.platform == "linux":
        os.sched_setaffinity(0, cpus)
    if _libc is None:
        return
    _libc.prctl(_PR_SET_PDEATHSIG, _KILL, 0, 0, 0)
    # the parent died before the call above, so the kernel sends no signal
    if os.getppid() != parent:
        os._exit(1)


def _start_error(spec: WorkerSpec, error: Exception) -> WorkerStartError:
    path = spec.argv[0]
    if not isinstance(error, OSError):  # a zero byte in an argument, or a failed preexec_fn
        return WorkerStartError(path, str(error), hint="check the arguments and the environment")
    problem = error.strerror or str(error)
    if spec.cwd is not None and error.filename == spec.cwd and spec.cwd != path:
        return ProgramNotFoundError(
            path, f"{problem}: {spec.cwd!r}", hint="the working directory must exist on every node"
        )
    hint = _HINTS.get(error.errno or 0)
    if hint is None:
        hint = "check this machine's limits (ulimit -a) and memory"
        return WorkerStartError(path, problem, hint=hint)
    return ProgramNotFoundError(path, problem, hint=hint)


_NOT_EXECUTABLE = "make the file executable (chmod +x), or put its interpreter before it"
_HINTS = {
    errno.ENOENT: "check the path, also that of the interpreter in a script's first line",
    errno.ENOTDIR: "check the path: a part of it is not a directory",
    errno.EISDIR: "name a program, not a directory",
    errno.ELOOP: "check the path: its symbolic links go round in a circle",
    errno.ENAMETOOLONG: "check the path: it is too long",
    errno.EACCES: _NOT_EXECUTABLE,
    errno.EPERM: _NOT_EXECUTABLE,
    errno.ENOEXEC: "the file is not a program for this machine; a script needs a first line #!...",
}


def _watch_pidfd(worker: Worker, pidfd: int) -> None:
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        worker.exited.set_result(_status(worker, os.WNOHANG))

    loop.add_reader(pidfd, ended)


def _watch_in_thread(worker: Worker) -> None:
    ended = call_from_loop(lambda: _status(worker, 0))
    ended.add_done_callback(lambda _: worker.exited.set_result(ended.result()))


def _status(worker: Worker, options: int) -> int:
    """The exit status in the form of Popen: negative for a signal."""
    # Without waitid the pid is free at once, which is acceptable in development.
    if sys.platform == "darwin":
        return worker.process.wait()
    else:
        # Leave it as a zombie, because the number of a zombie cannot be reused for another group.
        result = os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT | options)
        assert result is not None, "the kernel reported that it has ended"
        return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def _describe(worker: Worker, status: int, oom: bool) -> WorkerExit:
    return WorkerExit(
        local_rank=worker.spec.local_rank,
        rank=worker.spec.rank,
        pid=worker.pid,
        returncode=status if status >= 0 else None,
        signal=-status if status < 0 else None,
        oom=oom,
    )
