"""The reader in front of aiohttp's WebSocket: what it takes, what it leaves, when it gives up."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from rallypoint.coordinator import websocket
from rallypoint.coordinator.websocket import FrameReader
from rallypoint.core.values import ConnectionEnd
from rallypoint.wire.messages import MESSAGE_BYTES_MAX
from tests.coordinator.frame_reading import SIZES, Line, Owner, Reading, Taking, frame


@pytest.mark.parametrize("size", SIZES)
def test_a_message_is_delivered_unchanged(size: int) -> None:
    at, payload = Reading(), os.urandom(size)
    at.line.bring(frame(payload))
    assert at.messages == [payload]
    assert type(at.messages[0]) is bytes
    assert at.owner.bytes == b""


@pytest.mark.parametrize("seed", range(20))
def test_messages_arrive_whole_in_any_pieces(seed: int) -> None:
    at, dice = Reading(), random.Random(seed)
    payloads = [dice.randbytes(dice.choice(SIZES[:-2])) for _ in range(20)]
    pings = [frame(b"%d" % n, Opcode.PING) for n in range(5)]
    stream = b"".join(
        frame(payload) + (pings[n // 4] if n % 4 == 0 else b"")
        for n, payload in enumerate(payloads)
    )
    while stream:
        cut = dice.choice((1, 2, 7, 100, 5_000, 70_000))
        at.line.bring(stream[:cut])
        stream = stream[cut:]
    assert at.messages == payloads
    assert at.owner.bytes == b"".join(pings)
    assert not at.stepped_aside


def test_two_messages_arrive_whole_for_every_cut() -> None:
    stream = frame(b"a" * 200) + frame(b"", Opcode.PONG) + frame(b"b")
    for cut in range(len(stream) + 1):
        at = Reading()
        at.line.bring(stream[:cut])
        at.line.bring(stream[cut:])
        assert at.messages == [b"a" * 200, b"b"], cut
        at.line.bring(frame(b"c"))
        assert at.messages == [b"a" * 200, b"b", b"c"], cut


def test_the_largest_message_is_read_and_a_larger_one_is_not() -> None:
    at = Reading()
    stream = frame(bytes(MESSAGE_BYTES_MAX))
    for begin in range(0, len(stream), 256 * 1024):
        at.line.bring(stream[begin : begin + 256 * 1024])
    assert at.messages == [bytes(MESSAGE_BYTES_MAX)]
    too_large = frame(bytes(MESSAGE_BYTES_MAX + 1))[:1000]
    at.line.bring(too_large)
    assert at.stepped_aside
    assert at.owner.bytes == too_large


OTHERS = {
    "a text": frame(b"text", Opcode.TEXT),
    "a first fragment": frame(b"half", fin=False),
    "a later fragment": frame(b"half", Opcode.CONT),
    "the end": frame(b"\x03\xe8", Opcode.CLOSE),
    "a ping that is too large": frame(b"", Opcode.PING)[:1] + frame(bytes(126))[1:],
    "a reserved bit": b"\xc2" + frame(b"message")[1:],
    "an opcode that is none": b"\x83" + frame(b"message")[1:],
    "a size beyond all": b"\x82\xff" + b"\xff" * 8 + b"1234",
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_the_reader_steps_aside_for_good_at_any_other_frame(other: bytes) -> None:
    at = Reading()
    at.line.bring(frame(b"before") + other + frame(b"after"))
    assert at.messages == [b"before"]
    assert at.stepped_aside
    at.line.bring(frame(b"later"))
    assert at.messages == [b"before"]
    after = at.owner.bytes.removeprefix(other)
    assert len(after) == len(frame(b"after") + frame(b"later"))


UNMASKED = {
    "a message": Frame(Opcode.BINARY, b"message").serialize(mask=False),
    "a long message": Frame(Opcode.BINARY, bytes(300)).serialize(mask=False),
    "a huge message": Frame(Opcode.BINARY, bytes(70_000)).serialize(mask=False),
    "a text": Frame(Opcode.TEXT, b"text").serialize(mask=False),
    "a ping": Frame(Opcode.PING, b"").serialize(mask=False),
    "a fragment": Frame(Opcode.CONT, b"", fin=False).serialize(mask=False),
    "the end": Frame(Opcode.CLOSE, b"").serialize(mask=False),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00",
}


@pytest.mark.parametrize("before", [b"", OTHERS["a first fragment"]], ids=["plain", "aside"])
@pytest.mark.parametrize("unmasked", UNMASKED.values(), ids=UNMASKED)
def test_a_frame_without_a_mask_is_refused_and_nothing_after_it_is_read(
    unmasked: bytes, before: bytes
) -> None:
    at = Reading()
    at.line.bring(before + unmasked + frame(b"after"))
    at.line.bring(frame(b"later") + unmasked)
    assert at.refused == [websocket.UNMASKED]
    assert at.messages == []
    assert at.owner.bytes == before


def test_a_frame_inside_another_is_never_read_as_one() -> None:
    """However the stream is cut, and after any other input, frames are found."""
    hidden = frame(b"smuggled")
    for outer in (frame(hidden, Opcode.TEXT), frame(b"A" * 20 + hidden, fin=False)):
        masked = outer[: len(outer) - len(hidden)] + hidden  # as a mask of zeros would leave it
        for cut in range(len(masked) + 1):
            at = Reading()
            at.line.bring(masked[:cut])
            at.line.bring(masked[cut:])
            assert at.messages == []
            assert at.owner.bytes == masked


def test_whole_messages_before_the_answer_are_read_after_it_and_in_order() -> None:
    at = Reading(early=frame(b"a") + frame(b"b"))
    assert at.messages == []
    at.reader.begin()
    at.line.bring(frame(b"c"))
    assert at.messages == [b"a", b"b", b"c"]
    assert at.refused == []


def test_half_a_frame_before_the_answer_is_refused() -> None:
    whole = frame(b"a") + frame(b"b" * 200)
    for cut in range(len(frame(b"a")) + 1, len(whole)):
        at = Reading(early=whole[:cut])
        at.reader.begin()
        at.line.bring(whole[cut:] + frame(b"later"))
        assert at.refused == [websocket.HALF_A_FRAME]
        assert at.messages == [b"a"]


def test_nothing_is_read_before_the_answer() -> None:
    line, messages, refused = Line(Owner()), list[bytes](), list[str]()
    reader = FrameReader(line, messages.append, refused=refused.append)
    line.bring(frame(b"early") + frame(b"half")[:-1])
    assert messages == []
    reader.begin()
    assert messages == [b"early"]
    assert refused == [websocket.HALF_A_FRAME]


class SocketLine(Line):
    """A line with the socket of a peer that has said its last words."""

    def __init__(self, protocol: asyncio.BaseProtocol, sock: socket.socket) -> None:
        super().__init__(protocol)
        self.sock = sock

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.sock if name == "socket" else default


@pytest.mark.parametrize("slice_s", [None, 0.0002, 0.0])
def test_last_messages_are_delivered_before_the_end_in_any_turn(slice_s: float | None) -> None:
    """Those of a run that had to wait came after it, and were dropped."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        line, intake, told = SocketLine(Owner(), ours), Taking(1 << 30), list[Any]()
        reader = FrameReader(line, told.append, told.append, intake=intake)
        reader.begin()
        intake.slice = slice_s
        large = os.urandom(20_000)
        theirs.sendall(frame(b"first") + frame(large) + frame(b"last"))
        theirs.close()
        reader.connection_lost(BrokenPipeError(32, "Broken pipe"))
    assert told[:-1] == [b"first", large, b"last"]
    assert told[-1] is ConnectionEnd.FIN
    assert intake.kept == 0


def test_an_error_of_the_receiver_ends_the_connection_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An OSError too, which event loops take for the connection's and keep to themselves."""

    def fail(message: bytes) -> None:
        raise OSError(5, "of something else")

    owner = Owner()
    line = Line(owner)
    FrameReader(line, fail).begin()
    line.bring(frame(b"one") + frame(b"two"))
    assert line.is_aborted
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "of something else" in caplog.text


def test_the_owner_gets_all_other_events() -> None:
    at = Reading()
    at.reader.pause_writing()
    at.reader.resume_writing()
    assert at.reader.eof_received() is True
    at.reader.connection_lost(OSError("gone"))
    assert at.owner.told == ["pause", "resume", "eof", "lost: gone"]
