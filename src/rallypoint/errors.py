"""Every error that Rallypoint raises. Each text has the fault and what to do about it.

    RallypointError
    ├── UsageError (ValueError)          the caller's mistake: a setting, an endpoint, a call
    │   ├── EndpointError                an endpoint that cannot be read
    │   ├── LauncherError                variables of a launcher that cannot be used
    │   ├── PlatformError                a platform on which this part does not run
    │   └── ForkedProcessError           a run used in a child made by fork()
    ├── CoordinatorError                 this node and the coordinator do not work together
    │   ├── UnreachableError             no answer: what was tried, and the system's errors
    │   ├── NotACoordinatorError         something else listens there
    │   │   └── UntrustedCoordinatorError  ... it cannot prove that it is this token's coordinator
    │   ├── CoordinatorLostError         it answered before, and no longer does
    │   └── RefusedError                 it answered "no"
    │       ├── TokenError               the token is wrong or missing, or does not allow this
    │       ├── VersionError             no common version of the wire protocol
    │       ├── SettingsConflictError    nodes of one run disagree: both values are shown
    │       ├── NameTakenError           another live node has the name
    │       ├── SupersededError          a newer start of this node has taken its place
    │       ├── EvictedError             an operator has taken this node out of the run
    │       ├── RunClosedError           the run is over: why, and since when
    │       ├── RunLostError             the run was lost with its coordinator
    │       └── LimitError               something is larger than the coordinator allows
    ├── JoinTimeoutError (TimeoutError)  no round was formed in time: who was missing
    ├── RoundBrokenError                 the round has ended: why
    ├── FencedError                      a later round owns the file: which one
    ├── StoreError                       a call of the round's store failed
    │   └── StoreTimeoutError (TimeoutError)  ... keys are missing, or nodes at a barrier
    ├── LedgerError                      a ledger cannot be used
    │   ├── LedgerUnreachableError (OSError)  the engine does not answer
    │   ├── LedgerAccessError            user, password, certificate or permission
    │   ├── LedgerForeignError           the place has other contents, or another ledger
    │   │   └── LedgerReplacedError      another ledger now: the first one is lost
    │   ├── LedgerUnfitError             the place lacks what a ledger needs
    │   ├── LedgerCorruptError           a record is damaged
    │   ├── LedgerFormatError            a record was written by a newer Rallypoint
    │   ├── LedgerFullError              no room: a disk, a quota
    │   └── LedgerLimitError             a value is larger than the engine accepts
    └── LaunchError                      the launcher failed
        ├── WorkerStartError             a worker could not be started: the system's answer
        │   └── ProgramNotFoundError     ... the program does not exist or is not executable
        └── LogDirectoryError            the log directory cannot be written

`hint` is what to do, usually in one line; `exit_code` is what `rallypoint run` ends with.
"""

from __future__ import annotations

import enum
from typing import ClassVar

from rallypoint.core.reasons import Refusal, RefusalCode, Waiting
from rallypoint.core.values import Change, CloseRecord, Outcome


class ExitCode(enum.IntEnum):
    """How `rallypoint run` ends. Documented in docs/compatibility.md; 128 + n: by signal n."""

    DONE = 0
    PROGRAM_FAILED = 1
    USAGE = 2
    COULD_NOT_MEET = 3
    COORDINATOR_LOST = 4
    NOT_ENOUGH_NODES = 5
    STOPPED = 6
    EVICTED = 7


class RallypointError(Exception):
    """Base of all errors of Rallypoint. `hint`: what to do, usually in one line; "" for no hint."""

    exit_code: ClassVar[ExitCode] = ExitCode.PROGRAM_FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UsageError(RallypointError, ValueError):
    """The caller made a mistake: a value, an endpoint or a call that is not allowed."""

    exit_code = ExitCode.USAGE


class EndpointError(UsageError):
    """An endpoint that cannot be read."""


class LauncherError(UsageError):
    """A setting was to come from the launcher, whose variables cannot be used for it.

    `source`: the launcher, and the variable if it is one.
    """

    def __init__(self, message: str, *, hint: str = "", source: str = "") -> None:
        super().__init__(message, hint=hint)
        self.source = source


class PlatformError(UsageError):
    """A platform on which this part of Rallypoint does not run."""


class ForkedProcessError(UsageError):
    """A run was used in a child made by fork(): only the process that joined may use it."""


class CoordinatorError(RallypointError):
    """This node cannot work with the coordinator."""

    exit_code = ExitCode.COULD_NOT_MEET


