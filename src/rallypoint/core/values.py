"""The values of the protocol: nodes, rounds, failures, changes, settings.

They are frozen, compared by value, and validate themselves. `str` gives the line that people see.
They must not have other behaviour.
They are msgspec structs, so that they are encoded without conversion for the wire and the ledger.
They are `array_like`, which keeps the encoding small. So a field may only be added at the end, with
a default (docs/compatibility.md).

All values in `core/` and `wire/` are FrozenStructs. Other layers use msgspec.Struct, frozen=True:
their values stay in the process, or are stored with the names of their fields.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable
from typing import Annotated, Any, Final

import msgspec

from rallypoint.core.printable import some

NAME_LENGTH_MAX: Final = 256
"""The most characters of a node's name, a run id or a host name."""

NAMES_SHOWN_MAX: Final = 8
"""The most names in one reason, change or error, so that no message grows with N."""


Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_LENGTH_MAX)]
"""A name from outside: bounded and not empty."""
TEXT_LENGTH_MAX: Final = 4_000
"""The most characters of a text from outside."""
Text = Annotated[str, msgspec.Meta(max_length=TEXT_LENGTH_MAX)]
"""A text from outside: a reason or an error message."""
Count = Annotated[int, msgspec.Meta(ge=1, le=4_096)]
"""How many workers a node has."""
NODE_INDEX_MAX: Final = 999_999_999
NodeIndex = Annotated[int, msgspec.Meta(ge=0, le=NODE_INDEX_MAX)]
"""A node's place among the nodes that a scheduler started."""
ProcessName = Annotated[str, msgspec.Meta(pattern="^[0-9A-Za-z_-]{1,64}\\Z")]
"""The name of a coordinator process. It is a part of the name of its lease's register."""
LabelText = Annotated[str, msgspec.Meta(max_length=NAME_LENGTH_MAX)]
"""A label's value. It is short, because every member table contains all labels."""
STOP_S_MAX: Final = 60.0
EXIT_CODES_MAX: Final = 64
"""The most exit codes with which a worker can forbid a restart."""
StopTime = Annotated[float, msgspec.Meta(ge=0, le=STOP_S_MAX)]
"""How long a node may need to stop its workers, in seconds. It keeps its place that long."""
SECRET_BYTES: Final = 16
"""How many random bytes a node's resume secret has."""
SECRET_BYTES_MAX: Final = 64
Secret = Annotated[bytes, msgspec.Meta(max_length=SECRET_BYTES_MAX)]
"""A node sends its secret at each attach, to prove that it is the node that attached first."""
SECRET_HASH_BYTES: Final = 16
Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]


class FrozenStruct(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=False):
    """The base of all values of the protocol."""


def named(value: msgspec.Struct) -> dict[str, Any]:
    """A value for people: a dict by field names, and so on for the values inside."""
    return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}


def repr_without(value: msgspec.Struct, *secrets: str) -> str:
    """A struct's repr that shows only whether these fields are set, not their values."""
    shown = {name: getattr(value, name) for name in value.__struct_fields__}
    shown |= {name: "set" if shown[name] else "" for name in secrets}
    fields = ", ".join(f"{name}={each!r}" for name, each in shown.items())
    return f"{type(value).__name__}({fields})"


