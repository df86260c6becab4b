"""The reader of frames: what counts as kept, and when other connections have their turn."""

from __future__ import annotations

import os
import random

import pytest
from websockets.frames import Opcode

from rallypoint.coordinator import websocket
from rallypoint.coordinator.incoming import SKIPPED_START_BYTES
from rallypoint.wire.messages import MESSAGE_BYTES_MAX
from tests.coordinator.frame_reading import SIZES, Bounded, frame


def test_an_incomplete_message_counts_from_its_first_bytes() -> None:
    at, payload = Bounded(), os.urandom(100_000)
    stream = frame(payload)
    at.line.bring(stream[:1000])
    assert at.intake.kept == 100_000
    at.line.bring(stream[1000:50_000])
    assert at.intake.told == [("announced", 100_000)]
    at.line.bring(stream[50_000:] + frame(b"next"))
    assert at.messages == [payload, b"next"]
    assert at.intake.kept == 0


@pytest.mark.parametrize("cut", [8, 20, 1000, 70_000])
def test_a_message_without_room_is_skipped_and_the_next_is_read(cut: int) -> None:
    at, payload = Bounded(room=50_000), os.urandom(100_000)
    stream = frame(b"before") + frame(payload) + frame(b"after")
    begin = len(frame(b"before")) + 8  # with the header, before the key is whole
    for start in (0, begin):
        if start:
            for at_byte in range(begin, len(stream), cut):
                at.line.bring(stream[at_byte : at_byte + cut])
        else:
            at.line.bring(stream[:begin])
    assert at.messages == [b"before", b"after"]
    (told,) = [each for each in at.intake.told if each[0] == "skipped"]
    assert told == ("skipped", payload[:SKIPPED_START_BYTES], 100_000)
    assert at.intake.kept == 0
    assert len(at.reader._rest) < 100


def test_a_turn_reads_a_bounded_number_of_frames() -> None:
    at = Bounded()
    payloads = [b"%d" % number for number in range(100)]
    stream, half = b"".join(map(frame, payloads)), frame(b"half")
    at.line.bring(stream + half[:5])
    assert at.messages == payloads[: websocket.FRAMES_PER_TURN]
    assert at.line.is_paused
    assert at.intake.kept > 0
    at.line.bring(half[5:])  # what an event loop had read before
    turns = 0
    while at.intake.put_off:
        before = len(at.messages)
        at.intake.turn()
        turns += 1
        assert len(at.messages) - before <= websocket.FRAMES_PER_TURN
    assert at.messages == [*payloads, b"half"]
    assert not at.line.is_paused
    assert at.intake.kept == 0
    at.line.bring(frame(b"later"))
    assert at.messages[-1] == b"later"


def test_postponed_frames_are_read_after_the_connection_ended() -> None:
    at = Bounded()
    payloads = [b"%d" % number for number in range(100)]
    at.line.bring(b"".join(map(frame, payloads)))
    at.reader.connection_lost(OSError("gone"))
    assert at.messages == payloads
    assert not at.intake.turn()
    assert at.messages == payloads


def test_pings_are_answered_by_the_reader_and_count_as_frames() -> None:
    at = Bounded()
    at.line.bring(b"".join(frame(b"%d" % n, Opcode.PING) for n in range(40)))
    assert len(at.intake.told) == websocket.FRAMES_PER_TURN
    while at.intake.put_off:
        at.intake.turn()
    assert at.intake.told == [("pinged", b"%d" % n) for n in range(40)]
    at.line.bring(frame(b"", Opcode.PONG))
    assert at.owner.bytes == b""


def test_fragments_are_joined_and_counted() -> None:
    at = Bounded()
    at.line.bring(frame(b"one", fin=False) + frame(b"ping", Opcode.PING))
    at.line.bring(frame(b"two", Opcode.CONT, fin=False))
    assert at.intake.kept == 6
    at.line.bring(frame(b"", Opcode.CONT, fin=False) + frame(b"3", Opcode.CONT) + frame(b"four"))
    assert at.messages == [b"onetwo3", b"four"]
    assert at.intake.kept == 0
    assert ("pinged", b"ping") in at.intake.told
    assert not at.stepped_aside


@pytest.mark.parametrize("second", [frame(b"x"), frame(b"x", fin=False)], ids=["whole", "first"])
def test_no_message_begins_within_a_fragmented_one(second: bytes) -> None:
    at = Bounded()
    at.line.bring(frame(b"one", fin=False) + second + frame(b"later"))
    assert at.refused == [websocket.IN_A_MESSAGE]
    assert at.messages == []


def test_the_fragments_of_a_message_are_bounded_together() -> None:
    at = Bounded(room=1000)
    at.line.bring(frame(bytes(600), fin=False) + frame(bytes(600), Opcode.CONT))
    assert at.refused == [websocket.NO_ROOM]
    at = Bounded()
    part = bytes(MESSAGE_BYTES_MAX // 2)
    at.line.bring(frame(part, fin=False) + frame(part, Opcode.CONT, fin=False))
    assert at.refused == []
    at.line.bring(frame(b"x", Opcode.CONT))
    assert at.refused == [websocket.TOO_LONG]
    assert at.messages == []


@pytest.mark.parametrize("seed", range(20))
def test_with_any_cuts_and_turns_all_arrives_once_in_order(seed: int) -> None:
    at, dice = Bounded(), random.Random(seed)
    expected, stream = [], b""
    for _ in range(60):
        payload = dice.randbytes(dice.choice(SIZES[:-2]))
        expected.append(payload)
        if dice.random() < 0.2:
            cut = dice.randint(0, len(payload))
            stream += frame(payload[:cut], fin=False) + frame(b"", Opcode.PING)
            stream += frame(payload[cut:], Opcode.CONT)
        else:
            stream += frame(payload)
    while stream or at.intake.put_off:
        if at.intake.put_off and (not stream or dice.random() < 0.5):
            at.intake.turn()
        elif not at.line.is_paused or dice.random() < 0.1:
            cut = dice.choice((1, 2, 7, 100, 5_000, 70_000))
            at.line.bring(stream[:cut])
            stream = stream[cut:]
        else:
            at.intake.turn()
    assert at.messages == expected
    assert at.intake.kept == 0


def test_the_intake_learns_that_the_peer_does_not_read() -> None:
    at = Bounded()
    at.reader.pause_writing()
    at.reader.resume_writing()
    assert at.intake.told == ["paused", "resumed"]
    assert at.owner.told == ["pause", "resume"]


def test_among_several_runs_a_connection_reads_at_least_one_message() -> None:
    at = Bounded()
    at.intake.slice = 0.0035  # the clock advances by 1 ms whenever it is read
    payloads = [b"%d" % number for number in range(20)]
    at.line.bring(b"".join(map(frame, payloads)))
    assert 1 <= len(at.messages) < 5
    assert at.line.is_paused
    assert len(at.intake.took_s) == 1
    while at.intake.put_off:
        before = len(at.messages)
        at.intake.turn()
        assert 1 <= len(at.messages) - before < 5
    assert at.messages == payloads
    assert at.intake.turns_had == 1
    assert not at.line.is_paused


def test_new_frames_wait_behind_those_of_the_same_run() -> None:
    at = Bounded()
    at.intake.slice = 0.0
    at.line.bring(frame(b"one") + frame(b"two")[:3])
    assert at.messages == []
    assert at.line.is_paused
    while at.intake.put_off:
        at.intake.turn()
    assert at.messages == [b"one"]
    assert not at.line.is_paused
