"""The reader of frames: large messages, which come in many pieces and have turns."""

from __future__ import annotations

import asyncio
import os
import weakref
from typing import Any, cast

import pytest
from websockets.frames import Opcode

from rallypoint.coordinator import incoming, websocket
from rallypoint.coordinator.incoming import SKIPPED_START_BYTES
from rallypoint.coordinator.websocket import FrameReader
from tests.coordinator.frame_reading import Bounded, Reading, frame


def test_each_byte_of_a_large_message_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To read all of them again for each piece would take quadratic time."""
    copied, unmasked = [], incoming.apply_mask

    def counted(data: bytes, key: bytes) -> bytes:
        copied.append(len(data))
        return unmasked(data, key)

    at, payload = Reading(), os.urandom(1 << 20)
    stream = frame(payload)
    monkeypatch.setattr(incoming, "apply_mask", counted)
    for begin in range(0, len(stream), 1024):
        at.line.bring(stream[begin : begin + 1024])
    assert at.messages == [payload]
    assert sum(copied) == len(payload)


@pytest.mark.parametrize("size", [70_000, 1 << 18, (1 << 20) + 3])
@pytest.mark.parametrize("step", [7, 997, 65_536, 1 << 18])
def test_a_large_message_is_the_same_in_any_pieces(size: int, step: int) -> None:
    payload = os.urandom(size)
    stream = frame(b"before") + frame(payload) + frame(b"after") + frame(payload) + frame(b"end")
    at = Bounded()
    step = max(step, size // 2_000)
    for begin in range(0, len(stream), step):
        at.line.bring(stream[begin : begin + step])
        assert isinstance(at.line.protocol, FrameReader) or at.intake.kept == size
    assert at.messages == [b"before", payload, b"after", payload, b"end"]
    assert at.line.protocol is at.reader
    assert at.intake.kept == 0


def test_a_large_message_waits_for_turns_between_pieces_and_at_its_end() -> None:
    """One that has come is taken before what follows it, and after what others had put off."""
    at, payload = Bounded(), os.urandom(300_000)
    at.intake.slice = 0.1
    stream, turns = frame(payload) + frame(b"after"), 0
    for begin in range(0, len(stream), 50_000):
        at.line.bring(stream[begin : begin + 50_000])
        while at.intake.put_off:
            assert at.line.is_paused
            at.intake.turn()
            turns += 1
        assert not at.line.is_paused
    assert turns >= 6
    assert at.messages == [payload, b"after"]
    at.line.bring(stream[:200_000])
    at.intake.turn()
    at.intake.slice = 0.0
    at.line.bring(stream[200_000:])
    assert len(at.messages) == 2
    while at.intake.put_off:
        at.intake.turn()
    assert at.messages[2:] == [payload, b"after"]
    assert at.intake.kept == 0


def test_a_waiting_large_message_is_delivered_after_the_connection_ended() -> None:
    at, payload = Bounded(), os.urandom(300_000)
    stream = frame(payload)
    at.line.bring(stream[:100_000])
    at.intake.slice = 0.0
    at.line.bring(stream[100_000:])
    assert at.messages == []
    cast(asyncio.Protocol, at.line.protocol).connection_lost(OSError("gone"))
    assert at.messages == [payload]


def test_an_end_within_a_large_message_is_noticed() -> None:
    at, ends = Bounded(), list[Any]()
    at.reader._ended = ends.append
    at.line.bring(frame(os.urandom(300_000))[:1_000])
    assert not isinstance(at.line.protocol, FrameReader)
    reading = cast(asyncio.Protocol, at.line.protocol)
    reading.pause_writing()
    reading.resume_writing()
    assert reading.eof_received()
    reading.connection_lost(None)
    assert len(ends) == 1
    assert at.owner.told == ["pause", "resume", "eof", "lost: None"]
    assert at.messages == []


def test_half_a_large_frame_before_the_answer_is_refused_too() -> None:
    at = Reading(early=frame(os.urandom(300_000))[:-10])
    at.reader.begin()
    assert at.refused == [websocket.HALF_A_FRAME]
    assert at.line.protocol is at.reader
    at.line.bring(bytes(1_000))
    assert at.messages == []


def test_a_delivered_large_message_leaves_nothing_behind() -> None:
    """uvloop keeps a protocol's methods until another one with buffers takes its place."""
    at = Reading()
    stream = frame(os.urandom(300_000))
    at.line.bring(stream[:1_000])
    reading = cast(asyncio.BufferedProtocol, at.line.protocol)
    kept_by_the_loop = reading.get_buffer, reading.buffer_updated
    message = weakref.ref(cast(incoming.Kept, at.reader._incoming))
    at.line.bring(stream[1_000:])
    assert len(at.messages) == 1
    at.messages.clear()
    assert message() is None
    del kept_by_the_loop


def test_a_large_message_without_memory_is_skipped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    at, payload = Bounded(), os.urandom(300_000)

    def mapped(size: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(incoming, "_mapped", mapped)
    at.line.bring(frame(payload) + frame(b"after"))
    assert at.messages == [payload, b"after"], "it came at once, and needs no place"
    stream = frame(payload) + frame(b"later")
    at.line.bring(stream[:1_000])
    at.line.bring(stream[1_000:])
    assert at.messages[2:] == [b"later"]
    assert at.intake.told[-1] == ("skipped", payload[:SKIPPED_START_BYTES], 300_000)
    assert at.intake.kept == 0
    assert "there is no memory for a message of 300000 bytes" in caplog.text


def test_an_error_in_a_turn_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    """It stayed paused for ever."""
    at = Bounded()
    at.line.bring(b"".join(frame(b"%d" % number) for number in range(100)))

    def read(data: bytes | bytearray, begin: int, frames_max: int) -> bool:
        raise MemoryError

    at.reader._read = read  # type: ignore[method-assign]
    assert not at.intake.turn()
    assert at.line.is_aborted


def test_bytes_read_before_a_pause_belong_to_the_waiting_message() -> None:
    """It was read as the beginning of a frame."""
    at, payload = Bounded(), os.urandom(300_000)
    at.intake.slice = 0.1
    stream = frame(payload) + frame(b"after")
    at.reader.data_received(stream[:100_000])
    assert at.intake.put_off
    at.reader.data_received(stream[100_000:250_000])
    at.reader.data_received(stream[250_000:])
    while at.intake.put_off:
        at.intake.turn()
    assert at.messages == [payload, b"after"]
    assert at.intake.kept == 0


def test_a_large_frame_that_is_no_message_goes_to_the_owner_at_once() -> None:
    at = Bounded()
    text = frame(bytes(websocket.OTHER_BYTES_MAX + 1), Opcode.TEXT)[:100]
    at.line.bring(text)
    assert at.owner.bytes == text
    assert at.stepped_aside


def test_among_several_runs_a_large_message_is_read_piece_by_piece() -> None:
    at, payload = Bounded(), os.urandom(300_000)
    at.intake.slice = 0.01
    stream, pauses = frame(payload), 0
    for begin in range(0, len(stream), 64 * 1024):
        at.line.bring(stream[begin : begin + 64 * 1024])
        pauses += at.line.is_paused
        while at.intake.put_off:
            at.intake.turn()
    assert at.messages == [payload]
    assert pauses == 4
    assert at.intake.kept == 0
