"""When the end of a connection proves that the node's process is gone (R8).

A process that dies, however it dies, has its connections closed by its kernel, which says so with
a FIN. Broken networks send none. So a FIN is proof, unless something else can have sent it:

* a proxy or an address translator between the two. So the connection must be *direct*: the node
  said at attach which local address and port its socket has, and the coordinator sees that peer;
* the node itself, alive. A node never closes without a word but by a reset (client/transport.py),
  and says Goodbye or sends a WebSocket Close before any other end;
* an end that belongs to a time in which this coordinator stood still and kept nothing alive.

What else could send one is in docs/protocol.md; whoever is in doubt gives the grace.
"""

from __future__ import annotations

from rallypoint.core.addresses import literal
from rallypoint.core.values import Address, ConnectionEnd


def judge(
    end: ConnectionEnd, *, told: Address | None, seen: Address | None, has_stalled: bool
) -> ConnectionEnd:
    """What the end of an attached node's connection means.

    `end`: what the transport saw, after everything that came before it was taken. `told`: the
    address of the node's socket as the node sees it, `seen`: as the coordinator does; None where
    that is not known. `has_stalled`: whether the coordinator stood still since it last heard the
    node. A FIN that proves that the process is gone becomes PROCESS_ENDED; nothing else changes.
    """
    is_proof = end is ConnectionEnd.FIN and is_direct(told, seen) and not has_stalled
    return ConnectionEnd.PROCESS_ENDED if is_proof else end


def is_direct(told: Address | None, seen: Address | None) -> bool:
    """Whether both sides see the same address and port: nothing translates between them."""
    if told is None or seen is None or not told.port:
        return False
    host = literal(told.host)
    return host is not None and (host, told.port) == (literal(seen.host), seen.port)
