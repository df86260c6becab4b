"""Patterns in the texts of errors: the kind of cause that each shows, and where it was seen.

A communication error of one worker is nearly always the consequence of another's end. A run can
name its true cause only if the two are told apart. An error that no pattern matches counts as an
exception of the program.
"""

from __future__ import annotations

import re

from rallypoint.core.values import FailureKind

# (kind, pattern in the error's text, where it was seen). The first that matches decides.
# "run": the program was run and ended so. "binary": the text is in torch 2.13's libraries.
# "reported": an issue quotes it.
PATTERNS: tuple[tuple[FailureKind, str, str], ...] = (
    # A child of the worker was killed, which counts like a signal to the worker.
    (
        FailureKind.SIGNAL,
        r"DataLoader worker \(pid.*(?:killed by signal|exited unexpected)",
        "torch; binary",
    ),
    # Out of memory, but not killed by the kernel.
    (FailureKind.OOM, r"\bOutOfMemoryError\b|CUDA out of memory", "torch with CUDA"),
    (FailureKind.OOM, r"^MemoryError\b|std::bad_alloc", "Python, C++; run"),
    (FailureKind.OOM, r"RESOURCE_EXHAUSTED: Out of memory", "JAX; reported, jax #13428"),
    # NCCL's complaints about this process, not about a peer.
    (FailureKind.EXCEPTION, r"ncclInvalid(?:Usage|Argument)", "NCCL; reported, nccl #1241"),
    # Rallypoint's own error: another member ended the round.
    (FailureKind.COMMUNICATION, r"\bRoundBrokenError\b", "rallypoint"),
    # torch has classes for these errors.
    (FailureKind.COMMUNICATION, r"\bDistNetworkError\b", "torch, the store's host killed; run"),
    (FailureKind.COMMUNICATION, r"\bDistStoreError\b", "torch, a key that nobody sets; run"),
    (FailureKind.COMMUNICATION, r"\bDistBackendError\b", "torch with NCCL; reported, nccl #2076"),
    (FailureKind.COMMUNICATION, r"Connection was likely closed", "torch's store; binary"),
    # gloo raises RuntimeError: [.../gloo/transport/tcp/pair.cc:537] and a text.
    (
        FailureKind.COMMUNICATION,
        r"Connection closed by peer",
        "torch with gloo, the peer ended; run",
    ),
    (
        FailureKind.COMMUNICATION,
        r"Connection reset by peer",
        "torch with gloo, the peer was killed; run",
    ),
    (FailureKind.COMMUNICATION, r"gloo/.*Timed out waiting", "torch with gloo, the peer hung; run"),
    (
        FailureKind.COMMUNICATION,
        r"[Gg]loo.*(?:[Cc]onnect|[Bb]roken pipe)",
        "torch with gloo; binary",
    ),
    (FailureKind.COMMUNICATION, r"failed to pass monitoredBarrier", "torch with gloo; binary"),
    # NCCL also ends the process from its watchdog, with SIGABRT.
    (
        FailureKind.COMMUNICATION,
        r"Watchdog caught collective",
        "torch with NCCL; reported, Megatron-LM #935",
    ),
    (FailureKind.COMMUNICATION, r"ncclRemoteError", "NCCL; reported, nccl #795 and #2076"),
    (FailureKind.COMMUNICATION, r"remote process exited", "NCCL; reported, nccl #2076"),
    # JAX's coordination service ends its clients, with SIGABRT.
    (
        FailureKind.COMMUNICATION,
        r"JAX distributed service detected fatal",
        "JAX; reported, its client.h:77",
    ),
    (
        FailureKind.COMMUNICATION,
        r"\b(?:UNAVAILABLE|DEADLINE_EXCEEDED): ",
        "JAX, gRPC; reported, marin #7430",
    ),
    # MPI with ULFM.
    (FailureKind.COMMUNICATION, r"MPI_ERR_PROC_FAILED|MPI_ERR_REVOKED", "MPI's ULFM chapter"),
    # Python's own sockets.
    (FailureKind.COMMUNICATION, r"\bConnection(?:Reset|Aborted|Refused)Error\b", "Python; run"),
    (FailureKind.COMMUNICATION, r"\bBrokenPipeError\b", "Python; run"),
)
_COMPILED = tuple((kind, re.compile(pattern, re.MULTILINE)) for kind, pattern, _ in PATTERNS)


def kind_of(text: str) -> FailureKind | None:
    """The kind of failure that an error's text shows; None if no pattern matches."""
    return next((kind for kind, pattern in _COMPILED if pattern.search(text)), None)
