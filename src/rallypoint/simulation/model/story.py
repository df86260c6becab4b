"""A path through a world as a text that a person reads, and as one that a command repeats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rallypoint.checkers.violations import short
from rallypoint.simulation.model.fair import begin
from rallypoint.simulation.model.limits import FAULTS
from rallypoint.simulation.model.register import Register
from rallypoint.simulation.model.world import Move, State, World

_OF_LINKS = frozenset(
    {"reads", "hears", "notices the end", "notices the loss", "drops", "cut", "silence"}
    | {"heartbeat", "misses", "beats stop", "falls silent"}
)
_OF_COORDINATORS = frozenset(
    {"timer", "writes", "is answered", "limit", "lose lease", "restores lease", "freeze", "wakes"}
    | {"takes over", "crash"}
)


def as_text(path: Iterable[Move]) -> str:
    """A path in one line: `--path` takes it."""
    return ",".join(":".join((what.replace(" ", "-"), str(who), str(n))) for what, who, n in path)


def parsed(text: str) -> list[Move]:
    """The path in such a line. Raises ValueError, naming the part that is no move."""
    path = []
    for part in filter(None, text.split(",")):
        what, _, numbers = part.partition(":")
        try:
            who, which = numbers.split(":")
            path.append((what.replace("-", " "), int(who), int(which)))
        except ValueError:
            raise ValueError(f"{part!r} is no move: a move is what:who:which") from None
    return path


def story(world: World, path: Iterable[Move]) -> Iterator[str]:
    """One line for each move, and what it changed. The last line may be a broken rule.

    Raises ValueError for a move that the state before it does not have.
    """
    state = begin(world)
    for at, move in enumerate(path, 1):
        if move not in [each for each, _ in world.moves(state)]:
            raise ValueError(f"move {at} is not possible there: {as_text([move])}")
        line = f"{at:3d}  {_told(world, state, move)}"
        try:
            after = world.after(state, move)
        except Exception as broken:  # noqa: BLE001 - any error of the shipped code is a fault
            yield line
            yield f"     BROKEN  {type(broken).__name__}: {broken}"
            return
        changes = "; ".join(_changes(world, state, after))
        yield f"{line}: {changes}" if changes else line
        state = after


def _told(world: World, state: State, move: Move) -> str:
    what, who, which = move
    fault = " (a fault)" if what in FAULTS else ""
    if what == "dials":
        return f"n{who} dials c{which}"
    if what in _ORDERS:
        return f"an operator asks c{which} to {_ORDERS[what]} n{who}"
    if what == "order scale":
        least, most = world.limits.sizes[which]
        return f"an operator asks c{who} to scale the run to {least}:{most}"
    if what == "order close":
        return f"an operator asks c{who} to close the run"
    if what in _OF_COORDINATORS:
        return f"c{who} {_VERBS.get(what, what)}{fault}"
    if what in _OF_LINKS:
        return _told_of_link(world, state, what, who) + fault
    return f"n{who} {_VERBS.get(what, what)}{fault}"


def _told_of_link(world: World, state: State, what: str, slot: int) -> str:
    link = world.link_at(state, slot)
    node, coordinator = f"n{slot // world.limits.slots_per_node}", f"c{link.coordinator}"
    match what:
        case "reads":
            message = world.messages.all[link.to_coordinator[0]]
            return f"{coordinator} reads {short(message)} of {node}"
        case "hears":
            message = world.messages.all[link.to_node[0]]
            return f"{node} hears {short(message)} of {coordinator}"
        case "notices the end":
            return f"{coordinator} sees the end of {node}'s connection ({link.node_end})"
        case "notices the loss":
            return f"{node} sees the end of its connection to {coordinator}"
        case "drops":
            return f"{node} leaves {coordinator}, which does not renew its lease"
        case "cut":
            return f"the connection of {node} and {coordinator} is cut"
        case "misses" | "beats stop":
            return f"{coordinator} misses two heartbeats of {node}"
        case "silence" | "falls silent":
            return f"{coordinator} has not heard {node} for suspect_after_s"
        case _:
            return f"{coordinator} gets a heartbeat of {node}"


_VERBS = {
    "ready": "is ready for a round",
    "ready again": "asks for another round",
    "done": "has finished",
    "fail": "has a worker that fails",
    "depart": "is asked to leave",
    "goodbye": "says goodbye",
    "leave": "says goodbye in its round",
    "close": "closes the run",
    "die": "dies",
    "restart": "starts again",
    "timer": "has a timer that fires",
    "writes": "has its write decided by the ledger",
    "is answered": "hears how its write ended",
    "limit": "has a write that the ledger does not accept now",
    "lose lease": "loses its lease",
    "restores lease": "reaches the ledger again",
    "freeze": "stands still, and its lease runs out",
    "wakes": "goes on",
    "takes over": "takes the run over",
    "crash": "dies",
    "power off": "is on a host that loses power",
    "hang": "has a worker that stands still",
    "reports": "reports that its workers have begun",
    "testifies": "says whether the host answers",
    "drains as asked": "drains, as an operator wants",
    "departs as asked": "departs, as an operator wants",
}
_ORDERS = {
    "order drain": "drain",
    "order evict": "evict",
    "order admit": "admit",
}


def _changes(world: World, before: State, after: State) -> Iterator[str]:
    limits = world.limits
    for at in range(limits.nodes):
        was, now = world.nodes.facts[before[at]], world.nodes.facts[after[at]]
        if now.number > was.number:
            yield f"n{at} is in round {now.number}"
        elif was.has_workers and not now.has_workers:
            yield f"n{at} has no active round"
        if now.is_over and not was.is_over:
            yield f"the run is over for n{at}"
    for at in range(limits.coordinators):
        was_c = world.coordinators.facts[before[limits.nodes + at]]
        now_c = world.coordinators.facts[after[limits.nodes + at]]
        if was_c.phase != now_c.phase:
            yield f"c{at} is {now_c.phase or 'no owner'}"
        if now_c.write is not None and now_c.write != was_c.write:
            yield f"c{at} asks to write {_written(now_c.write.record)}"
    was_r: Register = world.registers.all[before[limits.nodes + limits.coordinators]]
    now_r: Register = world.registers.all[after[limits.nodes + limits.coordinators]]
    if now_r.term != was_r.term:
        yield f"term {now_r.term}"
    elif now_r != was_r:
        record = now_r.round if now_r.number != was_r.number else now_r.close
        yield f"the ledger has {_written(record)}"


def _written(record: object) -> str:
    return "the marks" if record is None else short(record)
