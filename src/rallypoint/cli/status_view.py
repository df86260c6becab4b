"""The view of `rallypoint status`, drawn from the JSON of a coordinator. This file has no I/O.

A coordinator of another release may omit a field or add one. A missing field is left empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from rallypoint.cli.output import cell, moment_of, table
from rallypoint.core import reasons
from rallypoint.core.printable import size_of, spans
from rallypoint.core.sizes import size_text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

Status = Mapping[str, Any]

ROUNDS_SHOWN: Final = 5
LOSSES_SHOWN: Final = 5
_PHASE_STYLES: Final = {
    "active": "green",
    "gathering": "yellow",
    "committing": "yellow",
    "suspended": "red",
}
_VOLATILE: Final = frozenset(
    {"shown_at", "connections", "reason", "memory_bytes", "in_words", "step", "steps_behind"}
)
"""Fields that differ between two statuses without any news: `waiting` is the reason as data."""
_WITHOUT_ROUND: Final = frozenset({"gathering", "committing", "closed"})
"""The phases in which no round is active."""


MEMBER_ORDERS: Final = ("rank", "name", "state", "host", "trouble")
"""In which order members can be shown. The first one is usual."""
RUN_ORDERS: Final = ("id", "phase", "size")
"""The same for runs."""


def draw(status: Status, order: int = 0) -> list[RenderableType]:
    """The parts of a status of one run, or of all runs of a coordinator.

    `order`: the number of an order of MEMBER_ORDERS or RUN_ORDERS; a larger one begins anew.
    """
    if "run_id" in status:
        return _draw_run(status, MEMBER_ORDERS[order % len(MEMBER_ORDERS)])
    return _draw_runs(status, RUN_ORDERS[order % len(RUN_ORDERS)])


def order_name(status: Status, order: int) -> str:
    """The name of the order in which `draw` shows it."""
    orders = MEMBER_ORDERS if "run_id" in status else RUN_ORDERS
    return orders[order % len(orders)]


def time_of_day(at: object) -> str:
    """A time in seconds since 1970, in the time zone of the terminal; "" if it is unknown."""
    moment = moment_of(at)
    if moment is None:
        return ""
    is_today = moment.date() == datetime.now(UTC).astimezone().date()
    return f"{moment:%H:%M:%S}" if is_today else f"{moment:%Y-%m-%d %H:%M:%S}"


def key(status: object) -> object:
    """A key that stays equal while only times change."""
    if isinstance(status, Mapping):
        return {name: _key(name, each) for name, each in status.items() if name not in _VOLATILE}
    if isinstance(status, list):
        return [key(each) for each in status]
    return status


def _key(name: str, value: object) -> object:
    # A duration passes (coordinator/status.py says how they are named). That there is one is news.
    return value is None if name.endswith("_s") else key(value)


def has_ended(status: Status) -> bool:
    """Whether this is a status of one run, and it is over."""
    return status.get("phase") == "closed"


def seconds(value: float | None) -> str:
    """A duration for people: three digits are enough."""
    if value is None:
        return ""
    if value < 0.9995:
        return f"{value * 1_000:.0f} ms"
    return f"{value:.1f} s" if value < 60 else f"{value / 60:.1f} min"


def _count(number: object, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{'?' if number is None else number} {noun}s"


# -- all runs ------------------------------------------------------------------------------------


def _draw_runs(status: Status, order: str) -> list[RenderableType]:
    coordinator = status.get("coordinator")
    head = cell(_coordinator(coordinator) if coordinator else "no coordinator serves a run now")
    runs = status.get("runs") or []
    if not runs:
        return [head, cell("no runs")]
    headings = ("run", "phase", "round", "nodes", "workers", "attached", "restarts", "why")
    return [head, table(headings, [_run_row(each) for each in _runs_by(order, runs)])]


def _runs_by(order: str, runs: list[Status]) -> list[Status]:
    if order == "phase":
        return sorted(runs, key=lambda run: str(run.get("phase")))
    if order == "size":
        return sorted(runs, key=lambda run: -int(run.get("size") or 0))
    return runs


def _coordinator(it: Status) -> str:
    connections = _count(it.get("connections"), "connection")
    used, most = it.get("memory_bytes"), it.get("memory_bytes_max")
    memory = f", {size_text(used)} of {size_text(most)} in memory" if used and most else ""
    return f"coordinator: {it.get('software', 'unknown')}, {connections}{memory}"


def _run_row(run: Status) -> tuple[Text, ...]:
    names = ("round", "nodes", "size", "attached", "restart_count")
    past = ("nodes", "size") if run.get("phase") in _WITHOUT_ROUND else ()
    shown = ("-" if name in past else run.get(name) for name in names)
    return (
        cell(run.get("run_id", "")),
        _phase(run),
        *(cell("?" if each is None else each) for each in shown),
        cell(run.get("reason", "")),
    )


def _phase(run: Status) -> Text:
    phase = str(run.get("phase", ""))
    return cell(phase, _PHASE_STYLES.get(phase, ""))


# -- one run -------------------------------------------------------------------------------------


def _draw_run(run: Status, order: str) -> list[RenderableType]:
    parts: list[RenderableType] = [_head(run)]
    if run.get("reason"):
        parts.append(cell(f"{_why(run)}: {run['reason']}"))
    parts += _progress(run)
    parts += _owner(run)
    parts += _orders(run)
    parts += _members(run, order)
    parts += _rounds(run)
    parts += _losses(run)
    return parts


def _head(run: Status) -> Text:
    """What is the case now. The size of a round that is over is in the table of rounds."""
    line = cell(f"run {run.get('run_id')}: ", "bold") + _phase(run)
    number, restarts = run.get("round"), _count(run.get("restart_count"), "restart")
    if run.get("phase") in _WITHOUT_ROUND:
        after = f" after round {number}" if number else ""
        here = f", {_count(run['attached'], 'node')} attached" if run.get("attached") else ""
        line += cell(f"{after}{here}{f', {restarts}' if number else ''}")
    elif number:
        last = (run.get("rounds") or [{}])[-1]
        is_over = last.get("number") == number and bool(last.get("ended"))
        size = f"{_count(run.get('nodes'), 'node')}, {_count(run.get('size'), 'worker')}"
        what = f" after round {number}" if is_over else f", round {number}: {size}"
        line += cell(f"{what}, {restarts}")
    return line


def _progress(run: Status) -> list[RenderableType]:
    """How far the workers are, and who stands behind."""
    progress = run.get("progress") or {}
    said = progress.get("in_words")
    if not said:
        return []
    parts = [cell(f"progress: {said}", "red" if progress.get("is_still") else "")]
    names, total = run.get("behind") or [], int(run.get("behind_total") or 0)
    if names:
        parts.append(cell(reasons.stand_behind(names, total), "yellow"))
    return list(parts)


def _owner(run: Status) -> list[RenderableType]:
    """Which process coordinates the run, and when this was so."""
    owner, coordinator = run.get("owner") or {}, run.get("coordinator") or {}
    process = str(owner.get("process") or coordinator.get("host") or "")
    if not process:
        return []
    addresses = ", ".join(map(str, owner.get("addresses") or ()))
    software = str(coordinator.get("software") or "")
    where = f" at {addresses}" if addresses else ""
    told = f" ({software})" if software else ""
    hosting = f", in node {coordinator['node']}" if coordinator.get("node") else ""
    shown, on = time_of_day(run.get("shown_at")), run.get("shown_on")
    when = f"; {shown} by the clock of {on}" if shown and on else ""
    return [cell(f"coordinator: {process}{hosting}{where}{told}{when}")]


def _orders(run: Status) -> list[RenderableType]:
    """What operators have ordered."""
    lines = []
    scaled = run.get("scaled")
    if scaled:
        why = f": {scaled['reason']}" if scaled.get("reason") else ""
        size = size_of(scaled.get("min_nodes", 0), scaled.get("max_nodes", 0))
        lines.append(f"scaled to {size} by {scaled.get('by')}{why}")
    for each in run.get("members") or ():
        name = each.get("name")
        if each.get("draining"):
            until = _until(run, each.get("draining_left_s"), "leaves by")
            lines.append(f"{name} is draining{until}: {each['draining']}")
        elif each.get("drained"):
            lines.append(f"{name} was asked to leave by {each['drained']}")
        if each.get("cooling"):
            lines.append(f"{name} {_staying_out(run, each)}")
    for each in run.get("evicted") or ():
        why = f": {each['reason']}" if each.get("reason") else ""
        lines.append(f"{each.get('node')} was evicted by {each.get('by')}{why}")
    return [cell(line) for line in lines]


def _staying_out(run: Status, member: Any) -> str:
    """That a member has to stay out of rounds: why, and until when if that is known."""
    why = member.get("cooling_why")  # an earlier release has only the whole text
    if member.get("node_rank") is not None:
        return (
            f"is in the round for want of others, and should stay out: {why or member['cooling']}"
        )
    if not why:
        return f"stays out, {member['cooling']}"
    return f"stays out{_until(run, member.get('cooling_left_s'), 'until')}: {why}"


def _until(run: Status, left_s: float | None, what: str) -> str:
    """When something ends, by the clock of the coordinator's host; "" if that is unknown."""
    shown_at = run.get("shown_at")
    if left_s is None or not isinstance(shown_at, int | float):
        return ""
    return f", {what} {time_of_day(shown_at + left_s)} (in {seconds(left_s)})"


