from __future__ import annotations

import json
import signal
from collections.abc import Sequence

import pytest

from rallypoint.core.values import Failure, FailureKind
from rallypoint.launch.failures import (
    MESSAGE_CHARACTERS_MAX,
    classify,
    shared,
)
from rallypoint.launch.worker_processes import WorkerExit


def ended(
    returncode: int | None = 1, number: int | None = None, *, oom: bool = False
) -> WorkerExit:
    return WorkerExit(local_rank=1, rank=5, pid=1, returncode=returncode, signal=number, oom=oom)


def said(*lines: str, rank_prefix: str = "") -> list[str]:
    """The stderr of a program that ended with an exception."""
    text = ["Traceback (most recent call last):", '  File "train.py", line 1, in <module>']
    return [rank_prefix + line for line in (*text, *lines)]


# Whole last lines as programs printed them.
GLOO_KILLED = (
    "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error "
    "[127.0.0.1]:45493: Connection reset by peer. This is typically caused by a remote worker "
    "hanging or bugs in the application."
)
GLOO_ENDED = (
    "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed "
    "by peer [127.0.0.1]:6037. This is typically caused by a remote worker crashing."
)
NCCL_REMOTE = (
    "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3763, remote process "
    "exited or there was a network error, NCCL version 2.28.8",
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting.",
    "Last error:",
    "socketProgressOpt: Call to recv failed : Connection reset by peer",
)
WATCHDOG = (
    "terminate called after throwing an instance of 'c10::DistBackendError'",
    "  what():  [PG 1 Rank 7] Process group watchdog thread terminated with exception: [Rank 7] "
    "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=199)",
    "frame #0: c10::Error::Error() + 0x99",
)
JAX_ABORT = (
    "F0926 17:26:32.075587  157988 client.h:77] Terminating process because the JAX distributed "
    "service detected fatal errors. This most likely indicates that another task died",
    "Fatal Python error: Aborted",
)


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        (["ValueError: my own error"], "exception"),
        (["KeyboardInterrupt"], "exception"),
        (["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"], "oom"),
        (["RuntimeError: DataLoader worker (pid 12) is killed by signal: Killed. "], "signal"),
        ([GLOO_KILLED], "communication"),
        (NCCL_REMOTE, "communication"),
        (["rallypoint.errors.RoundBrokenError: node-3 was lost"], "communication"),
    ],
)
@pytest.mark.parametrize("rank_prefix", ["", "[rank12]: "])
def test_an_exception_says_what_it_is(lines: Sequence[str], kind: str, rank_prefix: str) -> None:
    printed = said(*lines, rank_prefix=rank_prefix)
    report = classify(ended(), printed, None)
    assert (report.kind, report.message) == (kind, lines[0].strip())
    assert report.last_lines == tuple(printed)
    assert (report.exit_code, report.signal) == (1, None)


def test_only_the_exception_counts_not_earlier_lines() -> None:
    lines = ["worker 3: Connection reset by peer, retrying", *said("ValueError: mine")]
    assert classify(ended(), lines, None).kind == "exception"


def test_a_message_of_several_lines_starts_with_its_first() -> None:
    assert classify(ended(), said(*NCCL_REMOTE)[1:], None).message == NCCL_REMOTE[0]
    assert classify(ended(), NCCL_REMOTE, None).message == NCCL_REMOTE[0]


def test_the_last_exception_of_a_chain_counts() -> None:
    lines = [
        *said("ConnectionResetError: [Errno 104] Connection reset by peer"),
        "During handling of the above exception, another exception occurred:",
        *said("ValueError: mine"),
    ]
    assert classify(ended(), lines, None).message == "ValueError: mine"


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        (WATCHDOG, "communication"),
        (JAX_ABORT, "communication"),
        (["terminate called after throwing an instance of 'std::bad_alloc'"], "oom"),
        (["python: assertion `x' failed"], "signal"),
        ([], "signal"),
    ],
)
def test_an_abort_has_the_message_before_it(lines: Sequence[str], kind: str) -> None:
    report = classify(ended(None, signal.SIGABRT), lines, None)
    assert report.kind == kind
    assert report.message.startswith("killed by SIGABRT")
    assert (": " in report.message) == bool(lines)


