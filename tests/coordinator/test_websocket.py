"""The reader in front of aiohttp's WebSocket: what it takes, what it leaves, when it gives up."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import weakref
from typing import Any, cast

import pytest
from websockets.frames import Frame, Opcode

from rallypoint.coordinator import incoming, websocket
from rallypoint.coordinator.incoming import SKIPPED_START_BYTES
from rallypoint.coordinator.websocket import FrameReader
from rallypoint.core.values import ConnectionEnd
from rallypoint.wire.messages import MESSAGE_BYTES_MAX


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


@pytest.mark.parametrize("size", SIZES)
def test_a_message_is_handed_on_as_it_was_sent(size: int) -> None:
    at, payload = Reading(), os.urandom(size)
    at.line.bring(frame(payload))
    assert at.messages == [payload]
    assert type(at.messages[0]) is bytes
    assert at.owner.bytes == b""


@pytest.mark.parametrize("seed", range(20))
def test_it_does_not_matter_where_the_network_cuts(seed: int) -> None:
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


def test_every_single_cut_of_two_messages() -> None:
    stream = frame(b"a" * 200) + frame(b"", Opcode.PONG) + frame(b"b")
    for cut in range(len(stream) + 1):
        at = Reading()
        at.line.bring(stream[:cut])
        at.line.bring(stream[cut:])
        assert at.messages == [b"a" * 200, b"b"], cut
        at.line.bring(frame(b"c"))
        assert at.messages == [b"a" * 200, b"b", b"c"], cut


def test_the_largest_message_is_taken_and_none_that_is_larger() -> None:
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
def test_at_anything_else_it_steps_aside_for_good(other: bytes) -> None:
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
def test_a_frame_without_a_mask_is_refused_and_nothing_after_it_read(
    unmasked: bytes, before: bytes
) -> None:
    at = Reading()
    at.line.bring(before + unmasked + frame(b"after"))
    at.line.bring(frame(b"later") + unmasked)
    assert at.refused == [websocket.UNMASKED]
    assert at.messages == []
    assert at.owner.bytes == before


def test_a_frame_inside_another_is_never_taken_for_one() -> None:
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


def test_of_a_large_message_in_small_pieces_each_byte_is_looked_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To look at all of them for each piece would be the square of its size."""
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
def test_a_large_message_is_the_same_however_it_comes(size: int, step: int) -> None:
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


def test_a_large_message_waits_for_its_turn_between_its_pieces_and_when_it_is_whole() -> None:
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


def test_a_large_message_that_waits_is_taken_when_the_connection_is_gone() -> None:
    at, payload = Bounded(), os.urandom(300_000)
    stream = frame(payload)
    at.line.bring(stream[:100_000])
    at.intake.slice = 0.0
    at.line.bring(stream[100_000:])
    assert at.messages == []
    cast(asyncio.Protocol, at.line.protocol).connection_lost(OSError("gone"))
    assert at.messages == [payload]


def test_a_connection_that_ends_in_a_large_message_is_known_to_have_ended() -> None:
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


def test_half_of_a_large_frame_before_the_answer_is_refused_too() -> None:
    at = Reading(early=frame(os.urandom(300_000))[:-10])
    at.reader.begin()
    assert at.refused == [websocket.HALF_A_FRAME]
    assert at.line.protocol is at.reader
    at.line.bring(bytes(1_000))
    assert at.messages == []


def test_of_a_large_message_nothing_is_kept_once_it_was_taken() -> None:
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


def test_a_large_message_for_which_there_is_no_memory_passes(
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
def test_last_words_come_before_the_end_whosever_turn_it_is(slice_s: float | None) -> None:
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


def test_what_had_been_read_before_a_pause_belongs_to_the_large_message_that_waits() -> None:
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


def test_a_message_that_cannot_be_taken_ends_its_connection_and_is_logged(
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


def test_the_owner_is_told_of_all_else() -> None:
    at = Reading()
    at.reader.pause_writing()
    at.reader.resume_writing()
    assert at.reader.eof_received() is True
    at.reader.connection_lost(OSError("gone"))
    assert at.owner.told == ["pause", "resume", "eof", "lost: gone"]


# -- what is kept, and for how long others wait ------------------------------------------------


class Taking:
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

    def had_its_turn(self) -> None:
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


def test_a_message_that_is_not_whole_counts_from_its_first_bytes_on() -> None:
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
def test_a_message_without_room_passes_and_what_follows_is_read(cut: int) -> None:
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


def test_only_so_many_frames_are_taken_in_one_turn() -> None:
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


def test_what_was_put_off_is_taken_when_the_connection_is_gone() -> None:
    at = Bounded()
    payloads = [b"%d" % number for number in range(100)]
    at.line.bring(b"".join(map(frame, payloads)))
    at.reader.connection_lost(OSError("gone"))
    assert at.messages == payloads
    assert not at.intake.turn()
    assert at.messages == payloads


def test_pings_are_answered_here_and_count_as_frames() -> None:
    at = Bounded()
    at.line.bring(b"".join(frame(b"%d" % n, Opcode.PING) for n in range(40)))
    assert len(at.intake.told) == websocket.FRAMES_PER_TURN
    while at.intake.put_off:
        at.intake.turn()
    assert at.intake.told == [("pinged", b"%d" % n) for n in range(40)]
    at.line.bring(frame(b"", Opcode.PONG))
    assert at.owner.bytes == b""


def test_messages_in_fragments_are_put_together_and_counted() -> None:
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
def test_nothing_begins_within_a_message_in_fragments(second: bytes) -> None:
    at = Bounded()
    at.line.bring(frame(b"one", fin=False) + second + frame(b"later"))
    assert at.refused == [websocket.IN_A_MESSAGE]
    assert at.messages == []


def test_fragments_are_bounded_together() -> None:
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


def test_a_large_frame_that_is_no_message_is_left_to_the_owner_at_once() -> None:
    at = Bounded()
    text = frame(bytes(websocket.OTHER_BYTES_MAX + 1), Opcode.TEXT)[:100]
    at.line.bring(text)
    assert at.owner.bytes == text
    assert at.stepped_aside


@pytest.mark.parametrize("seed", range(20))
def test_cut_anywhere_and_in_turns_all_arrives_once_and_in_order(seed: int) -> None:
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


def test_the_intake_is_told_when_the_peer_does_not_read() -> None:
    at = Bounded()
    at.reader.pause_writing()
    at.reader.resume_writing()
    assert at.intake.told == ["paused", "resumed"]
    assert at.owner.told == ["pause", "resume"]


def test_while_several_runs_speak_a_connection_has_a_slice_and_at_least_one_message() -> None:
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


def test_what_comes_while_others_of_its_run_wait_waits_behind_them() -> None:
    at = Bounded()
    at.intake.slice = 0.0
    at.line.bring(frame(b"one") + frame(b"two")[:3])
    assert at.messages == []
    assert at.line.is_paused
    while at.intake.put_off:
        at.intake.turn()
    assert at.messages == [b"one"]
    assert not at.line.is_paused


def test_a_large_message_comes_piece_by_piece_while_several_runs_speak() -> None:
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
