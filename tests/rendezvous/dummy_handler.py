"""The least that a handler of a rendezvous can be, and parameters for it.

What must not be here: a test.
"""

from __future__ import annotations

from typing import Any

from rallypoint.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
)


def parameters(backend: str = "dummy", **options: Any) -> RendezvousParameters:
    return RendezvousParameters(backend, "host:1", "run", min_nodes=1, max_nodes=2, **options)


class DummyHandler(RendezvousHandler):
    """Every abstract method, and nothing else."""

    def __init__(self, params: RendezvousParameters, backend: str = "dummy") -> None:
        self.params = params
        self.backend = backend

    def get_backend(self) -> str:
        return self.backend

    def next_rendezvous(self) -> RendezvousInfo:
        raise NotImplementedError

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self.params.run_id

    def shutdown(self) -> bool:
        return True