def _plain(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        return named(value)
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value


class Phase(enum.StrEnum):
    """The phase of a run. `core/transitions.py` has the transitions."""

    GATHERING = "gathering"
    COMMITTING = "committing"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    CLOSED = "closed"


class MemberState(enum.StrEnum):
    """The state of a member. Its `Reachability` shows whether it can be heard."""

    IDLE = "idle"
    """Attached without asking for a round: it is new, or was not ready in the last call."""
    READY = "ready"
    """Asks for the next round (shown as `standby` while a round is active without it)."""
    ACTIVE = "active"
    """In the last committed round."""
    DEPARTING = "departing"
    """Going to leave, and stopping its workers. No node waits for it."""
    DONE = "done"
    """Its workers have finished. No round ends when it leaves or is lost."""


class Reachability(enum.StrEnum):
    """Whether a member can be heard."""

    CONNECTED = "connected"
    SILENT = "silent"
    """Connected, but nothing was heard from it for `suspect_after_s`."""
    DISCONNECTED = "disconnected"
    """Its connection closed and has not been resumed."""


class ConnectionEnd(enum.StrEnum):
    """How a node's connection ended, as its coordinator saw it."""

    UNKNOWN = "unknown"
    PROCESS_ENDED = "process_ended"
    """The node's kernel closed it, so the process has ended: see `core/endings.py`."""
    FIN = "fin"
    """The other side closed it: the node, or something between the two."""
    RESET = "reset"
    TIMEOUT = "timeout"
    """The node's kernel stopped acknowledging data, or there is no route to the node."""
    CLOSE = "close"
    """The node closed it with a WebSocket Close."""
    OURS = "ours"
    """The coordinator closed it."""


class HostReport(enum.StrEnum):
    """What a witness says of a host that it was asked about."""

    ANSWERED = "answered"
    """The kernel of the host accepted or refused a connection: the host lives."""
    NOT_ANSWERED = "not_answered"
    """The host has answered the witness earlier, and does not any more. Others answer it."""
    UNSURE = "unsure"
    """The host does not answer, and nobody else did either, or the witness could not find out."""
    UNSEEN = "unseen"
    """The host has never answered the witness, so its silence says nothing."""


class NodeId(FrozenStruct, frozen=True):
    """A node's name, unique in the run, and its incarnation, which differs for each start."""

    name: str
    incarnation: int


class Address(FrozenStruct, frozen=True):
    """Where something listens. `host` is a name or an address literal without brackets."""

    host: Annotated[str, msgspec.Meta(max_length=NAME_LENGTH_MAX)]
    port: Port

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class NodeInfo(FrozenStruct, frozen=True):
    """What a node sends about itself when it attaches.

    `stop_s`: the longest time from the end of its round until its workers have stopped. `index`:
    its place among the nodes that a scheduler started, for the rank policy `index`.
    """

    name: Name
    incarnation: int
    host: Name
    addresses: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)] = ()
    workers: Count = 1
    labels: Annotated[dict[Name, LabelText], msgspec.Meta(max_length=64)] = {}
    stop_s: StopTime = 5.0
    index: NodeIndex | None = None

    @property
    def id(self) -> NodeId:
        return NodeId(self.name, self.incarnation)


def secret_hash(secret: bytes) -> bytes:
    """The hash that is kept of a node's resume secret: 16 bytes of SHA-256; empty for no secret.

    A reader of the hash, in a ledger or in memory, cannot resume with it.
    """
    return hashlib.sha256(secret).digest()[:SECRET_HASH_BYTES] if secret else b""