def _why(run: Status) -> str:
    if run.get("phase") == "closed":
        return "ended"
    return "from the ledger" if run.get("source") == "ledger" else "waiting"


def _members(run: Status, order: str) -> list[RenderableType]:
    members = run.get("members") or []
    total = int(run.get("members_total") or len(members))
    if not total:
        return [cell("no members")]
    parts: list[RenderableType] = [cell("")]
    if members:
        headings = ["node", "ranks", "member", "state", "link", "host"]
        has_index = any(each.get("index") is not None for each in members)
        if has_index:
            headings.append("index")
        has_labels = any(each.get("labels") for each in members)
        if has_labels:
            headings.append("labels")
        has_steps = any(each.get("progress") for each in members)
        if has_steps:
            headings += ["step", "pace", "advanced"]
        rows = [
            (*_member_row(each, has_index, has_labels), *(_steps(each) if has_steps else ()))
            for each in _members_by(order, members)
        ]
        parts.append(table(headings, rows))
    for each in members:
        if each.get("evidence"):
            parts.append(cell(f"{each.get('name')}: {each['evidence']}"))
    if total > len(members):
        parts.append(cell(f"and {total - len(members)} more (--members {total} shows all)"))
    return parts


def _members_by(order: str, members: list[Status]) -> list[Status]:
    by_rank = _by_rank(members)
    match order:
        case "trouble":
            return sorted(by_rank, key=lambda member: -float(member.get("troubled_s") or 0.0))
        case "name" | "state" | "host":
            return sorted(by_rank, key=lambda member: str(member.get(order) or ""))
    return by_rank


