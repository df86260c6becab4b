"""torchrun, as it is, with a rendezvous handler that writes down when it was called.

    BENCHMARK_LOG=file python -m benchmarks.logged_torchrun --rdzv-backend=... script.py

The handler of any backend is taken from torch's registry, and passed on within a proxy.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.rendezvous import registry


class Log:
    """Lines of JSON at the end of a file, each written at once. The workers write there, too."""

    def __init__(self) -> None:
        path = os.environ["BENCHMARK_LOG"]
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def note(self, event: str, **more: Any) -> None:
        """Something has happened now."""
        line = {"event": event, "at_s": time.monotonic(), **more}
        os.write(self._fd, json.dumps(line).encode() + b"\n")


class LoggedHandler:
    """Everything is the other handler's; three kinds of calls are noted."""

    def __init__(self, handler: Any, log: Log) -> None:
        self._handler = handler
        self._log = log
        self._is_told = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)

    def next_rendezvous(self) -> Any:
        """Noted before, and once it has returned."""
        self._log.note("called")
        info = self._handler.next_rendezvous()
        self._is_told = False
        self._log.note("met", rank=info.rank, size=info.world_size)
        return info

    def num_nodes_waiting(self) -> int:
        """Noted when it first asks for another round."""
        count: int = self._handler.num_nodes_waiting()
        if count > 0 and not self._is_told:
            self._is_told = True
            self._log.note("told", count=count)
        return count


def main() -> None:
    """torchrun's own main."""
    log = Log()
    create = registry.get_rendezvous_handler

    def logged(params: Any) -> LoggedHandler:
        log.note("asked")
        return LoggedHandler(create(params), log)

    registry.get_rendezvous_handler = logged
    log.note("began", pid=os.getpid())
    run.main()


if __name__ == "__main__":
    main()
