"""What a worker's end says of its cause, read from its exit, its last lines and torch's error file.

Pure. A communication error of one worker is most often the consequence of another's end, so telling
the two apart is what lets a run end with the cause. The table below is all that is known; what no
row matches is the program's own error.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .workers import WorkerExit

FailureKind = Literal["signal", "oom", "exception", "communication"]

MESSAGE_CHARACTERS_MAX = 500

# (kind, pattern in the error's text, where it was seen). The first that matches decides.
# "run": the program was run and ended so. "binary": the text is in torch 2.13's libraries.
# "reported": an issue quotes it.
PATTERNS: tuple[tuple[FailureKind, str, str], ...] = (
    # A worker's own child was killed: as good as a signal to the worker.
    ("signal", r"DataLoader worker \(pid.*(?:killed by signal|exited unexpected)", "torch; binary"),
    # Out of memory without the kernel.
    ("oom", r"\bOutOfMemoryError\b|CUDA out of memory", "torch with CUDA"),
    ("oom", r"^MemoryError\b|std::bad_alloc", "Python, C++; run"),
    ("oom", r"RESOURCE_EXHAUSTED: Out of memory", "JAX; reported, jax #13428"),
    # NCCL's complaints about this process, not about a peer.
    ("exception", r"ncclInvalid(?:Usage|Argument)", "NCCL; reported, nccl #1241"),
    # Our own: another member broke the round.
    ("communication", r"\bRoundBrokenError\b", "rallypoint"),
    # torch's classes say it.
    ("communication", r"\bDistNetworkError\b", "torch, the store's host killed; run"),
    ("communication", r"\bDistStoreError\b", "torch, a key that nobody sets; run"),
    ("communication", r"\bDistBackendError\b", "torch with NCCL; reported, nccl #2076"),
    ("communication", r"Connection was likely closed", "torch's store; binary"),
    # gloo raises RuntimeError: [.../gloo/transport/tcp/pair.cc:537] and a text.
    ("communication", r"Connection closed by peer", "torch with gloo, the peer ended; run"),
    ("communication", r"Connection reset by peer", "torch with gloo, the peer was killed; run"),
    ("communication", r"gloo/.*Timed out waiting", "torch with gloo, the peer hung; run"),
    ("communication", r"[Gg]loo.*(?:[Cc]onnect|[Bb]roken pipe)", "torch with gloo; binary"),
    ("communication", r"failed to pass monitoredBarrier", "torch with gloo; binary"),
    # NCCL also ends the process from its watchdog, with SIGABRT.
    ("communication", r"Watchdog caught collective", "torch with NCCL; reported, Megatron-LM #935"),
    ("communication", r"ncclRemoteError", "NCCL; reported, nccl #795 and #2076"),
    ("communication", r"remote process exited", "NCCL; reported, nccl #2076"),
    # JAX's coordination service ends its clients, with SIGABRT.
    ("communication", r"JAX distributed service detected fatal", "JAX; reported, its client.h:77"),
    ("communication", r"\b(?:UNAVAILABLE|DEADLINE_EXCEEDED): ", "JAX, gRPC; reported, marin #7430"),
    # MPI with ULFM.
    ("communication", r"MPI_ERR_PROC_FAILED|MPI_ERR_REVOKED", "MPI's ULFM chapter"),
    # Python's own sockets.
    ("communication", r"\bConnection(?:Reset|Aborted|Refused)Error\b", "Python; run"),
    ("communication", r"\bBrokenPipeError\b", "Python; run"),
)
_COMPILED = tuple((kind, re.compile(pattern, re.MULTILINE)) for kind, pattern, _ in PATTERNS)

_RANK_PREFIX = re.compile(r"^\[rank\d+\]: ?")  # torch's excepthook puts it before each line
_FRAME = re.compile(r'^Traceback \(most recent call last\)|^  File "')
_ERROR_START = re.compile(
    r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Iteration)\b(?::|$)|^terminate called "
)
_ABORTS = (signal.SIGABRT,)


@dataclass(frozen=True, slots=True)
class FailureReport:
    """Why a worker ended, as far as it tells itself. ``message`` is one line.

    ``signal`` is also set where a shell reported its program's signal as 128 + number.
    """

    kind: FailureKind
    returncode: int | None
    signal: int | None
    message: str
    last_lines: tuple[str, ...]


def classify(
    exit: WorkerExit, last_lines: Sequence[str], error_file_text: str | None
) -> FailureReport:
    """The report of a worker that failed; one that ended with 0 has none (AssertionError).

    ``error_file_text`` is what torch's ``@record`` wrote (TORCHELASTIC_ERROR_FILE); it wins over
    stderr, which may hold other threads' lines.
    """
    assert exit.returncode != 0, "a worker that ended with 0 has not failed"
    lines = tuple(_RANK_PREFIX.sub("", line) for line in last_lines)
    error = _recorded_error(error_file_text) or _printed_error(lines)
    number = exit.signal or _signal_of_shell(exit.returncode)
    return FailureReport(
        kind=_kind(exit, number, error, lines),
        returncode=exit.returncode,
        signal=number,
        message=_message(exit, number, error, lines),
        last_lines=tuple(last_lines),
    )


def _kind(
    exit: WorkerExit, number: int | None, error: str | None, lines: Sequence[str]
) -> FailureKind:
    if exit.oom:
        return "oom"
    if number in _ABORTS:  # a C++ exception that nobody caught: what it says counts
        return _match(error or "\n".join(lines)) or "signal"
    if number is not None:
        return "signal"
    return _match(error or "\n".join(lines)) or "exception"


def _match(text: str) -> FailureKind | None:
    return next((kind for kind, pattern in _COMPILED if pattern.search(text)), None)


def _message(exit: WorkerExit, number: int | None, error: str | None, lines: Sequence[str]) -> str:
    said = error or next((line for line in reversed(lines) if line.strip()), "")
    if exit.oom:
        return "killed by the kernel: out of memory"
    if number is None:
        return _one_line(said) or f"exit code {exit.returncode}"
    name = _signal_name(number)
    return _one_line(
        f"killed by {name}: {said}" if number in _ABORTS and said else f"killed by {name}"
    )


def _recorded_error(text: str | None) -> str | None:
    """The message in torch's error file, in each of the shapes that it has had; else None."""
    try:
        value = json.loads(text) if text else None
    except ValueError:  # cut short: the disk was full, or the worker died while it wrote
        return None
    for _ in range(2):  # {"message": {"message": ..., "extraInfo": ...}} or {"message": ...}
        if isinstance(value, dict):
            value = value.get("message")
    return value if isinstance(value, str) and value.strip() else None


def _printed_error(lines: Sequence[str]) -> str | None:
    """From the first line of the last exception, Python's or C++'s, to the end; else None."""
    frames = [i for i, line in enumerate(lines) if _FRAME.match(line)]
    # A message of several lines may hold lines that look like another exception's.
    after = frames[-1] if frames else 0
    starts = [i for i, line in enumerate(lines) if i >= after and _ERROR_START.match(line)]
    return "\n".join(lines[starts[0] :]) if starts else None


def _signal_of_shell(returncode: int | None) -> int | None:
    """A shell between us and the program ends with 128 + the signal that ended it."""
    if returncode is None or not 128 < returncode <= 128 + signal.SIGTERM:
        return None
    return returncode - 128


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _one_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= MESSAGE_CHARACTERS_MAX else line[: MESSAGE_CHARACTERS_MAX - 1] + "…"
