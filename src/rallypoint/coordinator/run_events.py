"""The events of a run for people: one record for each thing that happened.

`observer` makes them from the core's steps, and `event_log` keeps them. Status, page, metrics and
logs (`event_lines`) are made from them. No decision depends on them. `table` gives the table of
docs/events.md.
"""

from __future__ import annotations

import enum
from typing import Any, Final

import msgspec

from rallypoint.core import reasons
from rallypoint.core.printable import size_of, some

TEXT_MAX: Final = 500
"""The most characters of a detail."""
LINES_MAX: Final = 20
LINE_MAX: Final = 200
"""How many of a failure's last lines an event keeps, and the most characters of each."""
EVENT_BYTES: Final = 400
"""The memory of an event besides its texts, in bytes."""


class EventKind(enum.StrEnum):
    """What happened. ABOUT says more."""

    BEGAN = "began"
    TOOK_OVER = "took_over"
    HANDED_OVER = "handed_over"
    DEPOSED = "deposed"
    GAVE_UP = "gave_up"
    SUSPENDED = "suspended"
    RESTORED = "restored"
    ATTACHED = "attached"
    RESUMED = "resumed"
    REFUSED = "refused"
    READY = "ready"
    STANDBY = "standby"
    DISCONNECTED = "disconnected"
    SUSPECT = "suspect"
    WITNESSED = "witnessed"
    HEARD = "heard"
    GUARDED = "guarded"
    WORKER_FAILED = "worker_failed"
    DEPARTING = "departing"
    LEFT = "left"
    LOST = "lost"
    SUPERSEDED = "superseded"
    DONE = "done"
    DRAIN_ASKED = "drain_asked"
    EVICTED = "evicted"
    READMITTED = "readmitted"
    SCALED = "scaled"
    COOLING = "cooling"
    LET_BACK_IN = "let_back_in"
    FORGIVEN = "forgiven"
    LAST_CALL = "last_call"
    HELD_BACK = "held_back"
    WAITED = "waited"
    FORMED = "formed"
    NOT_BEGUN = "not_begun"
    LET_IN = "let_in"
    STACKS = "stacks"
    BROKEN = "broken"
    CAUSE = "cause"
    CLOSED = "closed"
    DROPPED = "dropped"


class About(msgspec.Struct, frozen=True):
    """What an event of one kind means.

    `text`: its sentence. `fields`: those that it has besides the ones that all events have. `what`:
    when it happens. `advice`: what to do; "" if nothing.
    """

    text: str
    fields: tuple[str, ...]
    what: str
    advice: str = ""


