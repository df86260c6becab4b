"""Runs without faults: one from each sampled state must come to rest (R7), one begins a world."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rallypoint.simulation.model.world import Move, State, World

MOVES_MAX: Final = 600
_LAST: Final = ("timer", "takes over", "drops")
"""What waits until nothing else can happen: time passes more slowly than messages."""
_OPTIONAL: Final = "done"
"""Nobody has to finish for the others to come to rest."""


def begin(world: World) -> State:
    """The state in which the exploration of a world begins."""
    state = world.first()
    if world.limits.begins_in_round:
        for _, after in _fair_moves(world, state, is_patient=True):
            state = after
        nodes = [world.nodes.facts[number] for number in state[: world.limits.nodes]]
        inside = sum(each.has_workers and each.number == 1 for each in nodes)
        assert inside == world.limits.settings.max_nodes, "round 1 does not have all nodes"
    return state


def stuck_after(world: World, state: State) -> list[Move] | None:
    """The moves of a run from this state that does not come to rest; None if it does.

    A rule that is broken on the way is left to the search, which comes to it by a shorter path.
    """
    path: list[Move] = []
    try:
        for move, after in _fair_moves(world, state):
            path.append(move)
            state = after
    except Exception:  # noqa: BLE001 - see above
        return None
    return None if world.is_settled(state) else path


def _fair_moves(
    world: World, state: State, *, is_patient: bool = False
) -> Iterator[tuple[Move, State]]:
    """Moves without faults until the world is at rest, each with the state after it.

    Each time, the move that was made longest ago is made. `is_patient`: no time passes while
    anything else can happen.
    """
    made: dict[Move, int] = {}
    for at in range(1, MOVES_MAX):
        if world.is_settled(state):
            return
        moves = [m for m, is_fault in world.moves(state) if not is_fault and m[0] != _OPTIONAL]
        if not moves:
            return
        soon = [move for move in moves if move[0] not in _LAST]
        move = min(soon or moves, key=lambda each: made.get(each, 0))
        if soon and not is_patient and made.get(move, 0) > max(0, at - 20):
            # Messages go to and fro: time passes, too.
            move = min(moves, key=lambda each: made.get(each, 0))
        made[move] = at
        state = world.after(state, move)
        yield move, state
