"""Real processes on a file ledger: the one that coordinates is killed, or frozen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "elected_node.py"
SRC = Path(__file__).parents[2] / "src"
SERVES_WITHIN_S = 12.0
ALL_WITHIN_S = 15.0
"""A lease stands for 3 s, and the rest is quick. These bear a machine that stands still meanwhile:
the election's own times are tested where its clock is virtual."""

pytestmark = pytest.mark.processes


class Process:
    """A node's process, and all that it has said."""

    def __init__(self, name: str, endpoint: str, nodes: int) -> None:
        self.name = name
        self.said: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), name, endpoint, str(nodes)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(SRC)},
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(json.loads(line))

    @property
    def now(self) -> dict[str, Any]:
        return self.said[-1] if self.said else {}

    def line_with(self, since_s: float = 0.0, **wanted: object) -> dict[str, Any] | None:
        for each in list(self.said):
            if each["at_s"] >= since_s and all(each[k] == v for k, v in wanted.items()):
                return each
        return None

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[int], list[Process]]]:
    started: list[Process] = []

    def start(nodes: int) -> list[Process]:
        endpoint = f"file://{tmp_path}/ledger"
        started.extend(Process(f"node{i}", endpoint, nodes) for i in range(nodes))
        wait_for(lambda: all(each.now.get("connected") for each in started))
        wait_for(lambda: sum(bool(each.now["hosts"]) for each in started) == 1)
        return started

    yield start
    for each in started:
        each.end()


def wait_for(is_so: Callable[[], object], limit_s: float = 30.0) -> None:
    ends_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < ends_s, "it did not come to that in time"
        time.sleep(0.01)


def host_and_others(processes: list[Process]) -> tuple[Process, list[Process]]:
    (host,) = (each for each in processes if each.now["hosts"])
    return host, [each for each in processes if each is not host]


def test_a_coordinator_killed_with_its_node_is_replaced_and_the_round_continues(
    start: Callable[[int], list[Process]],
) -> None:
    host, others = host_and_others(start(4))
    killed_s = time.monotonic()
    host.send(signal.SIGKILL)
    wait_for(lambda: all(each.line_with(killed_s, term=2, connected=True) for each in others))
    back = [each.line_with(killed_s, term=2, connected=True) for each in others]
    took_s = [each["at_s"] - killed_s for each in back if each]
    assert min(took_s) < SERVES_WITHIN_S
    assert max(took_s) < ALL_WITHIN_S
    for each in back:
        assert each is not None
        assert (each["round"], each["change"]) == (1, "")
    # The node that was killed stays away, and only that ends the round: the others go on.
    wait_for(lambda: all(each.line_with(round=2) for each in others))
    for other in others:
        ended = [said["change"] for said in other.said if said["change"]]
        assert len(ended) == 1
        assert f"{host.name} lost" in ended[0]


def test_a_frozen_coordinator_changes_nothing_when_it_thaws(
    start: Callable[[int], list[Process]],
) -> None:
    host, others = host_and_others(start(3))
    host.send(signal.SIGSTOP)
    wait_for(lambda: all(each.line_with(round=2, connected=True) for each in others), 60.0)
    term = others[0].now["term"]
    thawed_s = time.monotonic()
    host.send(signal.SIGCONT)
    # Its node learns that the run went on without it, and comes back into the next round.
    wait_for(lambda: host.line_with(thawed_s, connected=True, hosts=False))
    wait_for(lambda: host.line_with(thawed_s, round=3))
    ended = [each["change"] for each in host.said if each["change"]]
    assert ended
    assert all(each.now["term"] == term for each in (*others, host))