class RunSettings(FrozenStruct, frozen=True, kw_only=True):
    """The settings on which all nodes of a run must agree. The first node to attach sets them.

    Durations are in seconds.

    Raises:
        ValueError: from the constructor, naming the field and its value.
    """

    min_nodes: int = 1
    max_nodes: int = 1
    expected_nodes: int | None = None
    """How many nodes a scheduler started, if known: a round does not wait for more."""
    max_restarts: int | None = 0
    """The run's restart budget: how many rounds may end by the program's fault. None: any
    number."""
    rank_policy: str = "stable"
    last_call_s: float = 30.0
    settle_s: float = 0.05
    scale_up_delay_s: float = 1.0
    reconnect_grace_s: float = 5.0
    suspect_after_s: float = 5.0
    probe_s: float = 1.0
    lost_after_s: float = 30.0
    mass_min: int = 8
    mass_fraction: float = 0.1
    mass_grace_s: float = 120.0
    # A node of an older release does not know the following ones. It agrees on their defaults.
    restart_window_s: float | None = None
    """For how long a failure counts against the restart budget. None: to the end of the run."""
    early_s: float = 0.0
    """A failure in a round that lasted less counts double against the budget. 0: none does."""
    same_failure: int | None = None
    """So many equal failures in a row end the run. None: any number is allowed."""
    no_restart_exit_codes: tuple[int, ...] = ()
    """A worker that exits with one of these ends the run at once."""
    max_restarts_per_node: int | None = None
    """How many rounds one node may break before it has to stay out. None: any number."""
    cooldown_s: float = 60.0
    """How long a node stays out for the first time. It doubles each time."""
    cooldown_max_s: float = 3_600.0
    """The longest time for which a node stays out."""

    def __post_init__(self) -> None:
        _check_node_counts(self.min_nodes, self.max_nodes, self.expected_nodes)
        if self.max_restarts is not None and self.max_restarts < 0:
            raise ValueError(f"max_restarts must not be negative, not {self.max_restarts}")
        if self._has_restart_rules:
            self._check_restart_rules()
        for name in _DURATIONS:
            seconds = getattr(self, name)
            if not 0 < seconds <= _DURATION_MAX_S:
                _check_duration(name, seconds)
        if not 0 <= self.mass_fraction <= 1 or self.mass_min < 0:
            raise ValueError(
                "mass_fraction must be within 0 and 1 and mass_min not negative, "
                f"not {self.mass_fraction} and {self.mass_min}"
            )
        if self.lost_after_s < self.suspect_after_s:
            raise ValueError(
                f"lost_after_s ({self.lost_after_s:g}) must not be below "
                f"suspect_after_s ({self.suspect_after_s:g})"
            )

    @property
    def _has_restart_rules(self) -> bool:
        """Found quickly: each node that attaches brings its settings."""
        return (
            self.restart_window_s,
            self.early_s,
            self.same_failure,
            self.no_restart_exit_codes,
            self.max_restarts_per_node,
            self.cooldown_s,
            self.cooldown_max_s,
        ) != (None, 0.0, None, (), None, 60.0, 3_600.0)

    def _check_restart_rules(self) -> None:
        for name in ("restart_window_s", "cooldown_s", "cooldown_max_s"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds <= _DURATION_MAX_S:
                raise ValueError(
                    f"{name} must be more than 0 and at most {_DURATION_MAX_S:g} seconds, "
                    f"not {seconds}"
                )
        _check_duration("early_s", self.early_s)
        if self.cooldown_max_s < self.cooldown_s:
            raise ValueError(
                f"cooldown_s ({self.cooldown_s:g}) must not be above cooldown_max_s "
                f"({self.cooldown_max_s:g}), the longest cooldown: set both, as in "
                "`--cooldown 2h:4h`"
            )
        if self.same_failure is not None and self.same_failure < 2:
            raise ValueError(f"same_failure must be at least 2, not {self.same_failure}")
        if self.max_restarts_per_node is not None and self.max_restarts_per_node < 0:
            raise ValueError(
                f"max_restarts_per_node must not be negative, not {self.max_restarts_per_node}"
            )
        codes = self.no_restart_exit_codes
        if len(codes) > EXIT_CODES_MAX or not all(1 <= each <= 255 for each in codes):
            raise ValueError(
                f"no_restart_exit_codes must be at most {EXIT_CODES_MAX} numbers within 1 and 255, "
                f"not {codes}"
            )

    def conflicts(self, other: RunSettings) -> tuple[SettingConflict, ...]:
        """Each setting in which `other` differs from these: empty if the two agree."""
        if self == other:  # The usual case, found quickly: each node that attaches is compared.
            return ()
        return tuple(
            SettingConflict(name, str(getattr(self, name)), str(getattr(other, name)))
            for name in self.__struct_fields__
            if getattr(self, name) != getattr(other, name)
        )


RUN_OPTIONS: Final = {
    "min_nodes": "--nnodes",
    "max_nodes": "--nnodes",
    "expected_nodes": "--expected-nodes",
    "max_restarts": "--max-restarts",
    "rank_policy": "--rank-policy",
    "last_call_s": "--last-call",
    "restart_window_s": "--restart-window",
    "early_s": "--early",
    "same_failure": "--same-failure",
    "no_restart_exit_codes": "--no-restart-exit-codes",
    "max_restarts_per_node": "--max-restarts-per-node",
    "cooldown_s": "--cooldown",
    "cooldown_max_s": "--cooldown",
}
"""The option of `rallypoint run` for a setting of a run, for texts. The others have `--set`."""


def run_options(names: Iterable[str]) -> str:
    """The options of these settings of a run, in words: each once."""
    options = (RUN_OPTIONS.get(each, f"--set {each.removesuffix('_s')}=...") for each in names)
    return ", ".join(dict.fromkeys(options))


_DURATIONS: Final = (
    "last_call_s",
    "settle_s",
    "scale_up_delay_s",
    "reconnect_grace_s",
    "suspect_after_s",
    "probe_s",
    "lost_after_s",
    "mass_grace_s",
)
_DURATION_MAX_S: Final = 365 * 86_400.0


def _check_node_counts(min_nodes: int, max_nodes: int, expected: int | None) -> None:
    if min_nodes < 1:
        raise ValueError(f"min_nodes must be at least 1, not {min_nodes}")
    if max_nodes < min_nodes:
        raise ValueError(f"max_nodes ({max_nodes}) must not be below min_nodes ({min_nodes})")
    if expected is not None and not min_nodes <= expected <= max_nodes:
        raise ValueError(
            f"expected_nodes ({expected}) must be within min_nodes ({min_nodes}) "
            f"and max_nodes ({max_nodes})"
        )


def _check_duration(name: str, seconds: float) -> None:
    if not 0 <= seconds <= _DURATION_MAX_S:
        raise ValueError(f"{name} must be within 0 and {_DURATION_MAX_S:g} seconds, not {seconds}")
    if seconds == 0 and name in ("suspect_after_s", "lost_after_s"):
        raise ValueError(f"{name} must be more than 0 seconds: every member would be silent")


class SettingConflict(FrozenStruct, frozen=True):
    """One setting on which a node and its run disagree."""

    name: str
    run_value: str
    node_value: str

    def __str__(self) -> str:
        return f"{self.name}: the run has {self.run_value}, this node {self.node_value}"


class Seat(FrozenStruct, frozen=True):
    """One node's place in a round: the part that is different for each node."""

    node_rank: int
    first_rank: int
    workers: int


class RoundMember(FrozenStruct, frozen=True):
    """One row of a round's member table, in node-rank order.

    `secret_hash`: of the member's resume secret; empty if it has none. This and the incarnation are
    in the ledger only: nodes are told neither (`told_rows`).
    """

    name: str
    incarnation: int
    host: str
    addresses: tuple[str, ...]
    workers: int
    labels: dict[str, str] = {}
    stop_s: float = 5.0
    secret_hash: bytes = b""


class RoundHead(FrozenStruct, frozen=True):
    """The part of a round that is equal for all members. Its size does not depend on their number.

    `digest` is computed over the member table, so that members can compare the table without
    receiving it (R2).
    """

    number: int
    term: int
    nodes: int
    size: int
    bootstrap: Address
    digest: str
    restart_count: int = 0


class RoundRecord(FrozenStruct, frozen=True):
    """A round as it is committed: its head and its whole member table."""

    head: RoundHead
    members: tuple[RoundMember, ...]


def table_digest(number: int, members: tuple[RoundMember, ...], bootstrap: Address) -> str:
    """A digest of all that the members of a round must agree on (R2), 16 hexadecimal digits.

    It does not cover resume secrets, which concern only one member and its coordinator. It covers
    incarnations, so no two rounds have the same digest.
    """
    rows = [
        (r.name, r.incarnation, r.host, r.addresses, r.workers, r.labels, r.stop_s) for r in members
    ]
    # R2: all on which members must agree.
    table = msgspec.msgpack.encode((number, rows, bootstrap))
    return hashlib.sha256(table).hexdigest()[:16]


UNTOLD_INCARNATION: Final = 0
"""What is sent to nodes in place of an incarnation."""


def told_rows(members: tuple[RoundMember, ...]) -> list[tuple[object, ...]]:
    """The table as it is sent to the members of the round.

    It has no incarnations and no hashes of secrets: only coordinators need these.
    """
    return [
        (r.name, UNTOLD_INCARNATION, r.host, r.addresses, r.workers, r.labels, r.stop_s)
        for r in members
    ]


class FailureKind(enum.StrEnum):
    """Why a worker failed, as its agent sees it. The worst comes first.

    A hang is `Failure.is_hang`, because earlier releases could not read another kind.
    """

    SIGNAL = "signal"
    OOM = "oom"
    EXCEPTION = "exception"
    COMMUNICATION = "communication"


HANG: Final = "hang"
"""How the kind of a failure is called that is a hang."""


class Failure(FrozenStruct, frozen=True):
    """A worker's failure, as its node reports it.

    `is_hang`: no worker advances any more, and this one is the odd one out; for earlier releases it
    is an exception. Then `last_lines` is its stack.
    """

    kind: FailureKind
    message: Text
    rank: int | None = None
    local_rank: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    last_lines: Annotated[tuple[Text, ...], msgspec.Meta(max_length=64)] = ()
    is_hang: bool = False

    @property
    def kind_name(self) -> str:
        """Its kind for people, and in events: that of `kind`, or a hang."""
        return HANG if self.is_hang else self.kind.value

    def __str__(self) -> str:
        """One line: the rank of the worker, how it ended, and its message."""
        rank = f"rank {self.rank} " if self.rank is not None else ""
        if self.is_hang:
            return f"{rank}hangs ({self.message})" if rank else self.message
        if self.kind is FailureKind.OOM:
            how = "was killed for lack of memory"
        elif self.signal is not None:
            return f"{rank}was {self._killed_by(self.signal)}"
        elif self.exit_code is not None:
            how = f"exited with code {self.exit_code}"
        else:
            how = "failed"
        return f"{rank}{how}" + (f" ({self.message})" if self.message else "")

    def _killed_by(self, number: int) -> str:
        # An agent's message names the signal ("killed by SIGKILL"), as numbers differ by system.
        killed, separator, said = self.message.partition(": ")
        name = killed.removeprefix("killed by ")
        if name == killed or not name.startswith("SIG"):
            message = "" if killed == f"killed by signal {number}" else self.message
            return f"killed by signal {number}" + (f" ({message})" if message else "")
        return f"killed by {name} (signal {number})" + (f": {said}" if separator else "")


class ChangeKind(enum.StrEnum):
    """Why a round ended."""

    NODE_LOST = "node_lost"
    WORKER_FAILED = "worker_failed"
    NODE_LEFT = "node_left"
    NODES_JOINED = "nodes_joined"
    READY_AGAIN = "ready_again"
    CLOSED = "closed"


class Change(FrozenStruct, frozen=True):
    """Why a round ended.

    `nodes`: at most NAMES_SHOWN_MAX names; `count`: how many nodes there are. `since_s`: how long
    before this change the trouble began, in seconds (a node silent for 5.2 s). `confirmed`: False
    while a case is open, because a worse cause may still become known.
    """

    kind: ChangeKind
    round: int
    nodes: tuple[str, ...] = ()
    count: int = 0
    detail: str = ""
    since_s: float = 0.0
    failure: Failure | None = None
    charged: bool = False
    confirmed: bool = True

    @property
    def cause(self) -> str:
        """A word for programs: its kind, or a hang."""
        is_hang = self.failure is not None and self.failure.is_hang
        return HANG if is_hang else self.kind.value

    def __str__(self) -> str:
        """One line: why the round ended, and which nodes are the reason."""
        who = some(self.nodes, self.count)
        detail = f": {self.detail}" if self.detail else ""
        match self.kind:
            case ChangeKind.NODE_LOST if not self.nodes and self.detail:
                return self.detail  # The round's store was lost, and no member.
            case ChangeKind.NODE_LOST:
                return f"{who} lost{detail}"
            case ChangeKind.WORKER_FAILED if self.failure is not None and self.failure.is_hang:
                return f"{who}: {self.failure}" if self.nodes else self.detail
            case ChangeKind.WORKER_FAILED:
                return f"a worker failed on {who}: {self.failure or self.detail}"
            case ChangeKind.NODE_LEFT:
                return f"{who} left{detail}"
            case ChangeKind.NODES_JOINED:
                return f"{who} joined"
            case ChangeKind.READY_AGAIN if not self.nodes and self.detail:
                return self.detail  # An operator has scaled the run.
            case ChangeKind.READY_AGAIN:
                return f"{who} asked for a new round"
            case ChangeKind.CLOSED:
                return f"the run was closed{detail}"


class Drain(FrozenStruct, frozen=True):
    """Nodes of a round that are going to leave it. The round goes on until then.

    `nodes`: at most NAMES_SHOWN_MAX names; `count`: how many nodes there are. `left_s`: in how many
    seconds the first of them leaves at the latest. `reason`: why that one leaves. `is_asked`: all
    members of the round take part in the agreement on a step, so each of them is asked for its
    promise (R14).
    """

    nodes: tuple[Name, ...]
    count: int
    left_s: float
    reason: Text
    is_asked: bool


class Marks(FrozenStruct, frozen=True):
    """The marks of the members of one round: who is done, and who is gone.

    It is in the run's head, so a successor knows it. `done` and `gone` are bitmaps over node ranks:
    bit r % 8 of byte r // 8. Done: the workers have finished. Gone: the member is not expected in
    the next round, because it departs, has left, or was lost. `ended`: why the round ended; None
    while it is active. `finished`: how many members of earlier rounds have finished.
    `finished_nodes`: which ones, as `core/finished.py` writes them. It may have fewer. `step`: the
    one at which all workers of the round stop, if it was decided (R14).
    """

    round: int = 0
    done: bytes = b""
    gone: bytes = b""
    ended: Change | None = None
    finished: int = 0
    finished_nodes: bytes = b""
    step: int | None = None


class Outcome(enum.StrEnum):
    """How a run ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    NOT_ENOUGH = "not_enough_nodes"
    STOPPED = "stopped"


class CloseRecord(FrozenStruct, frozen=True):
    """The end of a run as it is committed. Nothing follows it (R6).

    `by`: a node's name, or an operator. `by_operator`: which of both it is; None if nobody asked
    for the end, or an older release wrote the record. The text of `by` must not decide that: nodes
    choose their names.
    """

    outcome: Outcome
    reason: str
    by: str = ""
    term: int = 0
    round: int = 0
    cause: Change | None = None
    by_operator: bool | None = None

    def __str__(self) -> str:
        """One line: how the run ended, why, and by whom."""
        who = f"node {self.by!r}" if self.by_operator is False else self.by
        by = f" (by {who})" if self.by else ""
        return f"{self.outcome.value.replace('_', ' ')}: {self.reason}{by}"


class EndedOwner(FrozenStruct, frozen=True):
    """A coordinator whose process has ended, as far as a node can see.

    The node's connection to it has ended, and the address of that connection refuses a new one.
    `version`: of the coordinator's lease, as the node read it just before. A lease that was renewed
    since is that of a process that is alive. `refused`: that address; None from a node of an older
    release, which does not tell it.
    """

    process: ProcessName
    version: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    refused: Address | None = None

    def is_of(self, process: str, version: int) -> bool:
        """Whether this is about this version of the process's lease."""
        return (self.process, self.version) == (process, version)


class Stamp(FrozenStruct, frozen=True):
    """(ledger, term, round): every message has it, and every receiver compares it (R5)."""

    ledger_id: str = ""
    term: int = 0
    round: int = 0

    def is_older_than(self, other: Stamp) -> bool:
        """Whether this is of an earlier term or round of the same ledger."""
        same_ledger = self.ledger_id == other.ledger_id
        # R5: terms first, then rounds.
        return same_ledger and (self.term, self.round) < (other.term, other.round)
