"""The agent's side of the preloader: starts it, has it fork, and hands work to its forks.

preload_process.py is what runs in the preloader and its forks; warm_starts.py decides when there is
one. A preloader has a thread here, which waits for its messages. Workers are started by the thread
of their group (worker_processes.py), which takes a standby and sends it its environment and files.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from rallypoint.client.agent_client import socket_address
from rallypoint.core.printable import escaped
from rallypoint.core.values import repr_without
from rallypoint.launch import agent_events as on
from rallypoint.launch import guard_process, preload_process, warm_messages
from rallypoint.launch.worker_processes import (
    OPEN_FILES,
    GroupRegistry,
    WorkerSpec,
    before_exec,
    warnings_of_forks_ignored,
)
from rallypoint.settings.worker import AGENT_VARIABLE
from rallypoint.wire import local

PROBE_S: Final = 30.0
"""How many seconds an interpreter may take to answer. It imports no module of the user."""
IMPORT_S: Final = 300.0
"""How many seconds one module may take to be imported, with what it imports."""
HAND_OVER_S: Final = 10.0
"""How many seconds a standby may take to answer. It only has to wake up."""
ENDS_S: Final = 1.0
"""How many seconds it may take to end once it has closed its connection."""
_PAUSE_S: Final = 0.005
REFILL_AFTER_S: Final = 1.0
"""How long after a start new standbys are forked, so that they take no time from its workers."""
LINES_MAX: Final = 100
"""How many lines that modules write while they are imported are shown."""
LINE_BYTES_MAX: Final = 4_096
"""A longer line is shown as several, so that it takes no memory here."""
_FOLDER: Final = str(Path(preload_process.__file__).with_name("preloading"))
_PR_SET_CHILD_SUBREAPER: Final = 36


class PreloadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What every preloader of an agent is started with.

    `argv`: the workers' command. `env`: see worker_env.preloader_environment. `watched`: variables
    that differ between workers. `workers`: how many standbys are kept. `may_fail`: whether a failed
    import is no problem, because the program's fails as well. `has_stdin`: whether a worker reads
    the agent's standard input. `import_s`: how many seconds one module may take, with what it
    imports. `hand_over_s`: how many seconds a standby may take to answer.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    watched: tuple[str, ...]
    workers: int
    may_fail: bool = False
    has_stdin: bool = False
    import_s: float = IMPORT_S
    hand_over_s: float = HAND_OVER_S

    def __repr__(self) -> str:
        return repr_without(self, "env")


def with_hook(env: Mapping[str, str], **task: Any) -> dict[str, str]:
    """An environment in which Python runs preload_process.main at its start, for this task."""
    path = env.get("PYTHONPATH")
    hook = json.dumps({**task, "pythonpath": path})
    first = _FOLDER if not path else f"{_FOLDER}{os.pathsep}{path}"
    return {**env, "PYTHONPATH": first, preload_process.HOOK_VARIABLE: hook}


def watched_environment(env: Mapping[str, str], file: Path) -> dict[str, str]:
    """The environment of a worker that writes to this file which modules it imports."""
    return with_hook(env, do=preload_process.LEARN, file=str(file))


def modules_in(text: str, argv: Sequence[str]) -> tuple[str, ...]:
    """The modules that a watched worker has told, each once, without its program itself."""
    program = argv[argv.index("-m") + 1] if "-m" in argv else ""
    left_out = {program, f"{program}.__main__", "sitecustomize", "usercustomize"}
    names = dict.fromkeys(text.split("\n")[:-1])  # the last line may be incomplete
    return tuple(name for name in names if name not in left_out)


def program_folders(argv: Sequence[str]) -> tuple[str, ...]:
    """What Python puts first into `sys.path` for `python -u [-m] PROGRAM`."""
    if "-m" in argv[:3]:
        return (str(Path.cwd()),)
    script = Path(argv[2]).resolve()
    return (str(script if script.is_dir() else script.parent),)


def become_subreaper() -> None:
    """Let this process inherit the forks of its children. Raises OSError."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "this system has no subreapers")


