"""A model checker over the shipped core: small worlds in which every order of events is tried.

A world has nodes (the shipped `NodeMachine`), coordinators (the shipped `Membership`), connections
with messages on the way, and one register. What happens next is always a choice: a message arrives,
a timer fires, a write takes effect or is answered, a node or a coordinator dies. Each choice is a
move, and `explore` makes all of them, breadth first, so the first broken rule that it finds has a
path as short as any.

**Covered.** Attach, resume, ready, done, failed, departing, goodbye, close, standby; probes and
answers; silence and heartbeats; connections that are cut, with the loss of all that was on the way;
nodes that die, and start again with the same name; coordinators that die, stand still, or lose
their lease; takeovers by any coordinator, with the marks; writes of rounds, closes and marks, each
of which takes effect at any later moment or never, also after its writer has died or another one
has taken over, and whose answer may be lost with the coordinator; writes that the ledger does not
accept at first. A node restarts with a new incarnation. A coordinator may run in a node's process.
Operators drain, evict and admit nodes, scale the run and close it, whatever else happens. Hosts
lose power, heartbeats are missing, and nodes say whether they reach the hosts of others. Workers
stand still, and nodes are asked where they stand.

**Checked in each state.** All of `rallypoint.checkers.invariants.check`, and `RunChecker` for each
step of a coordinator (R1 to R6, R8, R13, R14). For the ledger: numbers, terms and restarts never go
back, one digest for each number, no round after a close, nobody who is done is in a further round,
each broken round is charged at most once, ranks are given once and survivors keep theirs. For a
takeover: what the marks say of a member is what its new coordinator knows, and the orders of
operators are those of the ledger. It loses no eviction that nobody lifted, and no order that was
confirmed; no round is written with a node that is evicted, or of another size than the operator
wants, and none begins that is too large; a drained node is asked to leave as soon as the ledger has
that, and leaves. No node is lost by witnesses whose host has power, and each is whose host has
none, if all others are well (R8). A round ends as a hang only if a worker of it stands still, and
then it does (R15). For a node: its tokens and its (term, round) grow, it gets only rounds that it
asked for and that the ledger has, with the seat of its row. A coordinator without its lease decides
nothing. And no state is stuck (R7): from each state, moves without faults lead to one in which all
nodes that are left are in one round, or are too few, or have finished (`World.is_settled`). Where a
world is explored whole, this is decided for all of its states, by going backwards over all moves;
else by runs without faults from samples.

**Not covered.** Times: a timer fires at any moment, but those of one coordinator in the order of
their times, and how long ago something was does not count (`canonical`). Only that of a hang waits
for messages that are on their way. Networks between nodes: a witness reaches each host with power.
The store and its log, and so R10, and R11 for calls. The election itself: a lease is lost, restored
or taken over in one move (the tests of core/election explore it). Settings that differ, wrong
secrets, several runs, limits of size, more than a few of each fault. Nodes that do not follow the
protocol. Memory and sockets.

**Symmetry.** Nodes that have made no move differ only in their names, so node i + 1 makes its first
move only after node i. That is sound but for the ranks of a first round: names decide these. The
order of arrival does not count where all nodes have a place.
"""

from rallypoint.simulation.model.limits import FAULTS, Limits
from rallypoint.simulation.model.world import Move, State, World
from rallypoint.simulation.model.worlds import WORLDS

__all__ = ["FAULTS", "WORLDS", "Limits", "Move", "State", "World"]