@pytest.mark.parametrize(
    ("exit", "kind", "number", "message"),
    [
        (ended(None, signal.SIGKILL), "signal", 9, "killed by SIGKILL"),
        (ended(None, signal.SIGSEGV), "signal", 11, "killed by SIGSEGV"),
        (ended(None, 40), "signal", 40, "killed by signal 40"),
        (ended(137), "signal", 9, "killed by SIGKILL"),
        (ended(143), "signal", 15, "killed by SIGTERM"),
        (ended(None, signal.SIGKILL, oom=True), "oom", 9, "killed by the kernel: out of memory"),
    ],
)
def test_a_signal_needs_no_message(exit: WorkerExit, kind: str, number: int, message: str) -> None:
    report = classify(exit, said(GLOO_KILLED), None)
    assert (report.kind, report.signal, report.message) == (kind, number, message)
    assert report.exit_code == exit.returncode


@pytest.mark.parametrize(
    ("returncode", "lines", "message"),
    [
        (3, [], "no error text"),
        (3, ["", "  "], "no error text"),
        (2, ["usage: train.py", "train.py: error: no data"], "train.py: error: no data"),
        (255, ["no such host"], "no such host"),
    ],
)
def test_without_an_exception_the_last_line_is_the_message(
    returncode: int, lines: Sequence[str], message: str
) -> None:
    report = classify(ended(returncode), lines, None)
    assert report == Failure(
        FailureKind.EXCEPTION,
        message,
        rank=5,
        local_rank=1,
        exit_code=returncode,
        last_lines=tuple(lines),
    )


@pytest.mark.parametrize(
    "recorded",
    [
        {"message": "ValueError: recorded"},
        {"message": {"message": "ValueError: recorded", "extraInfo": {"timestamp": "1"}}},
        {"message": {"message": "ValueError: recorded\nmore", "errorCode": 1}},
    ],
)
def test_torchs_error_file_wins_over_stderr(recorded: object) -> None:
    report = classify(ended(), said(GLOO_KILLED), json.dumps(recorded))
    assert (report.kind, report.message) == ("exception", "ValueError: recorded")


def test_a_recorded_communication_error_is_one() -> None:
    text = json.dumps({"message": {"message": GLOO_ENDED, "extraInfo": {}}})
    assert classify(ended(), [], text).kind == "communication"


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"message": 3}', '{"message": {}}', "null"])
def test_an_empty_error_file_is_ignored(text: str) -> None:
    assert classify(ended(), said("ValueError: mine"), text).message == "ValueError: mine"


def test_a_message_is_one_bounded_line() -> None:
    report = classify(ended(), said("ValueError: " + "x" * 10_000), None)
    assert len(report.message) == MESSAGE_CHARACTERS_MAX
    assert report.message.endswith("…")


def test_a_worker_that_ended_well_has_no_report() -> None:
    with pytest.raises(AssertionError, match="has not failed"):
        classify(ended(0), [], None)


@pytest.mark.parametrize("lines", [1, 2, 20, 64])
def test_a_limited_number_of_last_lines_is_shared(lines: int) -> None:
    failure = classify(ended(), [*said("ValueError: no"), "after"], None)
    told = shared(failure, lines)
    assert told.last_lines == failure.last_lines[-lines:]
    assert told.message == failure.message


SECRET = "sk-live-51H8"


@pytest.mark.parametrize(
    ("failure", "kept"),
    [
        (classify(ended(), said(f"ValueError: 401 for {SECRET}"), None), "ValueError"),
        (classify(ended(), said(f"a.b.OddError: {SECRET}"), None), "a.b.OddError"),
        (classify(ended(), [f"cannot open {SECRET}: no such file"], None), "an error"),
        (classify(ended(), [f"{SECRET}Error is what it said"], None), "an error"),
        (classify(ended(), [], json.dumps({"message": f"OSError: {SECRET}"})), "OSError"),
        (
            classify(ended(None, signal.SIGABRT), [f"terminate called: {SECRET}"], None),
            "killed by SIGABRT: an error",
        ),
        (classify(ended(None, signal.SIGKILL), [SECRET], None), "killed by SIGKILL"),
        (classify(ended(None, 9, oom=True), [SECRET], None), "out of memory"),
        (classify(ended(), [], None), "no error text"),
    ],
)
def test_a_worker_that_shares_nothing_reports_only_the_kind(failure: Failure, kept: str) -> None:
    told = shared(failure, 0)
    assert kept in told.message
    assert SECRET not in repr(told)
    assert (told.kind, told.exit_code, told.signal, told.rank) == (
        failure.kind,
        failure.exit_code,
        failure.signal,
        failure.rank,
    )


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"message":' * 100_000, '{"message": ["deep"]}', "\ud800", '{"message": NaN}'],
)
def test_a_bad_error_file_affects_only_its_worker(text: str) -> None:
    failure = classify(ended(), said("ValueError: boom"), text)
    assert failure.message == "ValueError: boom"