class ForkedProcess:
    """A worker that was forked: a child of this process, with what Popen has of one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._has_ended = False

    def poll(self) -> int | None:
        """Reap it, if it has ended."""
        if not self._has_ended:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                    return None
            self._has_ended = True
        return 0

    def wait(self, timeout: float | None = None) -> int:
        """Reap it when it ends. Raises subprocess.TimeoutExpired."""
        ends_s = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if ends_s is not None and time.monotonic() > ends_s:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(_PAUSE_S)
        return 0


def _agent_of(spec: WorkerSpec) -> dict[str, str] | None:
    """Where a worker tells that its program has failed, and with which bytes."""
    path = spec.env.get(AGENT_VARIABLE)
    if not path:
        return None
    return {"address": socket_address(path), "word": local.encode(local.Fails()).hex()}


class Preloader:
    """The preloaders of one agent, one at a time.

    `tell` is called in the loop with what becomes of the present one, and `said` with lines for the
    user. Use it from the thread of the running loop; only `take` is called from the thread that
    starts workers.
    """

    def __init__(
        self,
        plan: PreloadPlan,
        *,
        tell: Callable[[on.PreloadEvent], None],
        said: Callable[[str], None],
        guard: GroupRegistry | None = None,
    ) -> None:
        self._plan = plan
        self._tell = tell
        self._said = said
        self._guard = guard
        self._loop = asyncio.get_running_loop()
        self._present: _Running | None = None
        self._settled = asyncio.Event()
        self._has_probed = False

    def start(self, modules: Sequence[str]) -> None:
        """Start a preloader in place of the last one."""
        self.close()
        self._settled.clear()
        running = self._present = _Running(self, self._plan, tuple(modules))
        name = "rallypoint-preloader"
        threading.Thread(target=running.run, name=name, daemon=True).start()

    async def settled(self) -> None:
        """Wait until the present one can fork, or never will."""
        await self._settled.wait()

    def close(self) -> None:
        """End the present one and its standbys. No more is told of it. Workers are left alone."""
        running, self._present = self._present, None
        if running is not None:
            running.close()
        self._settled.set()

    def take(self, spec: WorkerSpec, stdin: int, stdout: int, stderr: int) -> ForkedProcess | None:
        """Make a standby this worker. None if there is none, or it does not answer."""
        running = self._present
        process = running.take(spec, [stdin, stdout, stderr]) if running is not None else None
        # Without a preloader, the reason was said when it was refused or ended.
        if process is None and running is not None:
            self.say(warm_messages.of_no_standby(spec.local_rank))
        return process

    def refill(self) -> None:
        """Have as many standbys as workers again."""
        if self._present is not None:
            self._present.fill()

    def told(self, running: _Running, event: on.PreloadEvent) -> None:
        """From any thread."""

        def pass_on() -> None:
            if running is self._present:
                if not isinstance(event, on.PreloadReady):
                    self._present = None
                self._tell(event)
                self._settled.set()

        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(pass_on)

    def say(self, text: str) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._said, text)

    @property
    def guard(self) -> GroupRegistry | None:
        """Ends its processes if the agent ends."""
        return self._guard


class _Running:
    """One preloader, its thread, and its standbys."""

    def __init__(self, owner: Preloader, plan: PreloadPlan, modules: tuple[str, ...]) -> None:
        self._owner = owner
        self._plan = plan
        self._modules = modules
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._pid: int | None = None
        self._gates: deque[socket.socket] = deque()
        self._is_ready = self._is_closed = False

    # -- in the thread of this preloader ---------------------------------------------------------

    def run(self) -> None:
        try:
            self._probe()
            event = self._live()
        except (OSError, EOFError, ValueError, subprocess.SubprocessError) as error:
            event = on.PreloaderEnded(str(error) or type(error).__name__)
        self._owner.told(self, event)

    def _probe(self) -> None:
        """Raise OSError unless this Python runs the hook, since else it would run the program."""
        python = self._plan.argv[0]
        with contextlib.closing(_Started((python, "-u", "-c", "raise SystemExit(1)"))) as probe:
            probe.begin(self._plan, preload_process.PROBE)
            probe.sock.settimeout(PROBE_S)
            try:
                preload_process.receive_message(probe.sock)
            except (EOFError, TimeoutError):
                raise OSError(f"{python} does not import sitecustomize at its start") from None

    def _live(self) -> on.PreloadEvent:
        started = _Started(self._plan.argv)
        with contextlib.closing(started):
            started.begin(self._plan, preload_process.PRELOAD)
            pid = started.pid
            self._register(pid)
            try:
                with self._lock:
                    if self._is_closed:
                        return on.PreloaderEnded("it was stopped")
                    self._sock, self._pid = started.sock, pid
                output = functools.partial(_read_lines, started.output, self._owner.say)
                threading.Thread(target=output, name="rallypoint-preloader", daemon=True).start()
                return self._follow(started)
            finally:
                with self._lock:
                    self._sock, self._is_ready = None, False
                self.close()
                with self._lock:
                    self._pid = None
                self._unregister(pid)

    def _follow(self, started: _Started) -> on.PreloadEvent:
        sock, name = started.sock, ""
        task = {
            "modules": self._modules,
            "folders": program_folders(self._plan.argv),
            "watched": self._plan.watched,
            "may_fail": self._plan.may_fail,
        }
        preload_process.send_message(sock, task)
        sock.settimeout(self._plan.import_s)
        try:
            while True:
                message, _ = preload_process.receive_message(sock)
                if "importing" not in message:
                    break
                name = message["importing"]
        except TimeoutError:
            why = f"its import has not ended within {self._plan.import_s:g} s"
            return on.PreloadRefused((on.Problem((name,) if name else (), why),))
        except (EOFError, ConnectionError):
            where = f" in the import of {name}" if name else ""
            return on.PreloaderEnded(f"{started.how_it_ended()}{where}")
        problems = [msgspec.convert(each, on.Problem) for each in message["problems"]]
        if problems:
            return on.PreloadRefused(tuple(problems))
        sock.settimeout(None)
        with self._lock:
            self._is_ready = True
        self.fill()
        ready = on.PreloadReady(message["modules"], message["took_s"], message["memory_bytes"])
        self._owner.told(self, ready)
        with contextlib.suppress(EOFError, OSError):
            preload_process.receive_message(sock)  # it sends nothing more
        return on.PreloaderEnded(started.how_it_ended())

    # -- from any thread -------------------------------------------------------------------------

    def fill(self) -> None:
        while self._fork_if(lambda: len(self._gates) < self._plan.workers):
            pass

    def _fork_if(self, is_wanted: Callable[[], bool]) -> bool:
        """Ask for one more standby. It is a moment before it is at its gate."""
        with self._lock:
            if self._sock is None or not self._is_ready or not is_wanted():
                return False
            ours, its = socket.socketpair()
            with its:
                try:
                    preload_process.send_message(self._sock, {"fork": True}, [its.fileno()])
                except OSError:
                    ours.close()
                    return False
            self._gates.append(ours)
            return True

    def take(self, spec: WorkerSpec, files: list[int]) -> ForkedProcess | None:
        self._fork_if(lambda: not self._gates)
        with self._lock:
            gate = self._gates.popleft() if self._gates else None
        if gate is None:
            return None
        with gate:
            gate.settimeout(self._plan.hand_over_s)
            pid = 0
            try:
                message, _ = preload_process.receive_message(gate)
                pid = message["pid"]
                # Before its program runs, which may start processes at once: the kernel ends only
                # the worker itself if the agent is killed.
                self._register(pid)
                work = {"env": dict(spec.env), "cwd": spec.cwd, "agent": _agent_of(spec)}
                preload_process.send_message(gate, work, files)
                preload_process.receive_message(gate)
            except (OSError, EOFError) as error:
                _kill_fork(pid)
                self._unregister(pid)
                if isinstance(error, TimeoutError):
                    self._give_up()
                return None
            return ForkedProcess(pid)

    def _register(self, pid: int) -> None:
        if self._owner.guard is not None:
            self._owner.guard.add(pid)

    def _unregister(self, pid: int) -> None:
        if self._owner.guard is not None:
            self._owner.guard.remove(pid)

    def _give_up(self) -> None:
        """A standby does not answer: the others are not waited for as well, one after the other."""
        self.close()
        why = f"a fork of it has not answered for {self._plan.hand_over_s:g} s"
        self._owner.told(self, on.PreloaderEnded(why))

    def close(self) -> None:
        with self._lock:
            self._is_closed, self._is_ready = True, False
            gates, self._gates = list(self._gates), deque()
            if self._sock is not None:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
            if self._pid is not None:
                # It may hang in an import. Its number is its own until `_live` has waited for it.
                guard_process.kill_group(self._pid)
        for gate in gates:
            gate.close()


def _kill_fork(pid: int) -> None:
    """Kill a fork that does not answer. Its number may be another's if it has ended long ago."""
    process = guard_process.read_process(pid)
    if process is not None and process.parent == os.getpid() and process.session == pid:
        guard_process.kill_group(pid)


