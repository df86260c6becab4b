"""Runs a peer's script at one size, with a time limit, and keeps its output.

If a peer hangs, ends or is not installed, the result is a reason and no figure.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from benchmarks import wait_idle
from benchmarks.peers import common, install
from benchmarks.peers.catalogue import PROCESS_BYTES, Peer

HELD: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NOT_INSTALLED: Final = "not installed (`run.py --install` does it)"
REASON_CHARS_MAX: Final = 160
MEMORY: Final = Path("/dev/shm")
"""Where Linux has a disk in memory."""
END_S: Final = 10.0
"""How long killed processes may take to end."""


@dataclass
class Outcome:
    """`values`: by figure, one value for each repeat, in ms. `why_not`: what stopped the script.

    `wanted`: by figure, how many values there should be. `busy`: how many other processes were
    ready to run right before it, from wait_idle.wait; None if it did not run, or if that cannot be
    read.
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    why_not: str = ""
    version: str = ""
    carried: str = ""
    out_of_time: bool = False
    wanted: dict[str, int] = field(default_factory=dict)
    event_loop: str = ""
    busy: int | None = None


def run_script(
    python: Path | str, module: str, arguments: Sequence[object], deadline_s: float
) -> Outcome:
    """Run `python -m MODULE ARGUMENTS`. The outcome is its last output.

    None of its processes or temporary files is left afterwards, also when it fails or this raises.
    """
    command = [str(python), "-m", module, *map(str, arguments)]
    code, out, errors = _run_in_a_folder(command, deadline_s)
    answer = _last_answer(out)
    outcome = Outcome()
    if answer is not None and "cannot" in answer:
        return Outcome(why_not=answer["cannot"])
    if answer is not None:
        outcome = Outcome(
            answer["values"],
            version=answer["version"],
            carried=answer["carried"],
            wanted=answer.get("wanted", {}),
            event_loop=answer.get("event_loop", ""),
        )
    if code is None:
        outcome.out_of_time = True
        outcome.why_not = f"not within {deadline_s:g} s"
    elif code != 0 or answer is None:
        outcome.why_not = f"ended with exit code {code}: {_last_line(errors)}"[:REASON_CHARS_MAX]
    return outcome


def _run_in_a_folder(command: Sequence[str], deadline_s: float) -> tuple[int | None, bytes, str]:
    """Its exit code, None if time ran out; what it wrote to stdout; and to stderr."""
    where = MEMORY if MEMORY.is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="peers-", dir=where) as folder,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as errors,
    ):
        # A signal that came while the script is being started would leave it running.
        let_through = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
        try:
            process = _started(command, folder, out, errors, let_through)
        except BaseException:
            signal.pthread_sigmask(signal.SIG_SETMASK, let_through)
            raise
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, let_through)
            code: int | None = process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end_group(process)
        out.seek(0)
        errors.seek(0)
        return code, out.read(), errors.read().decode(errors="replace")


def _started(
    command: Sequence[str], folder: str, out: IO[bytes], errors: IO[bytes], let_through: set[Any]
) -> subprocess.Popen[bytes]:
    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, let_through)
        if sys.platform == "linux":  # So it ends also if this process is killed.
            common.die_with_parent()

    return subprocess.Popen(
        command,
        env=_environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=errors,
        start_new_session=True,
        preexec_fn=prepare,
    )


def _environment(folder: str) -> dict[str, str]:
    """This process's environment with this checkout to import; no Rallypoint or proxy settings.

    `folder`: where the script's temporary files go.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RALLYPOINT_", "PYTHON")) and not name.lower().endswith("_proxy")
    }
    path = os.pathsep.join((str(install.ROOT), str(install.ROOT / "src")))
    return kept | {"PYTHONPATH": path, "TMPDIR": folder}


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the script and all processes that it started, and wait until they have ended.

    They are a process group of their own. What is still there after END_S is a zombie that its
    parent has not reaped.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    ends_s = time.monotonic() + END_S
    # macOS raises EPERM for a group in which all processes have ended.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < ends_s:
            os.killpg(process.pid, 0)
            time.sleep(0.01)


def _last_answer(out: bytes) -> dict[str, Any] | None:
    """The last whole line of JSON."""
    for line in reversed(out.splitlines()):
        if line.startswith(b"{"):
            try:
                answer = json.loads(line)
            except ValueError:
                continue
            if isinstance(answer, dict) and ("cannot" in answer or "values" in answer):
                return answer
    return None


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


# -- what is fixed beforehand ----------------------------------------------------------------------


class Bench:
    """All peers on this machine, and the sizes that need not be tried any more."""

    def __init__(self, folder: Path, deadline_s: float, repeats: int) -> None:
        self._folder = folder
        self._deadline_s = deadline_s
        self._repeats = repeats
        self._ended: dict[str, tuple[int, str]] = {}

    def python(self, peer: Peer) -> Path | None:
        """The interpreter that has it; None if it is not installed."""
        if peer.environment is None:
            return Path(sys.executable)
        return install.python_of(peer.environment, self._folder)

    def meet(self, peer: Peer, nodes: int) -> Outcome:
        """One peer at one size."""
        python = self.python(peer)
        if python is None:
            return Outcome(why_not=NOT_INSTALLED)
        if peer.name in self._ended:
            size, why = self._ended[peer.name]
            return Outcome(why_not=f"not tried: {size:,} nodes, {why}")
        if peer.a_process_each and nodes * PROCESS_BYTES > available_bytes():
            return Outcome(why_not=f"{nodes:,} processes do not fit into this machine's memory")
        outcome = self._run(python, peer, ("meet", nodes, self._repeats), self._deadline_s)
        if outcome.out_of_time:
            self._ended[peer.name] = (nodes, outcome.why_not)
        return outcome

    def death(self, peer: Peer, kind: str, repeats: int, deadline_s: float) -> Outcome:
        """How soon there is a new round after a death, at the peer's defaults."""
        python = self.python(peer)
        if python is None:
            return Outcome(why_not=NOT_INSTALLED)
        if peer.death:
            return Outcome(why_not=peer.death)
        return self._run(python, peer, ("death", kind, repeats), deadline_s)

    def _run(
        self, python: Path, peer: Peer, arguments: Sequence[object], deadline_s: float
    ) -> Outcome:
        busy = wait_idle.wait()
        outcome = run_script(python, f"benchmarks.peers.{peer.module}", arguments, deadline_s)
        outcome.busy = busy
        return outcome


def available_bytes() -> int:
    """The memory that is free without swapping (Linux); elsewhere there is no limit."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return sys.maxsize
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024