ABOUT: Final[dict[EventKind, About]] = {
    EventKind.BEGAN: About("the run began", (), "The first node asked for the run."),
    EventKind.TOOK_OVER: About(
        "this coordinator took the run over",
        ("detail",),
        "Another coordinator owned the run before. `detail` says from when on its events may be "
        "missing.",
        "If it happens often, look at the former coordinator's log.",
    ),
    EventKind.HANDED_OVER: About(
        "this coordinator gave the run up",
        ("detail",),
        "The coordinator ends, or another one can serve the run better.",
    ),
    EventKind.DEPOSED: About(
        "this coordinator was deposed",
        ("detail",),
        "Another coordinator owns the run now. The events go on there.",
        "If the coordinator was alive, look at the latency of the ledger.",
    ),
    EventKind.GAVE_UP: About(
        "this coordinator gave the run up after an unexpected error",
        ("detail",),
        "A bug of Rallypoint. On a ledger the run goes on; in memory it is lost.",
        "Report the traceback in the coordinator's log.",
    ),
    EventKind.SUSPENDED: About(
        "suspended",
        ("cause", "detail"),
        "The ledger cannot be used. A round goes on, and nothing is decided. `cause`: lease, "
        "commit, append or deposed.",
        "Look at the ledger: `detail` has its error.",
    ),
    EventKind.RESTORED: About(
        "no longer suspended after {seconds}",
        ("cause", "seconds"),
        "The ledger can be used again. `seconds`: how long the run was suspended. `cause`: the "
        "last one that ended.",
    ),
    EventKind.ATTACHED: About(
        "{who} attached",
        ("node", "nodes", "count", "detail"),
        "A node was admitted as a new member. `detail`: its host.",
    ),
    EventKind.RESUMED: About(
        "{who} attached again",
        ("node", "nodes", "count", "seconds"),
        "A member has a new connection. `seconds`: how long it could not be heard.",
    ),
    EventKind.REFUSED: About(
        "{who} refused",
        ("node", "count", "cause", "detail"),
        "A node asked to attach, and was not admitted. `cause`: the code of the refusal. Refusals "
        "of one node for one reason are told once a minute, with their number.",
        "`detail` says what to change. The node has the same text.",
    ),
    EventKind.READY: About(
        "{who} ready",
        ("node", "nodes", "count"),
        "A member asks for the next round.",
    ),
    EventKind.STANDBY: About(
        "{who} on standby",
        ("node", "nodes", "count"),
        "A member is ready while a round is active without it.",
        "If it has to take part, look at `max_nodes`.",
    ),
    EventKind.DISCONNECTED: About(
        "the connection of {who} closed",
        ("node", "nodes", "count", "detail"),
        "A member's connection ended without a goodbye. `detail`: how, as in core/values.py.",
    ),
    EventKind.SUSPECT: About(
        "{who} suspect, not heard for {seconds}",
        ("node", "nodes", "count", "seconds"),
        "A member is connected and silent for `suspect_after_s`.",
        "The node is frozen, swaps, or its network is gone.",
    ),
    EventKind.WITNESSED: About(
        "{who} silent",
        ("node", "nodes", "count", "detail"),
        "Heartbeats of all members on one host were missing, and other members were asked whether "
        "that host still answers them. `detail`: what they have found.",
        "If the host answered, look at the node's process and at its way to the coordinator. If it "
        "did not, look at the host: its power, its kernel, its switch.",
    ),
    EventKind.HEARD: About(
        "{who} heard again after {seconds}",
        ("node", "nodes", "count", "seconds"),
        "A suspect member was heard again. `seconds`: how long it was silent.",
    ),
    EventKind.GUARDED: About(
        "many nodes cannot be heard, so none is declared lost for up to {seconds}",
        ("nodes", "count", "seconds"),
        "The mass guard holds: the network or the coordinator is a likelier cause than so many "
        "deaths.",
        "Look at the network between these nodes and the coordinator.",
    ),
    EventKind.WORKER_FAILED: About(
        "a worker failed on {who}",
        ("node", "nodes", "count", "cause", "detail", "last_lines"),
        "A node reported that a worker failed in the round. `cause`: signal, oom, exception or "
        "communication.",
        "The event `cause` says which failure was the first cause.",
    ),
    EventKind.DEPARTING: About(
        "{who} is leaving",
        ("node", "nodes", "count", "detail"),
        "A node was asked to leave, and stops its workers.",
    ),
    EventKind.LEFT: About(
        "{who} left",
        ("node", "nodes", "count", "detail"),
        "A node said goodbye, or ended after its workers had finished.",
    ),
    EventKind.LOST: About(
        "{who} lost",
        ("node", "nodes", "count", "seconds", "detail"),
        "A member was removed, because it can no longer be heard. `seconds`: how long it could not "
        "be heard before.",
        "`detail` has the evidence: see docs/protocol.md, When a member is lost.",
    ),
    EventKind.SUPERSEDED: About(
        "{who} superseded by a newer start of the same name",
        ("node",),
        "A node with the same name was started again, and the older one did not answer.",
    ),
    EventKind.DONE: About(
        "{who} done",
        ("node", "nodes", "count"),
        "All workers of a node have finished.",
    ),
    EventKind.DRAIN_ASKED: About(
        "{who} asked to leave by {by}",
        ("node", "by", "detail"),
        "An operator has drained the node, the ledger has that, and the node was told. `detail`: "
        "the operator's reason.",
        "The node leaves when its workers have stopped: `departing` and `left` follow.",
    ),
    EventKind.EVICTED: About(
        "{who} evicted by {by}",
        ("node", "by", "detail"),
        "An operator has taken the node out of the run. It is refused from now on. `detail`: the "
        "operator's reason.",
        "Start a sound machine under another name, or lift it with `rallypoint admit`.",
    ),
    EventKind.READMITTED: About(
        "eviction of {who} lifted by {by}",
        ("node", "by", "detail"),
        "An operator has lifted an eviction. A start of the node may join when the ledger has "
        "that. `detail`: the operator's reason.",
        "Start the node again.",
    ),
    EventKind.SCALED: About(
        "scaled to {scale} by {by}",
        ("min_nodes", "max_nodes", "by", "detail"),
        "An operator has changed how many nodes the run has. `detail`: the operator's reason.",
    ),
    EventKind.COOLING: About(
        "{who} stays out for {seconds}",
        ("node", "seconds", "detail"),
        "The node broke more rounds than `max_restarts_per_node`, or its own check failed; then "
        "`seconds` is null. Others come first for so long. `detail`: why.",
        "Look at that machine: its devices, its memory, its disks.",
    ),
    EventKind.LET_BACK_IN: About(
        "{who} let back in, because there are too few others",
        ("node", "detail"),
        "The node should stay out, and the minimum needs it. `detail`: why it should.",
        "Start a spare node, so that this one can stay out.",
    ),
    EventKind.FORGIVEN: About(
        "{who} may join again",
        ("node",),
        "The node has stayed out for its time, or its check has passed. The next time is twice as "
        "long, unless it breaks no round for a while.",
    ),
    EventKind.LAST_CALL: About(
        "last call: enough nodes are ready, and others have {seconds}",
        ("count", "seconds"),
        "The minimum is ready. `count`: how many nodes are ready. `seconds`: how long the round "
        "waits for more.",
    ),
    EventKind.HELD_BACK: About(
        "the next round is held back for {seconds}, because rounds end too often",
        ("seconds",),
        "The run has used up its allowance of rounds.",
        "Look at why its rounds end: the events `broken` and `cause`.",
    ),
    EventKind.WAITED: About(
        "waited {seconds} for {who}",
        ("node", "nodes", "count", "seconds", "detail"),
        "A round is formed, and for more than a second no further node was ready. It names those "
        "that were ready later, or that were not ready in time. At most four, the longest ones, "
        "are told.",
    ),
    EventKind.FORMED: About(
        "round {round} formed with {count}",
        ("nodes", "count", "seconds", "phases"),
        "The ledger has the round, and its members get their ranks. `nodes`: the first ones, by "
        "rank. `seconds`: from the end of the round before, or the arrival of the first node, "
        "until the round was given to the ledger.",
    ),
    EventKind.NOT_BEGUN: About(
        "round {round} was written, and not begun",
        ("detail",),
        "A member went while the round was written, so another round is formed.",
    ),
    EventKind.LET_IN: About(
        "{who} let in",
        ("node", "nodes", "count"),
        "The round ends, so that newcomers get its free places.",
    ),
    EventKind.STACKS: About(
        "where workers stood",
        ("nodes", "count", "detail", "last_lines"),
        "A round ends as a hang, and so many workers had equal stacks; `detail` says which and "
        "where, and `last_lines` has the stack of one of them, the innermost frame first. At most "
        "eight groups, the largest first.",
        "`rallypoint stacks RUN --last` prints them. See docs/hangs.md.",
    ),
    EventKind.BROKEN: About(
        reasons.ROUND_HAS_ENDED,
        ("nodes", "count", "cause", "seconds", "detail", "last_lines"),
        "The round is over, and its members were told. `cause`: as in core/values.py, ChangeKind; "
        "or hang. `seconds`: how long the round was active here.",
        "If a worker failed, the event `cause` follows.",
    ),
    EventKind.CAUSE: About(
        reasons.CAUSE_WAS,
        ("nodes", "count", "cause", "detail", "last_lines"),
        "The verdict: the first cause of the end of a round.",
        "docs/protocol.md, How the cause is found.",
    ),
    EventKind.CLOSED: About(
        "the run was closed",
        ("cause", "detail"),
        "No further round is formed. `cause`: succeeded, failed, not_enough_nodes or stopped.",
    ),
    EventKind.DROPPED: About(
        "{count} not kept",
        ("count", "detail"),
        "Events are missing here, and `detail` says why. `count`: how many; 0: that is unknown.",
        "The rounds are still in `rallypoint status`.",
    ),
}