class _Started:
    """A process with the hook: its socket, and what it writes."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = argv
        self.sock, self._its = socket.socketpair()
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    @property
    def output(self) -> IO[bytes]:
        assert self._popen is not None
        assert self._popen.stdout is not None
        return self._popen.stdout

    def begin(self, plan: PreloadPlan, do: str) -> None:
        """Start it. Raises OSError."""
        fd = self._its.fileno()
        is_probe = do == preload_process.PROBE
        with warnings_of_forks_ignored():
            self._popen = subprocess.Popen(
                self._argv,
                env=with_hook(plan.env, do=do, fd=fd),
                stdin=subprocess.DEVNULL if is_probe or not plan.has_stdin else None,
                stdout=subprocess.DEVNULL if is_probe else subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(fd,),
                preexec_fn=functools.partial(before_exec, os.getpid(), OPEN_FILES, None),
            )
        self._its.close()

    def how_it_ended(self) -> str:
        """How it ended, if it does now. It stays a zombie, so that its number is its own."""
        ends_s = time.monotonic() + ENDS_S
        while time.monotonic() < ends_s:
            result = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if result is not None:
                is_exit = result.si_code == os.CLD_EXITED
                return f"{'exit code' if is_exit else 'signal'} {result.si_status}"
            time.sleep(_PAUSE_S)
        return "it has closed its connection"

    def close(self) -> None:
        """End it, and wait for it."""
        self.sock.close()
        self._its.close()
        if self._popen is not None:
            guard_process.kill_group(self._popen.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(guard_process.KILL_WITHIN_S)


def _read_lines(output: IO[bytes], say: Callable[[str], None]) -> None:
    """Pass on what modules write, up to a limit, and read the rest so that none of them waits."""
    with output:
        for number, line in enumerate(iter(lambda: output.readline(LINE_BYTES_MAX), b"")):
            if number < LINES_MAX:
                say(warm_messages.of_output(escaped(line.decode(errors="replace").rstrip())))


def is_possible() -> bool:
    """Whether this system has what warm starts need."""
    return sys.platform == "linux"
