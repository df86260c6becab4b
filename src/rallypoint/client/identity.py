"""Who this node is: its name, its incarnation, its host and the address at which it is reached."""

from __future__ import annotations

import os
import secrets
import socket
from itertools import count

from rallypoint.core.values import NAME_LENGTH_MAX, NodeInfo
from rallypoint.settings import NodeSettings

_counter = count()


def node_info(settings: NodeSettings, workers: int) -> NodeInfo:
    """What this node tells of itself.

    The default name is host, pid and a counter: unique among live nodes, new at every start. The
    incarnation is drawn anew for every join.
    """
    host = socket.gethostname()[:NAME_LENGTH_MAX] or "unnamed"
    name = settings.node_name or f"{host}-{os.getpid()}-{next(_counter)}"[-NAME_LENGTH_MAX:]
    addresses = (settings.local_addr,) if settings.local_addr else ()
    return NodeInfo(name, secrets.randbits(62), host, addresses, workers, dict(settings.labels))
