"""The preloader: a process that imports modules once, and forks workers that have them.

The agent starts it with the workers' own command line, as in `python -u train.py`, and with a
folder in PYTHONPATH whose sitecustomize.py calls `main` here, before Python looks at the program.
So the interpreter has the flags and variables of a worker, and the process goes no further than
this file. A *standby* is a fork of it that waits at its gate, a socket from the agent. When the
agent sends what differs from round to round (environment, folder, files), the fork returns from
`main`, and Python goes on to run the program as in a process of its own: `__main__`, `sys.path`,
tracebacks and exit codes are Python's own.

The parent of a worker must be the agent, which waits for it. So a fork is made twice: the process
between ends at once, and the agent, a *subreaper*, inherits its child (prctl(2)).

This file runs in users' processes: it imports little, and nothing of this package. It must not
decide whether warm starts are used; warm_starts.py does.
"""

# This code must leave no module in a worker that it would not have otherwise, if possible.
# ruff: noqa: PTH106, PTH108, PTH110, PTH112, PTH115, PTH118, PTH123, PTH208

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import stat
import struct
import sys
import tempfile
import threading
import time
import traceback
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType
    from typing import Any

HOOK_VARIABLE = "RALLYPOINT_PRELOAD_HOOK"
"""What this process is to do, as JSON. It is removed from the environment at once."""
PROBE, PRELOAD, LEARN = "probe", "preload", "learn"
CANARY_S = 5.0
"""How many seconds a fork may do nothing while it has a matrix product and a small collective to
do. On a busy machine it may need longer in all, as long as it goes on.
"""
CANARY_S_MAX = 60.0
"""How many seconds it may take in all: one that hangs may also spin."""
PARENT_WITHIN_S = 10.0
"""How many seconds the kernel may take to give a fork its new parent."""
_HARMLESS_DEVICES = frozenset(
    {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"}
)
WORD_S = 1.0
"""How many seconds a worker that ends may take to tell the agent why."""
_RUNS_MODULES = ("_run_module_as_main", "runpy")
"""The function that runs the program of `python -m`, and its module."""
_PR_SET_PDEATHSIG = 1
_LENGTH = struct.Struct("!I")
_PAUSE_S = 0.0005
_LOOK_S = 0.1
PRELOADER_NAME, STANDBY_NAME = b"rally-preloader", b"rally-standby"
"""What `ps -o comm` and `top` show: the kernel keeps 15 bytes. Their arguments are a worker's."""
_NAME_FILE = "/proc/self/comm"
_SEVERAL = 20
"""Who reads more of the variables in which workers differ reads them all."""


# -- both sides ----------------------------------------------------------------------------------


def send_message(sock: socket.socket, message: object, fds: list[int] | None = None) -> None:
    """Send a value as JSON, and copies of descriptors with its first bytes."""
    data = json.dumps(message).encode()
    data = _LENGTH.pack(len(data)) + data
    sent = socket.send_fds(sock, [data], fds) if fds else sock.send(data)
    if sent < len(data):
        sock.sendall(data[sent:])


def receive_message(sock: socket.socket, fds_max: int = 0) -> tuple[Any, list[int]]:
    """The next value, and its descriptors. Raises EOFError when the peer has closed."""
    head, fds, _, _ = socket.recv_fds(sock, _LENGTH.size, fds_max)
    head += _read(sock, _LENGTH.size - len(head)) if head else b""
    if not head:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    return json.loads(_read(sock, length)), list(fds)


def _read(sock: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = sock.recv(min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


# -- in a process that has the hook --------------------------------------------------------------


def main(folder: str) -> None:
    """Do what HOOK_VARIABLE says. Returns in a worker; raises what the worker's own start raises.

    `folder`: where sitecustomize.py was found; it is removed from `sys.path`.
    """
    task = json.loads(os.environ.pop(HOOK_VARIABLE))
    sys.path[:] = [each for each in sys.path if each != folder]
    sys.path_importer_cache.pop(folder, None)
    if task["pythonpath"] is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = task["pythonpath"]
    if task["do"] == LEARN:
        _report_modules(task["file"])
        error = _import_next_sitecustomize()
    else:
        # Whatever goes wrong, this process must not run the user's program. Only a worker returns.
        try:
            error = _help(task)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            os._exit(70)
    if error is not None:
        raise error


def _help(task: dict[str, Any]) -> Exception | None:
    agent = socket.socket(fileno=task["fd"])
    agent.set_inheritable(False)
    if task["do"] == PROBE:
        send_message(agent, {})
        os._exit(0)
    atexit.register(_last_word.send_if_failed)
    error = _import_next_sitecustomize()
    _Preloader(agent).run().pass_through()
    return error


def _import_next_sitecustomize() -> Exception | None:
    """Import the sitecustomize that Python would have found without ours.

    Returns the error that Python would have got. One about a missing module makes the import of
    ours fail, and Python goes on as without any.
    """
    sys.modules.pop("sitecustomize", None)
    try:
        importlib.import_module("sitecustomize")
    except Exception as error:  # noqa: BLE001 - Python itself reports it
        return error
    return None


# -- a worker that tells which modules it imports ------------------------------------------------


def _report_modules(path: str) -> None:
    with contextlib.suppress(OSError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        sys.meta_path.insert(0, _Reporter(os.open(path, flags, 0o600)))


class _Reporter:
    """Finds modules as the other finders do, and writes the names of the installed ones.

    Each at once: a worker may be killed at any time.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pid = os.getpid()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find is not None else None
            if spec is not None:
                if os.getpid() == self._pid and _is_installed(name, spec.origin):
                    self._report_when_imported(name, spec.loader)
                return spec
        return None

    def _report_when_imported(self, name: str, loader: Any) -> None:
        """A program may only look whether there is a module. An import calls `create_module`."""
        create: Any = getattr(loader, "create_module", None)

        def report(spec: Any) -> Any:
            with contextlib.suppress(AttributeError):
                del loader.create_module
            with contextlib.suppress(OSError):
                os.write(self._fd, name.encode() + b"\n")
            return create(spec)

        if create is not None:
            with contextlib.suppress(AttributeError):  # a loader of another kind
                loader.create_module = report


def _is_installed(name: str, origin: object) -> bool:
    """Whether the module is of a package that is installed, and not the user's own program."""
    if name.partition(".")[0] == "rallypoint":
        return True
    parts = origin.split("/") if isinstance(origin, str) else ()
    return "site-packages" in parts or "dist-packages" in parts


# -- the preloader -------------------------------------------------------------------------------


class Problem:
    """Why a module is not preloaded. `modules`: those that cannot be, with what imports them."""

    def __init__(self, modules: list[str], why: str, detail: str = "") -> None:
        self.modules = modules
        self.why = why
        self.detail = detail

    def as_message(self) -> dict[str, Any]:
        """As JSON."""
        return {"modules": self.modules, "why": self.why, "detail": self.detail}


class _Preloader:
    """Imports what the agent asks for, tells how that went, and forks until the agent has ended."""

    def __init__(self, agent: socket.socket) -> None:
        self._agent = agent
        self._agent_pid = os.getppid()

    def run(self) -> _Gate:
        """Returns only in a fork that the agent has made a worker."""
        task, _ = receive_message(self._agent)
        self._name = _named(PRELOADER_NAME)
        before = dict(os.environ)
        began_s = time.monotonic()
        problems = hidden_modules(task["folders"])
        if not problems:
            with _without_collections():
                problems = import_all(
                    task["modules"],
                    task["folders"],
                    frozenset(task["watched"]),
                    self._say_importing,
                    may_fail=task["may_fail"],
                )
        took_s = time.monotonic() - began_s
        self._changes = _changes(before, dict(os.environ))
        name = _named(PRELOADER_NAME)
        if name != PRELOADER_NAME:
            self._name = name  # An import has set it, as in a cold worker.
        self._flush()
        _freeze()
        if not problems:
            problems += self._canary()
        answer = {
            "problems": [each.as_message() for each in problems],
            "modules": len(sys.modules),
            "took_s": took_s,
            "memory_bytes": memory_bytes(),
        }
        send_message(self._agent, answer)
        if problems:
            os._exit(0)
        while True:
            try:
                _, fds = receive_message(self._agent, 1)
            except (EOFError, ConnectionError):
                os._exit(0)
            gate = self._fork(fds[0])
            if gate is not None:
                return gate

    def _say_importing(self, name: str) -> None:
        send_message(self._agent, {"importing": name})

    def _flush(self) -> None:
        """What is in a buffer now would be written by each fork once more."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        ctypes.CDLL(None).fflush(None)

    def _fork(self, fd: int) -> _Gate | None:
        """Fork twice. Returns the gate in the fork; None in this process."""
        between = fork()
        if between > 0:
            os.close(fd)
            os.waitpid(between, 0)
            return None
        if fork() > 0:
            os._exit(0)
        self._agent.close()
        gate = _Gate(socket.socket(fileno=fd), self._agent_pid, self._changes, self._name)
        gate.wait()
        return gate

    def _canary(self) -> list[Problem]:
        """Whether forks can compute. Libraries with threads of their own may hang in a fork."""
        folder = tempfile.mkdtemp(prefix="rallypoint-canary-")
        path = os.path.join(folder, "store")
        pids = [_fork_to(lambda rank=rank: try_out(rank, path)) for rank in range(2)]  # type: ignore[misc]
        ends_s = time.monotonic() + CANARY_S_MAX
        codes = [_wait_or_kill(pid, ends_s) for pid in pids]
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)
        if codes == [0, 0]:
            return []
        if None in codes:
            why = (
                f"a fork of them has hung for {CANARY_S:g} s in a matrix product or a small "
                "collective: has one of them computed in parallel while it was imported?"
            )
        else:
            why = f"a fork of them failed in a matrix product or a small collective: {codes}"
        return [Problem([], why)]


def _freeze() -> None:
    """Let the garbage collector of a fork leave alone what is there now (docs of gc.freeze).

    So this memory stays shared. But the module of the program is to be destroyed at the end, like
    that of a cold worker: else its objects are not, and files that it has not closed lose what is
    in their buffers. Its functions refer to it and it to them, so only the collector does that.
    """
    program = sys.modules["__main__"]
    kept = [each for each in (program, vars(program)) if gc.is_tracked(each)]
    for each in kept:
        ctypes.pythonapi.PyObject_GC_UnTrack(ctypes.py_object(each))
    gc.freeze()
    for each in kept:
        if not gc.is_tracked(each):
            ctypes.pythonapi.PyObject_GC_Track(ctypes.py_object(each))


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Objects of imports stay, so looking for garbage among them is a waste of time."""
    before = gc.get_threshold()
    gc.set_threshold(0, *before[1:])
    try:
        yield
    finally:
        if gc.get_threshold() == (0, *before[1:]):  # else an import has set its own
            gc.set_threshold(*before)


def hidden_modules(folders: list[str]) -> list[Problem]:
    """Modules of the program with names that this file has loaded from Python's library."""
    for folder in folders:
        for entry in sorted(os.listdir(folder) if os.path.isdir(folder) else ()):
            name, dot, end = entry.partition(".")
            spec = getattr(sys.modules.get(name), "__spec__", None)
            is_package = not dot and os.path.exists(os.path.join(folder, name, "__init__.py"))
            is_module = end == "py" or is_package
            if is_module and spec is not None and str(spec.origin).startswith("/"):
                why = f"{entry} in {folder} has the name of a module of Python's that is loaded"
                return [Problem([], why)]
    return []


def _changes(before: dict[str, str], after: dict[str, str]) -> dict[str, str | None]:
    """What imports have changed in the environment. None: removed."""
    changed: dict[str, str | None] = {n: v for n, v in after.items() if before.get(n) != v}
    return changed | {name: None for name in before if name not in after}


def memory_bytes() -> int:
    """The resident memory of this process."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def fork() -> int:
    """os.fork. This process has one thread of Python's; those of libraries were looked at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _fork_to(work: Callable[[], None]) -> int:
    pid = fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def _wait_or_kill(pid: int, ends_s: float) -> int | None:
    """The exit status; None if it hangs, or has not ended in time."""
    pidfd = os.pidfd_open(pid)  # type: ignore[attr-defined,unused-ignore]
    used, hangs_at_s = -1, 0.0
    try:
        while not (ready := select.select([pidfd], [], [], _LOOK_S)[0]):
            now_s, before, used = time.monotonic(), used, _cpu_ticks(pid)
            if used != before:
                hangs_at_s = now_s + CANARY_S
            if now_s > min(hangs_at_s, ends_s):
                os.kill(pid, signal.SIGKILL)
                break
    finally:
        os.close(pidfd)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) if ready else None


def _cpu_ticks(pid: int) -> int:
    """How much of a processor this child has used."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def try_out(rank: int, path: str) -> None:
    """Compute as a worker may, with the libraries that are imported. In a fork."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        ones = numpy.ones((256, 256))
        if (ones @ ones)[0, 0] != 256:
            raise RuntimeError("numpy: a wrong matrix product")
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    ones = torch.ones(256, 256)
    if (ones @ ones)[0, 0] != 256:
        raise RuntimeError("torch: a wrong matrix product")
    dist: Any = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_gloo_available():
        return
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    group = dist.ProcessGroupGloo(dist.FileStore(path, 2), rank, 2, options)
    one = torch.ones(1)
    group.allreduce([one]).wait()
    if one.item() != 2:
        raise RuntimeError("torch.distributed: a wrong sum")


# -- imports that are watched --------------------------------------------------------------------


def import_all(
    modules: list[str],
    folders: list[str],
    watched: frozenset[str],
    importing: Callable[[str], None],
    *,
    may_fail: bool = False,
) -> list[Problem]:
    """Import these, and return what makes a fork unsafe or unlike a cold worker.

    `folders`: where the program will find modules first. `watched`: variables that differ between
    workers. `importing` is called with the name of each module before its import. `may_fail`:
    whether a failed import is no problem.
    """
    problems: list[Problem] = []
    for name in modules:
        if name in sys.modules:
            continue
        importing(name)
        problems += _import_one(name, folders, watched, may_fail=may_fail)
    return problems


def _import_one(
    name: str, folders: list[str], watched: frozenset[str], *, may_fail: bool
) -> list[Problem]:
    before, failed = _State(), None
    with _in_path(folders), _watched(watched) as reads, _watched_threads() as threads:
        try:
            importlib.import_module(name)
        except BaseException as error:  # noqa: BLE001 - SystemExit, too, is an end of the import
            failed = Problem([name], f"its import fails: {_short(error)}", _traceback_of(error))
    found = [] if failed is None or may_fail else [failed]
    if reads:  # That may be the reason of the failure, too.
        found = [_of_reads(name, reads)]
    if len(sys._current_frames()) > before.threads:
        stack = threads[0] if threads else []
        by = stack[0] if stack else name
        found.append(Problem(_with_importers(name, stack), f"{by} starts a thread of Python"))
    found += [Problem([name], why) for why in before.new_problems()]
    return found


def _of_reads(name: str, reads: dict[str, list[str]]) -> Problem:
    importers = [each for stack in reads.values() for each in stack]
    by = importers[0] if importers else name
    names = sorted(reads)
    what = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} other variables"
    if len(names) > _SEVERAL:
        what = "all variables of its environment"
    why = f"{by} reads {what} while it is imported, and workers differ in them"
    return Problem(_with_importers(name, importers), why)


def _short(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return text.splitlines()[0]


def _traceback_of(error: BaseException) -> str:
    """Its traceback without the frames of this file."""
    walked = error.__traceback__
    while walked is not None and walked.tb_frame.f_code.co_filename == __file__:
        walked = walked.tb_next
    return "".join(traceback.format_exception(type(error), error, walked)).rstrip()


def _with_importers(name: str, stack: list[str]) -> list[str]:
    return list(dict.fromkeys([*stack, name]))


def modules_being_imported(frame: FrameType | None) -> list[str]:
    """The modules whose code calls this frame, the innermost first."""
    found = []
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            name = frame.f_globals.get("__name__")
            if isinstance(name, str) and name not in ("site", "sitecustomize", "__main__"):
                found.append(name)
        frame = frame.f_back
    return found


@contextlib.contextmanager
def _in_path(folders: list[str]) -> Iterator[None]:
    sys.path[:0] = folders
    try:
        yield
    finally:
        for folder in folders:
            with contextlib.suppress(ValueError):
                sys.path.remove(folder)


@contextlib.contextmanager
def _watched(names: frozenset[str]) -> Iterator[dict[str, list[str]]]:
    """Which of these variables are read, and by which modules.

    Meanwhile `os.environ` has each of them, so that a copy of it reads them, too. The environment
    of the process does not.
    """
    reads: dict[str, list[str]] = {}
    original = type(os.environ)
    data: Any = vars(os.environ)["_data"]
    added = [os.fsencode(name) for name in names if os.fsencode(name) not in data]
    data.update(dict.fromkeys(added, b""))

    class Watched(original):  # type: ignore[misc,valid-type]
        def __getitem__(self, name: str) -> str:
            if name in names and name not in reads:
                reads[name] = modules_being_imported(sys._getframe(1))
            return super().__getitem__(name)  # type: ignore[no-any-return]

    os.environ.__class__ = Watched
    try:
        yield reads
    finally:
        os.environ.__class__ = original
        for name in added:
            data.pop(name, None)


@contextlib.contextmanager
def _watched_threads() -> Iterator[list[list[str]]]:
    """By which modules threads are started."""
    started: list[list[str]] = []
    original = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        started.append(modules_being_imported(sys._getframe(1)))
        original(thread)

    threading.Thread.start = start  # type: ignore[method-assign,assignment]
    try:
        yield started
    finally:
        threading.Thread.start = original  # type: ignore[method-assign]


class _State:
    """What a fork cannot share with its parent: files of some kinds, and processes."""

    def __init__(self) -> None:
        self.threads = len(sys._current_frames())
        self._files = dict(_open_files())
        self._had_children = _has_children()

    def new_problems(self) -> list[str]:
        problems = [
            f"it keeps {target} open, which forks would share"
            for fd, target in _open_files()
            if self._files.get(fd) != target and _is_unsafe(fd)
        ]
        if _has_children() and not self._had_children:
            problems.append("it starts a process, which would not be a fork's child")
        return problems


def _open_files() -> Iterator[tuple[int, str]]:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the folder itself
            yield int(name), os.readlink(f"/proc/self/fd/{name}")


def _is_unsafe(fd: int) -> bool:
    try:
        mode = os.fstat(fd).st_mode
        target = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return False
    if stat.S_ISCHR(mode):
        name = target.rpartition("/")[2]
        return name not in _HARMLESS_DEVICES and not target.startswith("/dev/pts/")
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


# -- a fork that becomes a worker ----------------------------------------------------------------


class _Gate:
    """Where a fork waits for its work."""

    def __init__(
        self, sock: socket.socket, agent_pid: int, changes: dict[str, str | None], name: bytes
    ) -> None:
        """`name`: that of the process when it is a worker."""
        self._sock = sock
        self._agent_pid = agent_pid
        self._changes = changes
        self._name = name

    def wait(self) -> None:
        """Be a child of the agent, and wait. The process ends here if the agent does."""
        os.setsid()
        _named(STANDBY_NAME)
        ends_s = time.monotonic() + PARENT_WITHIN_S
        while os.getppid() != self._agent_pid:
            if time.monotonic() > ends_s:
                os._exit(1)
            time.sleep(_PAUSE_S)
        # The kernel sends it at a change of the parent, so that it is set only now.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != self._agent_pid:
            os._exit(1)
        seed_anew()
        try:
            send_message(self._sock, {"pid": os.getpid()})
            self._given, self._fds = receive_message(self._sock, 3)
        except (EOFError, ConnectionError):
            os._exit(0)

    def pass_through(self) -> None:
        """Take over what the agent has sent."""
        _named(self._name)
        for number, fd in enumerate(self._fds):
            os.dup2(fd, number)
            os.close(fd)
        if self._given["cwd"] is not None:
            os.chdir(self._given["cwd"])
        env: dict[str, str] = self._given["env"]
        for name, text in self._changes.items():
            if text is None:
                env.pop(name, None)
            else:
                env[name] = text
        _set_environment(env)
        if self._given["agent"] is not None:
            _last_word.keep(**self._given["agent"])
        send_message(self._sock, {})
        self._sock.close()


def _named(name: bytes) -> bytes:
    """Give this process a name of at most 15 bytes. Returns the one that it had; b"" if unknown."""
    before = b""
    try:
        with open(_NAME_FILE, "rb") as file:
            before = file.read().removesuffix(b"\n")
        if name:
            with open(_NAME_FILE, "wb") as file:
                file.write(name)
    except OSError:
        pass  # It is for people only.
    return before


class _LastWord:
    """Tells the agent that an exception has left the program, before this process ends.

    Python calls it last of all that was registered with `atexit`, since it was registered first. So
    all code of the program that may run at its end has run, but destructors. Only Python's own end
    follows. With large libraries it takes a second, in which the other nodes can stop already.
    """

    def __init__(self) -> None:
        self._pid = 0
        self._address = ""
        self._word = b""

    def keep(self, address: str, word: str) -> None:
        """This process is a worker now. `word`: what to send to this address, in hex."""
        self._pid, self._address, self._word = os.getpid(), address, bytes.fromhex(word)

    def send_if_failed(self) -> None:
        # A process that the worker has forked may end in the same way.
        if os.getpid() != self._pid or not has_failed():
            return
        for stream in (sys.stdout, sys.stderr):  # As Python does next. The agent reads the text.
            with contextlib.suppress(Exception):
                stream.flush()
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as agent:
            agent.settimeout(WORD_S)
            agent.connect(self._address)
            agent.sendall(self._word)


_last_word = _LastWord()


def has_failed() -> bool:
    """Whether an exception has left the program, which makes Python end with exit code 1.

    False for SystemExit and KeyboardInterrupt, which end it otherwise. `sys.last_traceback` alone
    does not tell: consoles and C code also set it, for errors after which the program goes on.
    """
    trace = getattr(sys, "last_traceback", None)
    error = getattr(sys, "last_value", None)
    if trace is None or isinstance(error, KeyboardInterrupt) or sys.flags.inspect:
        return False
    if os.environ.get("PYTHONINSPECT"):  # Python reads commands now, and ends as these say.
        return False
    frame: FrameType = trace.tb_frame
    is_script = (frame.f_code.co_name, frame.f_globals.get("__name__")) == ("<module>", "__main__")
    is_module = (frame.f_code.co_name, frame.f_globals.get("__name__")) == _RUNS_MODULES
    return frame.f_back is None and (is_script or is_module)


def _set_environment(env: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)
    # What `os` has made os.environ of, at the start.
    posix: Any = sys.modules.get("posix")
    if posix is not None:
        posix.environ.clear()
        posix.environ.update({os.fsencode(n): os.fsencode(v) for n, v in env.items()})


def seed_anew() -> None:
    """Seed the random numbers of a fork with new entropy, as its own start would have.

    Python has done that with `random` in each fork.
    """
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.seed()
    process: Any = sys.modules.get("multiprocessing.process")
    if process is not None:
        key = process.AuthenticationString(os.urandom(32))
        process.current_process()._config["authkey"] = key
