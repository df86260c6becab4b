"""Nodes that load a coordinator as much as they can, each in one way. For `bench neighbour`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rallypoint.bench.virtual import VirtualNode
from rallypoint.core import store as ops

KINDS: Final = ("calls", "values", "unread", "waits", "refused", "pings")
CALLS_OPEN: Final = 500
_AT_ONCE: Final = {"calls": CALLS_OPEN, "values": 2, "refused": 2, "waits": 20}
VALUE_BYTES: Final = 4 * 1024**2
VALUES: Final = 100
"""More than fit into a round's store at this size, so that most are refused."""
WAIT_S: Final = 600.0
_PING: Final = 0x89
_UNSENT_BYTES_MAX: Final = 256 * 1024


class Flood:
    """A flood of one node, until `stop`. `kind` is one of KINDS.

    calls: small calls of the store, hundreds of them open. values: large values, written and read.
    unread: many large values are requested, and their answers are not read. waits: calls that wait
    for a thousand keys, and are cancelled. refused: writes for which the store has no room. pings:
    empty pings, whose answers are not read.
    """

    def __init__(self, node: VirtualNode, kind: str) -> None:
        self._node = node
        self._kind = kind
        self._number = 0
        self._is_on = True
        self._open: list[int] = []

    def begin(self) -> None:
        """Make the first calls; each answer makes the next."""
        if self._kind == "unread":
            self._call(ops.Set("large", bytes(VALUE_BYTES)), self._read_nothing)
        elif self._kind == "pings":
            self.tick()
        else:
            for _ in range(_AT_ONCE[self._kind]):
                self._again()

    def stop(self) -> None:
        """Stop sending, and read all unread input."""
        self._is_on = False
        if self._node.transport is not None:
            self._node.transport.resume_reading()

    def tick(self) -> None:
        """Send messages that need no answer. Call it every few hundredths of a second."""
        transport = self._node.transport
        if self._kind != "pings" or not self._is_on or transport is None:
            return
        if transport.get_write_buffer_size() < _UNSENT_BYTES_MAX:
            transport.write(bytes((_PING, 0x80, 0, 0, 0, 0)) * 5_000)

    def _again(self, result: ops.StoreResult | None = None) -> None:
        if not self._is_on or self._node.transport is None:
            return
        self._number += 1
        match self._kind:
            case "calls":
                self._call(ops.Add("flood", 1), self._again)
            case "values":
                key = f"value/{self._number % 4}"
                if self._number % 2:
                    self._call(ops.Set(key, bytes(VALUE_BYTES)), self._again)
                else:
                    self._call(ops.Get(f"value/{(self._number - 1) % 4}"), self._again)
            case "refused":
                self._call(
                    ops.Set(f"fill/{self._number % VALUES}", bytes(VALUE_BYTES)), self._again
                )
            case "waits":
                self._wait()

    def _wait(self) -> None:
        """A wait that never succeeds, cancelled after some others. A small call paces them."""
        keys = tuple(f"never/{self._number}/{number}" for number in range(1_000))
        self._open.append(self._node.call(ops.Wait(keys), WAIT_S, lambda result: None))
        if len(self._open) > CALLS_OPEN // 10:
            self._node.cancel(self._open.pop(0))
        self._call(ops.NumKeys(), self._again)

    def _read_nothing(self, result: ops.StoreResult) -> None:
        if self._node.transport is None or not self._is_on:
            return
        self._node.transport.pause_reading()
        for _ in range(50):
            self._node.call(ops.MultiGet(("large",) * 16), WAIT_S, lambda result: None)

    def _call(self, op: ops.StoreOp, answered: Callable[[ops.StoreResult], None]) -> None:
        self._node.call(op, WAIT_S, answered)