class UnreachableError(CoordinatorError):
    """No coordinator answered. `attempts`: each tried address, with the system's last error."""

    def __init__(
        self, message: str, *, hint: str = "", attempts: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.attempts = attempts


class NotACoordinatorError(CoordinatorError):
    """A server listens at the endpoint that is not a Rallypoint coordinator.

    `status`: the HTTP status of its answer; 0 for no answer, or one that is not HTTP.
    """

    def __init__(self, message: str, *, hint: str = "", status: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class UntrustedCoordinatorError(NotACoordinatorError):
    """The server at the endpoint cannot prove that it is a coordinator of this token's authority.

    Nothing was said to it: neither the token nor the run's id. `shown`: the authority of its
    certificates, as in tokens; "" if that is not the reason. `needs_token`: it uses TLS, and this
    side has no token that names an authority.
    """

    def __init__(
        self, message: str, *, hint: str = "", shown: str = "", needs_token: bool = False
    ) -> None:
        super().__init__(message, hint=hint)
        self.shown = shown
        self.needs_token = needs_token


class CoordinatorLostError(CoordinatorError):
    """The coordinator answered before, and no longer does."""

    exit_code = ExitCode.COORDINATOR_LOST


class RefusedError(CoordinatorError):
    """The coordinator refused this node. `refusal` is its reason as data."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message, hint=refusal.hint)
        self.refusal = refusal


class TokenError(RefusedError):
    """The token is wrong or missing, or does not allow this.

    `fingerprint` and `origin`: those of the coordinator's token, if it sends them; else "".
    `reason`: why a token that the coordinator knows does not suffice, such as "role"; "ended": it
    was accepted, and does not count any more; else "".
    """

    exit_code = ExitCode.USAGE

    @property
    def has_ended(self) -> bool:
        """Whether the token was accepted before, and has expired or was revoked since."""
        return self.reason in ("ended", "expired", "revoked")

    def __init__(
        self, refusal: Refusal, *, fingerprint: str = "", origin: str = "", reason: str = ""
    ) -> None:
        super().__init__(refusal)
        self.fingerprint = fingerprint
        self.origin = origin
        self.reason = reason


class VersionError(RefusedError):
    """The node and the coordinator have no common version of the wire protocol."""

    exit_code = ExitCode.USAGE


class SettingsConflictError(RefusedError):
    """This node's settings differ from the run's; `refusal.conflicts` has both values of each."""

    exit_code = ExitCode.USAGE


class NameTakenError(RefusedError):
    """Another live node has this node's name."""

    exit_code = ExitCode.USAGE


class SupersededError(RefusedError):
    """A newer start of this node has taken its place: this process must stop."""


class EvictedError(RefusedError):
    """An operator has taken this node out of the run, for good: this process must stop."""

    exit_code = ExitCode.EVICTED


class RunClosedError(RefusedError):
    """The run is over. `close`: how it ended."""

    @property
    def close(self) -> CloseRecord | None:
        return self.refusal.close


class RunLostError(RefusedError):
    """The run was lost with its coordinator, which kept it in memory. It can be started again."""

    exit_code = ExitCode.COORDINATOR_LOST


class LimitError(RefusedError):
    """Something is larger or more numerous than the coordinator allows."""


class JoinTimeoutError(RallypointError, TimeoutError):
    """No round was formed in time. `waiting`: the reason as data, if it is known."""

    exit_code = ExitCode.COULD_NOT_MEET

    def __init__(self, message: str, *, hint: str = "", waiting: Waiting | None = None) -> None:
        super().__init__(message, hint=hint)
        self.waiting = waiting


class RoundBrokenError(RallypointError):
    """The round has ended: ask for the next world. `change`: why it ended."""

    def __init__(self, change: Change) -> None:
        super().__init__(
            f"round {change.round} has ended: {change}",
            hint="ask the run for its next world; in `with world:` this error ends the block, and "
            "not the program",
        )
        self.change = change


class FencedError(RallypointError):
    """A later round owns the file, so this one must not write it (R13). The file is unchanged.

    `path`: the file. `token`: the (term, round) that was refused. `owner`: that of the owner; None
    if it is not known.
    """

    def __init__(
        self, message: str, *, path: str, token: object, owner: object = None, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.path = path
        self.token = token
        self.owner = owner


class StoreError(RallypointError):
    """A call of the round's store failed. `code` is one of those in `core/store/operations.py`."""

    def __init__(self, message: str, *, code: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class StoreTimeoutError(StoreError, TimeoutError):
    """Keys were not set, or nodes did not reach a barrier, in time.

    `missing`: at most 8 of their names. `missing_count`: how many there are.
    """

    def __init__(
        self, message: str, *, missing: tuple[str, ...] = (), count: int = 0, hint: str = ""
    ) -> None:
        super().__init__(message, code="timeout", hint=hint)
        self.missing = missing
        self.missing_count = count


class LedgerError(RallypointError):
    """A ledger cannot be used. The message has the fault, `__cause__` the system's error."""

    exit_code = ExitCode.COULD_NOT_MEET


class LedgerUnreachableError(LedgerError, OSError):
    """The engine does not answer, or not in time. It may answer later."""


class LedgerAccessError(LedgerError):
    """The engine refuses this process: user, password, certificate, permission, read-only."""

    exit_code = ExitCode.USAGE


class LedgerForeignError(LedgerError):
    """The prefix or folder has other contents, or another ledger. Nothing was written."""

    exit_code = ExitCode.USAGE


class LedgerReplacedError(LedgerForeignError):
    """The place has another ledger now: the contents of this one are lost."""


class LedgerUnfitError(LedgerError):
    """The place lacks what a ledger needs, such as hard links: a test of the place failed."""

    exit_code = ExitCode.USAGE


class LedgerCorruptError(LedgerError):
    """A record is damaged. It is not changed, and never read as an empty one."""


class LedgerFormatError(LedgerError):
    """A record was written by a newer Rallypoint, in a format that this release cannot read."""

    exit_code = ExitCode.USAGE


class LedgerFullError(LedgerError):
    """There is no room for the write. Existing records stay."""


class LedgerLimitError(LedgerError):
    """A value is larger than the engine accepts. Nothing was sent."""


class LaunchError(RallypointError):
    """The launcher failed."""

    exit_code = ExitCode.USAGE


class WorkerStartError(LaunchError):
    """A worker could not be started. `path`: its program. `problem`: the system's message."""

    def __init__(self, path: str, problem: str, *, hint: str = "") -> None:
        super().__init__(f"cannot run {path!r}: {problem}", hint=hint)
        self.path = path
        self.problem = problem


class ProgramNotFoundError(WorkerStartError):
    """The program does not exist or cannot be executed: trying again does not help."""

    def __init__(
        self, path: str, problem: str = "no such program, or not executable", *, hint: str = ""
    ) -> None:
        super().__init__(path, problem, hint=hint)


class LogDirectoryError(LaunchError):
    """The log directory cannot be written. `error` is the system's."""

    def __init__(self, path: str, error: str, *, hint: str = "") -> None:
        super().__init__(f"cannot write logs to {path!r}: {error}", hint=hint)
        self.path = path
        self.error = error


_REFUSED: dict[RefusalCode, type[RefusedError]] = {
    RefusalCode.TOKEN: TokenError,
    RefusalCode.VERSION: VersionError,
    RefusalCode.CONFLICT: SettingsConflictError,
    RefusalCode.NAME_TAKEN: NameTakenError,
    RefusalCode.SUPERSEDED: SupersededError,
    RefusalCode.EVICTED: EvictedError,
    RefusalCode.CLOSED: RunClosedError,
    RefusalCode.RUN_LOST: RunLostError,
    RefusalCode.LIMIT: LimitError,
}

_OUTCOME_EXIT_CODES = {
    Outcome.SUCCEEDED: ExitCode.DONE,
    Outcome.FAILED: ExitCode.PROGRAM_FAILED,
    Outcome.NOT_ENOUGH: ExitCode.NOT_ENOUGH_NODES,
    Outcome.STOPPED: ExitCode.STOPPED,
}


def refused(refusal: Refusal) -> RefusedError:
    """The error for a refusal, of the class for its code."""
    return _REFUSED.get(refusal.code, RefusedError)(refusal)


def not_a_coordinator(
    where: str, answer: str, status: int = 0, *, hint: str = ""
) -> NotACoordinatorError:
    """The error for a server at `where` that answers like another program. `status`: of HTTP.

    `hint`: what else it may be, and what to do then.
    """
    usual = "check the host and the port: another program uses this port"
    return NotACoordinatorError(
        f"the server at {where} is not a Rallypoint coordinator: {answer}",
        hint=f"{usual}; or {hint}" if hint else usual,
        status=status,
    )


def exit_code_of(outcome: Outcome) -> ExitCode:
    """The exit code of `rallypoint run` for a run that was closed with this outcome."""
    return _OUTCOME_EXIT_CODES[outcome]
