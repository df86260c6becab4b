"""When the end of a connection proves that the node's process has ended (R8).

However a process ends, its kernel closes its connections and sends a FIN, or a reset if something
is unread. An agent's guard then sends the FIN (launch/guard_process.py). Broken networks send none.
So a FIN is proof, unless something else may have sent it:

* a proxy or an address translator between the two. So the connection must be *direct*: the local
  address and port that the node sends at attach are those that the coordinator sees;
* the node itself, while it is alive. A node that closes without a message does so only by a reset
  (client/transport.py). Before any other end it sends Goodbye or a WebSocket Close.

A FIN is no proof either if the coordinator's process stood still after it last heard the node.

docs/protocol.md lists what else could send one. In doubt the node gets the reconnect grace.
"""

from __future__ import annotations

from rallypoint.core.addresses import literal
from rallypoint.core.values import Address, ConnectionEnd


def judge(
    end: ConnectionEnd, *, told: Address | None, seen: Address | None, has_stalled: bool
) -> ConnectionEnd:
    """What the end of an attached node's connection proves about its process.

    `end`: the end that the transport saw, after it took all input before it. `told`: the address of
    the node's socket as the node sees it; `seen`: as the coordinator sees it; None if unknown.
    `has_stalled`: whether the coordinator stood still after it last heard the node. Returns
    PROCESS_ENDED for a FIN that proves that the process has ended, and `end` in all other cases.
    """
    # R8: a FIN, direct, and no stall here: nothing less is proof.
    is_proof = end is ConnectionEnd.FIN and is_direct(told, seen) and not has_stalled
    return ConnectionEnd.PROCESS_ENDED if is_proof else end


def is_direct(told: Address | None, seen: Address | None) -> bool:
    """Whether both sides see the same address and port, so no translator is between them."""
    # R8: unknown is not direct.
    if told is None or seen is None or not told.port:
        return False
    host = literal(told.host)
    # R8: the same address and port on both sides.
    return host is not None and (host, told.port) == (literal(seen.host), seen.port)