FIELDS: Final = (
    *("node", "nodes", "count", "seconds", "cause", "detail", "last_lines", "phases"),
    *("by", "min_nodes", "max_nodes"),
)
"""The fields that only some kinds of events have."""
FROM_HEAD: Final = 1_000_000_000
"""The first number of events that a process makes from the run's head without owning the run."""


class RunEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event. (`term`, `seq`) is its place in the history of its run.

    `at`: seconds since 1970 by the clock of host `on`, for people only (R9). `offset_s`: seconds
    since that coordinator was started, by a monotonic clock: the difference of two events of one
    term is exact. `round`: the last round that was formed by then. `nodes`: at most eight names;
    `count`: how many nodes there are. `phases`: for what a round was waited, in seconds. `is_late`:
    the event was read from the run's head, because the coordinator that saw it could not write it.
    `by`: the operator who wanted it.
    """

    term: int
    seq: int
    kind: EventKind
    at: float
    offset_s: float
    on: str
    round: int = 0
    node: str = ""
    nodes: tuple[str, ...] = ()
    count: int = 0
    seconds: float | None = None
    cause: str = ""
    detail: str = ""
    last_lines: tuple[str, ...] = ()
    is_late: bool = False
    phases: dict[str, float] = {}
    by: str = ""
    min_nodes: int = 0
    max_nodes: int = 0

    @property
    def id(self) -> str:
        """Its place as a text, such as 2.17."""
        return f"{self.term}.{self.seq}"

    @property
    def position(self) -> tuple[int, int]:
        """Its place."""
        return self.term, self.seq

    @property
    def bytes(self) -> int:
        """About how much memory it takes."""
        size = EVENT_BYTES + len(self.node) + len(self.detail) + len(self.by)
        if self.nodes or self.last_lines:
            size += sum(map(len, self.nodes)) + sum(map(len, self.last_lines))
        return size

    def __str__(self) -> str:
        """The sentence for people, without the time."""
        count = self.count
        if self.kind is EventKind.FORMED:
            counted = "1 node" if count == 1 else f"{count} nodes"
        else:
            counted = "1 event" if count == 1 else f"{count or 'some'} events"
        who = self.node or some(self.nodes, count)
        text = ABOUT[self.kind].text.format(
            who=who,
            round=self.round,
            count=counted,
            seconds=duration(self.seconds),
            by=self.by or "an operator",
            scale=size_of(self.min_nodes, self.max_nodes),
        )
        return f"{text}: {self.detail}" if self.detail else text


def duration(seconds: float | None) -> str:
    """A duration for people."""
    if seconds is None:
        return "some time"
    if seconds < 1:
        return f"{seconds * 1_000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def shown(event: RunEvent) -> dict[str, Any]:
    """The event as JSON has it: with its `id`, its sentence, and every field."""
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    return {"id": event.id, "text": str(event)} | fields


def position_of(text: str) -> tuple[int, int]:
    """The place that a text such as "2.17" names. Raises ValueError."""
    term, dot, seq = text.partition(".")
    parts = (term, seq if dot else "0")
    if not all(part.isascii() and part.isdigit() and len(part) <= 18 for part in parts):
        raise ValueError("since must be the id of an event, such as 2.17")
    return int(parts[0]), int(parts[1])


def table() -> str:
    """The table of docs/events.md."""
    lines = ["| event | fields | when | what to do |", "| --- | --- | --- | --- |"]
    for kind, about in ABOUT.items():
        fields = ", ".join(f"`{name}`" for name in about.fields) or "–"
        lines.append(f"| `{kind.value}` | {fields} | {about.what} | {about.advice or '–'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
