"""What the patterns find in texts that programs printed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rallypoint.core.failure_patterns import PATTERNS, kind_of

# Whole last lines as programs printed them: those that failure_patterns.py marks with "run".
GLOO_KILLED = (
    "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error "
    "[127.0.0.1]:45493: Connection reset by peer. This is typically caused by a remote worker "
    "hanging or bugs in the application."
)
GLOO_ENDED = (
    "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed "
    "by peer [127.0.0.1]:6037. This is typically caused by a remote worker crashing."
)
GLOO_HUNG = (
    "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] "
    "Timed out waiting 4000ms for recv operation to complete"
)
NCCL_REMOTE = (
    "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3763, remote process "
    "exited or there was a network error, NCCL version 2.28.8",
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting.",
    "Last error:",
    "socketProgressOpt: Call to recv failed : Connection reset by peer",
)
NCCL_USAGE = (
    "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1287, invalid usage",
    "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.",
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
        (["ValueError: my own error"], None),
        (["mypackage.errors.BadDataError: shard 7"], None),
        (["KeyboardInterrupt"], None),
        (["AssertionError"], None),
        (["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"], "oom"),
        (["RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB"], "oom"),
        (["MemoryError"], "oom"),
        (
            ["jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory"],
            "oom",
        ),
        (["RuntimeError: DataLoader worker (pid 12) is killed by signal: Killed. "], "signal"),
        (["RuntimeError: DataLoader worker (pid(s) 1, 2) exited unexpectedly"], "signal"),
        ([GLOO_KILLED], "communication"),
        ([GLOO_ENDED], "communication"),
        ([GLOO_HUNG], "communication"),
        (["RuntimeError: Gloo connectFullMesh failed with [...] no error"], "communication"),
        (NCCL_REMOTE, "communication"),
        (NCCL_USAGE, "exception"),
        (["torch.distributed.DistNetworkError: Broken pipe"], "communication"),
        (
            ["torch.distributed.DistStoreError: wait timeout after 1000ms, keys: /default_pg/0//k"],
            "communication",
        ),
        (["rallypoint.errors.RoundBrokenError: node-3 was lost"], "communication"),
        (["ConnectionResetError: [Errno 104] Connection reset by peer"], "communication"),
        (["ConnectionRefusedError: [Errno 111] Connection refused"], "communication"),
        (["BrokenPipeError: [Errno 32] Broken pipe"], "communication"),
        (["jaxlib.XlaRuntimeError: UNAVAILABLE: failed to connect"], "communication"),
        (["mpi4py.MPI.Exception: MPI_ERR_PROC_FAILED: Process Failure"], "communication"),
    ],
)
def test_an_error_says_what_it_is(lines: Sequence[str], kind: str | None) -> None:
    assert kind_of("\n".join(lines)) == kind


@pytest.mark.parametrize(("kind", "pattern", "seen"), PATTERNS)
def test_every_row_says_where_it_was_seen_and_none_matches_everything(
    kind: str, pattern: str, seen: str
) -> None:
    assert seen
    assert kind_of("ValueError: wrong shape at step 12") is None, (kind, pattern)
