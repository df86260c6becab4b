"""The cause of a worker's failure, from its exit, its last lines and torch's error file.

Pure. This file finds the error in the text; core/failure_patterns.py classifies it.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from rallypoint.core import failure_patterns, reasons
from rallypoint.core.values import Failure, FailureKind
from rallypoint.launch.worker_processes import WorkerExit

MESSAGE_CHARACTERS_MAX: Final = 500
_WORST_FIRST: Final = tuple(FailureKind)

_RANK_PREFIX = re.compile(r"^\[rank\d+\]: ?")  # torch's excepthook puts it before each line
_FRAME = re.compile(r'^Traceback \(most recent call last\)|^  File "')
_ERROR_START = re.compile(
    r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Iteration)\b(?::|$)|^terminate called "
)
_OURS = re.compile(r"killed by (SIG[A-Z0-9]+|signal \d+|the kernel: out of memory)|no error text")
_ERROR_NAME = re.compile(
    r"[A-Za-z_][\w.]{0,100}(?:Error|Exception|Interrupt|Exit|Iteration)(?=:|$)"
)
_ABORTS = (signal.SIGABRT,)


def classify(exit: WorkerExit, last_lines: Sequence[str], error_file_text: str | None) -> Failure:
    """Why a worker failed, as far as can be seen. Raises AssertionError for one that ended with 0.

    `error_file_text`: what torch's `@record` wrote (TORCHELASTIC_ERROR_FILE). It is preferred to
    stderr, which may have lines of other threads. The message is one line. `signal` is also set if
    a shell reported its program's signal as 128 + number.
    """
    assert exit.returncode != 0, "a worker that ended with 0 has not failed"
    lines = tuple(_RANK_PREFIX.sub("", line) for line in last_lines)
    error = _recorded_error(error_file_text) or _printed_error(lines)
    number = signal_of(exit)
    return Failure(
        _kind(exit, number, error, lines),
        _message(exit, number, error, lines),
        rank=exit.rank,
        local_rank=exit.local_rank,
        exit_code=exit.returncode,
        signal=number,
        last_lines=tuple(last_lines),
    )


def shared(failure: Failure, lines: int) -> Failure:
    """The failure as it is sent to other nodes: with at most `lines` last lines of the worker.

    With 0, no output of the worker is sent, except the name of its exception. `kind` was determined
    on this node.
    """
    if lines > 0:
        return msgspec.structs.replace(failure, last_lines=failure.last_lines[-lines:])
    return msgspec.structs.replace(failure, message=_without_words(failure.message), last_lines=())


def _without_words(message: str) -> str:
    if _OURS.fullmatch(message):
        return message
    killed, separator, said = message.partition(": ")
    before = f"{killed}: " if separator and _OURS.fullmatch(killed) else ""
    name = _ERROR_NAME.match(said if before else message)
    return f"{before}{name[0] if name else 'an error'} ({reasons.UNSHARED})"


def signal_of(exit: WorkerExit) -> int | None:
    """The signal that ended the worker, or a shell's program in it; None if none."""
    return exit.signal or _signal_of_shell(exit.returncode)


def worst_first(found: Iterable[Failure]) -> list[Failure]:
    """Failures in the order of their precedence as a cause, and within a kind in time order."""
    return sorted(found, key=lambda failure: _WORST_FIRST.index(failure.kind))


def outranks(failure: Failure, others: Iterable[Failure]) -> bool:
    """Whether a failure is a more likely cause than all others."""
    rank = _WORST_FIRST.index(failure.kind)
    return all(rank < _WORST_FIRST.index(other.kind) for other in others)


def after_finish(failure: Failure, rank: int) -> Failure:
    """The failure, with the rank that had finished before it, if that explains it.

    A program that ends early on one rank leaves the others with communication errors.
    """
    if failure.kind is not FailureKind.COMMUNICATION:
        return failure
    message = f"{failure.message}; rank {rank} had ended before, with exit code 0"
    return msgspec.structs.replace(failure, message=message)


def _kind(
    exit: WorkerExit, number: int | None, error: str | None, lines: Sequence[str]
) -> FailureKind:
    if exit.oom:
        return FailureKind.OOM
    text = error or "\n".join(lines)
    if number in _ABORTS:  # an uncaught C++ exception: its text counts
        return failure_patterns.kind_of(text) or FailureKind.SIGNAL
    if number is not None:
        return FailureKind.SIGNAL
    return failure_patterns.kind_of(text) or FailureKind.EXCEPTION


def _message(exit: WorkerExit, number: int | None, error: str | None, lines: Sequence[str]) -> str:
    said = error or next((line for line in reversed(lines) if line.strip()), "")
    if exit.oom:
        return "killed by the kernel: out of memory"
    if number is None:
        return _one_line(said) or "no error text"
    name = _signal_name(number)
    return _one_line(
        f"killed by {name}: {said}" if number in _ABORTS and said else f"killed by {name}"
    )


def _recorded_error(text: str | None) -> str | None:
    """The message in torch's error file, in any format that torch has used; None if none."""
    try:
        value = json.loads(text) if text else None
    except (ValueError, RecursionError):
        # The file was cut short, by a full disk or the worker's death, or it is not torch's.
        return None
    for _ in range(2):  # {"message": {"message": ..., "extraInfo": ...}} or {"message": ...}
        if isinstance(value, dict):
            value = value.get("message")
    return value if isinstance(value, str) and value.strip() else None


def _printed_error(lines: Sequence[str]) -> str | None:
    """The text from the last exception (Python or C++) to the end; None if there is none."""
    frames = [i for i, line in enumerate(lines) if _FRAME.match(line)]
    # A message of several lines may have lines that look like another exception.
    after = frames[-1] if frames else 0
    starts = [i for i, line in enumerate(lines) if i >= after and _ERROR_START.match(line)]
    return "\n".join(lines[starts[0] :]) if starts else None


def _signal_of_shell(returncode: int | None) -> int | None:
    """A shell that runs the program ends with 128 + the signal that ended the program."""
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
