"""A run without faults from one state: it must come to rest (R7)."""

from __future__ import annotations

from typing import Final

from rallypoint.simulation.model.world import Move, State, World

MOVES_MAX: Final = 600
_LAST: Final = ("timer", "takes over", "drops")
"""What waits until nothing else can happen: time passes more slowly than messages."""
_OPTIONAL: Final = "done"
"""Nobody has to finish for the others to come to rest."""


def stuck_after(world: World, state: State) -> list[Move] | None:
    """The moves of a run from this state that does not come to rest; None if it does.

    Each time, the move that was made longest ago is made. A rule that is broken on the way is left
    to the search, which comes to it by a shorter path.
    """
    path: list[Move] = []
    made: dict[Move, int] = {}
    for at in range(1, MOVES_MAX):
        if world.is_settled(state):
            return None
        moves = [m for m, is_fault in world.moves(state) if not is_fault and m[0] != _OPTIONAL]
        if not moves:
            return path
        soon = [move for move in moves if move[0] not in _LAST]
        move = min(soon or moves, key=lambda each: made.get(each, 0))
        if soon and made.get(move, 0) > at - 20 and made.get(move, 0):
            # Messages go to and fro: time passes, too.
            move = min(moves, key=lambda each: made.get(each, 0))
        made[move] = at
        path.append(move)
        try:
            state = world.after(state, move)
        except Exception:  # noqa: BLE001 - see above
            return None
    return path
