"""A reader of frames between a line and an owner that note what it does.

What must not be here: a test.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from websockets.frames import Frame, Opcode

from rallypoint.coordinator.turns import InputTurns
from rallypoint.coordinator.websocket import FrameReader


class Owner(asyncio.Protocol):
    """The protocol before the reader: notes its calls."""

    def __init__(self) -> None:
        self.bytes = b""
        self.told: list[str] = []

    def data_received(self, data: bytes) -> None:
        self.bytes += data

    def eof_received(self) -> bool | None:
        self.told.append("eof")
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.told.append(f"lost: {error}")

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")


class Line(asyncio.Transport):
    """As much of a transport as a reader needs."""

    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.is_aborted = False
        self.is_paused = False

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def bring(self, data: bytes) -> None:
        """As event loops do it: what a protocol has a buffer for goes there."""
        while isinstance(self.protocol, asyncio.BufferedProtocol) and data:
            buffer = cast(memoryview, self.protocol.get_buffer(-1))
            size = min(len(buffer), len(data))
            assert size, "an event loop would take that for the end of the connection"
            buffer[:size] = data[:size]
            data = data[size:]
            self.protocol.buffer_updated(size)
        if data:
            cast(asyncio.Protocol, self.protocol).data_received(data)


class Reading:
    """A reader on a line, what it has handed on, and what it has left to the owner."""

    def __init__(self, early: bytes = b"") -> None:
        self.owner = Owner()
        self.line = Line(self.owner)
        self.messages: list[bytes] = []
        self.refused: list[str] = []
        self.reader = FrameReader(
            self.line, self.messages.append, refused=self.refused.append, early=early
        )
        if not early:
            self.reader.begin()

    @property
    def stepped_aside(self) -> bool:
        return self.reader.is_aside


def frame(payload: bytes, opcode: Opcode = Opcode.BINARY, **more: Any) -> bytes:
    """What a client sends: by the library that nodes use, with a random mask."""
    return Frame(opcode, payload, **more).serialize(mask=True)


SIZES = (0, 1, 3, 4, 125, 126, 127, 1000, 65_535, 65_536, 200_000)


# -- what is kept, and for how long others wait ------------------------------------------------


class Taking(InputTurns):
    """An intake with room for so many bytes."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.kept = 0
        self.told: list[Any] = []
        self.put_off: list[Any] = []
        self.slice: float | None = None
        self.turns_had = 0
        self.now_s = 0.0
        self.took_s: list[float] = []

    @property
    def input_turns(self) -> InputTurns:
        return self

    def announced(self, size: int) -> bool:
        self.told.append(("announced", size))
        if self.kept + size > self.room:
            return False
        self.kept += size
        return True

    def arrived(self, size: int) -> None:
        self.kept -= size

    def skipped(self, start: bytes, size: int) -> None:
        self.told.append(("skipped", start, size))

    def pinged(self, payload: bytes) -> None:
        self.told.append(("pinged", payload))

    def paused(self) -> None:
        self.told.append("paused")

    def resumed(self) -> None:
        self.told.append("resumed")

    def keeps(self, size: int) -> None:
        self.kept += size

    def later(self, work: Any) -> None:
        self.put_off.append(work)

    def had_all(self) -> None:
        self.turns_had += 1

    def slice_s(self) -> float | None:
        return self.slice

    def clock_s(self) -> float:
        self.now_s += 0.001
        return self.now_s

    def spent(self, took_s: float) -> None:
        self.took_s.append(took_s)

    def turn(self) -> bool:
        """A piece of what was put off."""
        work = self.put_off.pop(0)
        if work():
            self.put_off.append(work)
            return True
        return False


class Bounded(Reading):
    """A reader with an intake; its line can be paused."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.owner = Owner()
        self.line = Line(self.owner)
        self.messages = []
        self.refused = []
        self.intake = Taking(room)
        self.reader = FrameReader(
            self.line, self.messages.append, refused=self.refused.append, intake=self.intake
        )
        self.reader.begin()
