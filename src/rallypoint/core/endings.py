"""When the end of a connection proves that the node's process has ended (R8).

However a process ends, its kernel closes its connections and sends a FIN. Broken networks send
none. So a FIN is proof, unless something else may have sent it:

* a proxy or an address translator between the two. So the connection must be *direct*: the node
  says at attach which local address and port its socket has, and the coordinator sees that peer;
* the node itself, while it lives. A node closes without a word only by a reset
  (client/transport.py); before any other end it says Goodbye or sends a WebSocket Close.

A FIN is also no proof if the coordinator stood still since it last heard the node.

docs/protocol.md lists what else could send one. In doubt the node gets the grace.
"""

from __future__ import annotations

from rallypoint.core.addresses import literal
from rallypoint.core.values import Address, ConnectionEnd


def judge(
    end: ConnectionEnd, *, told: Address | None, seen: Address | None, has_stalled: bool
) -> ConnectionEnd:
    """What the end of an attached node's connection means.

    `end`: what the transport saw, after it took all input that came before. `told`: the address of
    the node's socket as the node sees it. `seen`: as the coordinator sees it. None if that is not
    known. `has_stalled`: whether the coordinator stood still since it last heard the node. A FIN
    that proves that the process has ended becomes PROCESS_ENDED; nothing else changes.
    """
    is_proof = end is ConnectionEnd.FIN and is_direct(told, seen) and not has_stalled
    return ConnectionEnd.PROCESS_ENDED if is_proof else end


def is_direct(told: Address | None, seen: Address | None) -> bool:
    """Whether both sides see the same address and port, so nothing between them translates."""
    if told is None or seen is None or not told.port:
        return False
    host = literal(told.host)
    return host is not None and (host, told.port) == (literal(seen.host), seen.port)