def _by_rank(members: list[Status]) -> list[Status]:
    """Members of the round in the order of their ranks, then the others in order of arrival."""

    def place(member: Status) -> tuple[bool, int]:
        rank = member.get("node_rank")
        return (rank is None, rank or 0)

    return sorted(members, key=place)


def _member_row(member: Status, has_index: bool, has_labels: bool) -> tuple[Text, ...]:
    link = str(member.get("link") or "")
    is_troubled = link not in ("connected", "")
    since = f" for {seconds(member.get('troubled_s'))}" if is_troubled else ""
    rank, index = member.get("node_rank"), member.get("index")
    labels = ",".join(f"{name}={text}" for name, text in (member.get("labels") or {}).items())
    return (
        cell("-" if rank is None else rank),
        cell(spans(member.get("ranks") or []) or "-"),
        cell(member.get("name", "")),
        cell(member.get("state") or ""),
        cell(link + since, "red" if is_troubled else ""),
        cell(member.get("host", "")),
        *((cell("" if index is None else index),) if has_index else ()),
        *((cell(labels),) if has_labels else ()),
    )


def _steps(member: Status) -> tuple[Text, ...]:
    """How far its workers are, how quick, and when they advanced."""
    it = member.get("progress")
    if not it:
        return (cell(""),) * 3
    step, pace, behind = it.get("step"), it.get("steps_per_s"), it.get("steps_behind")
    is_behind = bool(it.get("is_behind"))
    text = "-" if step is None else f"{step:,}"
    if is_behind and behind:
        text += f" ({behind:,} behind)"
    return (
        cell(text, "yellow" if is_behind else ""),
        cell("-" if pace is None else "stands still" if not pace else reasons.rate(pace)),
        cell(f"{seconds(it.get('advanced_ago_s'))} ago"),
    )


def _rounds(run: Status) -> list[RenderableType]:
    rounds = run.get("rounds") or []
    if not rounds:
        return []
    shown = rounds[-ROUNDS_SHOWN:]
    formed = [time_of_day(each.get("formed_at")) for each in shown]
    waited = ["; ".join(each.get("waited") or ()) for each in shown]
    headings = ["round", "nodes", "workers", "gathered in", "lasted", "ended"]
    rows = [list(_round_row(each)) for each in shown]
    if any(waited):
        headings.insert(4, "waited for")
        for row, text in zip(rows, waited, strict=True):
            row.insert(4, cell(text.removeprefix("waited ")))
    if any(formed):
        headings.insert(1, "formed at")
        for row, text in zip(rows, formed, strict=True):
            row.insert(1, cell(text))
    return [cell(""), table(headings, rows)]


def _round_row(each: Status) -> tuple[Text, ...]:
    return (
        cell(each.get("number", "")),
        cell(each.get("nodes", "")),
        cell(each.get("size", "")),
        cell(seconds(each.get("gathering_s")) or "?"),
        cell(_lasted(each)),
        cell(each.get("ended", "")),
    )


def _lasted(each: Status) -> str:
    """The duration of a round that is over. After a takeover it is only the known minimum."""
    if each.get("active_s") is not None or not each.get("ended"):
        return seconds(each.get("active_s"))
    return f">= {seconds(each.get('active_min_s'))}" if each.get("active_min_s") else "?"


def _losses(run: Status) -> list[RenderableType]:
    losses = run.get("losses") or []
    if not losses:
        return []
    headings = ("after round", "while", "lost between rounds")
    rows = [
        tuple(cell(each.get(name, "")) for name in ("round", "phase", "text"))
        for each in losses[-LOSSES_SHOWN:]
    ]
    return [cell(""), table(headings, rows)]
