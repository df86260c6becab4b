"""What happened in a job, for people: columns of events, the state of all processes, the command.

It prints nothing, and changes nothing in the world.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Sequence

import msgspec

from rallypoint.coordinator.run_ownership import RunOwnership
from rallypoint.simulation.faults import ALL_FAULTS
from rallypoint.simulation.job import Job
from rallypoint.simulation.machine import SimulatedFront
from rallypoint.simulation.plan import Plan
from rallypoint.simulation.scene import Scene, StartedNode, Told

WIDTH = 34
"""The width of a column, in characters."""
LEGEND = """\
step         how many events of the world have happened; --at STEP shows all processes there
time s       the world's time, in seconds; each process has a clock of its own
place N      what runs at this place, one process after the other: nodes, then replicas of serve
[node-0.2]   the process of this line and of those below it: a node at place 0; no other has a 2
FAULT x      the fault x begins here, drawn from the seed; at y: when a coordinator is at y
END OF x     it is over. Without this line it was over at once, or lasts until PEACE
LASTING x    a fault that the others must get over while it lasts
PEACE        all faults end, and empty places are filled: from here on all must get well
(1, 2)       the fencing token of a round: term 1, round 2
BROKEN x     the rule x of docs/protocol.md, or another promise, does not hold"""


def command(seed: int, plan: Plan | None = None) -> str:
    """The command that plays it again."""
    words = ["python", "-m", "rallypoint.simulation", "--seed", str(seed)]
    if plan is not None:
        words += ["--plan", plan_text(plan)]
    return shlex.join(words)


def plan_text(plan: Plan) -> str:
    """A plan as JSON, without what has its default."""
    return msgspec.json.encode(plan).decode()


def told(job: Job, *, last: int = 60, is_whole_plan: bool = False) -> str:
    """A job for people: its events, its settings, what did not hold, and the command."""
    plan = job.plan if is_whole_plan else None
    shown = job.events[-last:] if last else job.events
    lines = [f"seed {job.seed}: {len(job.events)} lines of history, {job.world.steps} steps", ""]
    lines += [*LEGEND.splitlines(), *faults(shown), ""]
    if len(shown) < len(job.events):
        lines.append(f"the last {last} lines (--last 0 shows all):")
    lines += columns(job.scene, shown)
    lines += ["", "settings, for --plan:", plan_text(job.plan), ""]
    lines += [f"PROBLEM {problem}" for problem in job.problems] or ["no problem"]
    lines += ["", command(job.seed, plan)]
    return "\n".join(lines)


def faults(events: Sequence[Told]) -> list[str]:
    """What each fault that begins in these events does."""
    kinds = {
        each.what.removeprefix("FAULT ").partition(" at ")[0]: None for each in _begins(events)
    }
    told = {kind: ALL_FAULTS[kind].__doc__ for kind in kinds}
    return [f"FAULT {kind:12} {text.splitlines()[0]}" for kind, text in told.items() if text]


def _begins(events: Sequence[Told]) -> Iterator[Told]:
    return (each for each in events if each.what.startswith("FAULT "))


def columns(scene: Scene, events: Sequence[Told]) -> list[str]:
    """The events as lines: the step and the time at the left, then one column for each place.

    Whatever runs at one place, one after the other, shares its column; its name is told when it
    changes.
    """
    places = {each.name: each.index for each in scene.nodes}
    count = max(places.values(), default=0) + 1
    heads = ["world", *(f"place {index}" for index in range(count))]
    lines = ["    step    time s  " + "".join(f"{head:<{WIDTH}}" for head in heads).rstrip()]
    shown: dict[int, str] = {}
    for each in events:
        column = places[each.who] + 1 if each.who in places else 0
        text = each.what
        if column and shown.get(column) != each.who:
            shown[column] = each.who
            text = f"[{each.who}] {text}"
        for at, piece in enumerate(textwrap.wrap(text, WIDTH - 2)[:8] or [""]):
            left = f"{each.step:8d} {each.at_s:9.3f}  " if not at else " " * 20
            lines.append(left + " " * (WIDTH * column) + piece)
    return lines


# -- the state of all processes ----------------------------------------------------------------


def state(job: Job) -> str:
    """What each process is and has, now."""
    scene, world = job.scene, job.world
    lines = [
        f"step {world.steps}, {world.now_s:.3f} s, {'faults' if scene.is_chaotic else 'peace'}"
    ]
    lines += _network(scene)
    for each in scene.nodes:
        if each.process.is_alive:
            lines += _node(each)
    for front in scene.fronts:
        if front.process.is_alive and not front.has_ended:
            lines += _coordinator(front)
    lines += ["ledger:", *(f"    {line}" for line in scene.ledger.shown())]
    return "\n".join(lines)


def _network(scene: Scene) -> Iterator[str]:
    network = scene.network
    for (source, target), count in network.blocked.items():
        yield f"    no packet from {source} to {target} ({count})"
    for host in network.hosts.values():
        if not host.is_on:
            yield f"    {host.name} is off"


def _node(here: StartedNode) -> Iterator[str]:
    process = here.process
    frozen = ", frozen" if process.is_frozen else ""
    now_s = process.clock_s()
    over = f", over: {here.end}" if here.is_over else ""
    yield f"{here.name} on {here.host}{frozen}{over}: its clock shows {now_s:.3f} s"
    yield f"    {len(process.loop.tasks)} tasks, {process.loop.timers} timers"
    node = here.node
    if node is None:
        yield "    its ledger is not open yet"
        return
    machine = node._machine
    attached = "attached" if machine.is_attached else f"searching ({node.looking})"
    ended = f", ended by {machine.ended}" if machine.ended is not None else ""
    closed = f", closed: {machine.closed}" if machine.closed is not None else ""
    yield f"    node: {machine.desired.name}, {attached}, stamp {machine.stamp}{closed}"
    yield f"    round: {here.tokens[-1] if here.tokens else 'none'}{ended}"
    if machine.requests.open:
        yield f"    open requests: {sorted(machine.requests.open)}"


def _coordinator(front: SimulatedFront) -> Iterator[str]:
    coordinator, ownership = front.driver.coordinator, front.driver.ownership
    yield (
        f"coordinator of {front.process.name}, port {front.port}, its clock shows "
        f"{coordinator.now_s():.3f} s"
    )
    if isinstance(ownership, RunOwnership):
        lease = ownership.lease_manager
        yield f"    lease {ownership.process}: {lease.outage or 'valid'} {lease.problem}".rstrip()
        for claimed in ownership._all_claims():
            yield f"    claim to {claimed.run_id}: {claimed.claim.state.name}"
    for session in coordinator.sessions.values():
        who = session.node.name if session.node is not None else "nobody yet"
        yield f"    session {session.connection_id} of {who}"
    for run in coordinator.runs.values():
        membership = run.membership
        claimed_text = "claimed" if run.is_claimed else "not claimed"
        yield (
            f"    run {run.run_id}, {claimed_text}: {membership.phase.name} in term "
            f"{membership.term}, round {membership.number}"
        )
        waiting = membership.waiting(coordinator.now_s())
        if waiting is not None:
            yield f"        {waiting}"
        timers = ", ".join(f"{kind.name} {name}".strip() for kind, name in run._timers._timers)
        yield f"        timers: {timers or 'none'}"
        for member in membership.roster:
            yield f"        {member.name}: {member.where().name}, {member.reachability.name}"
