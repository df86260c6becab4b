"""torchrun, unchanged, with a rendezvous handler that logs when it was called.

    BENCHMARK_LOG=file python -m benchmarks.logged_torchrun --rdzv-backend=... script.py

The handler comes from torch's registry, for any backend. torchrun gets a proxy of it.
"""

from __future__ import annotations

import os
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.rendezvous import registry

from rallypoint.bench.event_log import EventWriter


class LoggedHandler:
    """Passes everything on to the other handler, and logs two kinds of calls."""

    def __init__(self, handler: Any, log: EventWriter) -> None:
        self._handler = handler
        self._log = log
        self._is_told = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)

    def next_rendezvous(self) -> Any:
        """Logged before the call, and after it has returned."""
        self._log.write("called")
        info = self._handler.next_rendezvous()
        self._is_told = False
        self._log.write("met", rank=info.rank, size=info.world_size)
        return info

    def num_nodes_waiting(self) -> int:
        """Log the first time that another round is asked for."""
        count: int = self._handler.num_nodes_waiting()
        if count > 0 and not self._is_told:
            self._is_told = True
            self._log.write("told", count=count)
        return count


def main() -> None:
    """torchrun's own main."""
    log = EventWriter(os.environ["BENCHMARK_LOG"])  # The workers write there, too.
    create = registry.get_rendezvous_handler

    def logged(params: Any) -> LoggedHandler:
        log.write("asked")
        return LoggedHandler(create(params), log)

    registry.get_rendezvous_handler = logged
    log.write("began", pid=os.getpid())
    run.main()


if __name__ == "__main__":
    main()
