"""What becomes of a pipe's bytes, without threads or processes: output_streams.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rallypoint.launch.output_streams import Console, LastLines, LogFile, Stream


class Written:
    """A console that remembers its writes."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.parts.append(data)


Feed = Callable[..., list[bytes]]


@pytest.fixture
def feed() -> Iterator[Feed]:
    """Writes each part to a pipe, reads it through a Stream; what came to the console, by write."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    written = Written()

    def feed(*parts: bytes, prefix: bytes = b"", end: bool = False) -> list[bytes]:
        stream = Stream(read_end, written, None, prefix, None, lambda fd: None)  # type: ignore[arg-type]
        for part in parts:
            os.write(write_end, part)
            while stream.read():
                pass
        if end:
            stream.close()
        else:
            os.close(read_end)
        return written.parts

    yield feed
    os.close(write_end)


def test_a_line_is_written_whole(feed: Feed) -> None:
    assert feed(b"on", b"e\ntw", b"o\n") == [b"one\n", b"two\n"]


def test_several_lines_are_one_write(feed: Feed) -> None:
    assert feed(b"one\ntwo\nthr") == [b"one\ntwo\n"]


def test_a_line_without_an_end_is_written_at_the_end(feed: Feed) -> None:
    assert feed(b"one\ntwo", end=True) == [b"one\n", b"two"]


def test_every_line_has_the_prefix(feed: Feed) -> None:
    parts = feed(b"one\n\ntwo\nth", b"ree\n", b"four", prefix=b"[n:0] ", end=True)
    assert b"".join(parts) == b"[n:0] one\n[n:0] \n[n:0] two\n[n:0] three\n[n:0] four\n"


def test_a_progress_bar_is_shown_as_it_moves(feed: Feed) -> None:
    parts = feed(b"\r10%", b"\r20%", b"\r30%", b"\n", prefix=b"[n:0] ")
    assert b"".join(parts) == b"[n:0] \r[n:0] 10%\r[n:0] 20%\r[n:0] 30%\n"
    assert parts[1] == b"[n:0] 10%\r"


def test_a_windows_line_end_is_one_end(feed: Feed) -> None:
    parts = feed(b"one\r", b"\ntwo\r\nthree\r\n", prefix=b"> ")
    assert b"".join(parts) == b"> one\r\n> two\r\n> three\r\n"


def test_a_very_long_line_is_written_in_parts(feed: Feed) -> None:
    parts = feed(*[b"x" * 30_000] * 100, b"\nnext\n", prefix=b"> ")
    assert b"".join(parts) == b"> " + b"x" * 3_000_000 + b"\n> next\n"
    assert max(map(len, parts)) < 200_000


def test_bytes_that_are_no_text_pass_unchanged(feed: Feed) -> None:
    garbage = bytes(range(256)) + b"\xff\xfe\n"
    assert b"".join(feed(garbage)) == garbage


def test_the_last_lines_are_the_last() -> None:
    last = LastLines(count=3)
    for number in range(5):
        last.feed(b"line %d\n" % number)
    last.feed(b"no end")
    assert last.snapshot() == ("line 3", "line 4", "no end")


@pytest.mark.parametrize("size", [1, 3, 7, 100, 100_000])
def test_the_last_lines_are_the_same_for_any_pieces(size: int) -> None:
    text = b"".join(b"line %d\n" % number for number in range(1000)) + b"\n  \nhalf"
    last = LastLines(count=3)
    for start in range(0, len(text), size):
        last.feed(text[start : start + size])
    assert last.snapshot() == ("line 998", "line 999", "half")


def test_a_kept_line_is_cut_with_a_mark() -> None:
    last = LastLines(bytes_max=10)
    last.feed(b"x" * 10 + b"\n" + b"y" * 11 + b"\n")
    for _ in range(1000):
        last.feed(b"z" * 1000)
    assert last.snapshot() == ("x" * 10, "y" * 10 + "…", "z" * 10 + "…")


def test_only_the_last_state_of_a_progress_bar_is_kept() -> None:
    last = LastLines()
    for percent in range(100):
        last.feed(b"\r%d %%" % percent)
    last.feed(b"\nerror\r\n")
    assert last.snapshot() == ("99 %", "error")


def test_kept_garbage_becomes_text() -> None:
    last = LastLines()
    last.feed(b"\xff\x00caf\xc3\xa9\n")
    assert last.snapshot() == ("\ufffd\x00café",)


def test_a_console_without_a_reader_is_given_up() -> None:
    read_end, write_end = os.pipe()
    console = Console(write_end)
    console.write(b"one\n")
    os.close(read_end)
    for _ in range(3):
        console.write(b"two\n")
    os.close(write_end)
    console.write(b"three\n")  # and is not tried again: the number may be another file's by now


def test_a_file_that_fails_is_reported_once_and_closed(tmp_path: Path) -> None:
    told: list[tuple[Path, int | None]] = []
    path = tmp_path / "full"
    path.symlink_to("/dev/full")
    file = LogFile(path, lambda path, error: told.append((path, error.errno)))
    file.open()
    for _ in range(3):
        file.write(b"one\n")
    file.close()
    assert told == [(path, 28)]
