"""`--watch` on a terminal: the whole screen, and keys to scroll, to sort and to end.

What is shown is drawn elsewhere. This file only has the screen and the keys.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.segment import Segment, Segments
from rich.text import Text

from rallypoint.cli import output

KEYS: Final[dict[bytes, str]] = {
    b"q": "quit",
    b"Q": "quit",
    b"s": "sort",
    b"\x1b[A": "up",
    b"k": "up",
    b"\x1b[B": "down",
    b"j": "down",
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
    b" ": "page down",
    b"\x1b[H": "home",
    b"g": "home",
}
"""What is typed, and what it does."""

Draw = Callable[[Any, int], list[RenderableType]]
"""Draws a status in the order of this number."""


def watch(
    each_second: Iterator[Any], draw: Draw, order_name: Callable[[Any, int], str], every_s: float
) -> None:
    """Show each status on the whole screen, until there is none or a person ends it.

    `each_second` gives the next status at once. The last one stays on the screen after the end.
    """
    last, order, first = None, 0, 0
    console = output.console()
    with _keys() as read, Live(console=console, auto_refresh=False, screen=True) as live:
        for last in each_second:
            ends_s = time.monotonic() + every_s
            is_quitting = False
            while True:
                shown, first = _screen(console, draw(last, order), order_name(last, order), first)
                live.update(shown, refresh=True)
                left_s = ends_s - time.monotonic()
                key = read(left_s) if left_s > 0 else ""
                if not key:
                    break
                is_quitting = key == "quit"
                if is_quitting:
                    break
                order += key == "sort"
                first = _moved(first, key, console.height)
            if is_quitting:
                break
    if last is not None:
        output.show(*draw(last, order))


def _moved(first: int, key: str, height: int) -> int:
    steps = {"up": -1, "down": 1, "page up": -(height - 2), "page down": height - 2, "home": -first}
    return max(0, first + steps.get(key, 0))


def _screen(
    console: Console, parts: list[RenderableType], order: str, first: int
) -> tuple[RenderableType, int]:
    """The lines from `first` on that fit, a line about keys, and the first line that is shown."""
    lines = console.render_lines(Group(*parts), pad=False)
    room = max(1, console.height - 1)
    first = min(first, max(0, len(lines) - room))
    segments: list[Segment] = []
    for line in lines[first : first + room]:
        segments += [*line, Segment.line()]
    segments += [Segment.line()] * (room - len(lines[first : first + room]))
    place = f"  lines {first + 1}-{min(first + room, len(lines))} of {len(lines)}"
    more = place if len(lines) > room else ""
    foot = Text(f"{time.strftime('%H:%M:%S')}  q ends, arrows scroll, s sorts (by {order}){more}")
    foot.stylize("reverse")
    return Group(Segments(segments), foot), first


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """What a person types, without Return. Gives a function that waits for a key for some seconds.

    The function returns "" if nothing of KEYS comes. Without a terminal to read it only waits.
    """
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):
        yield _no_key
        return

    typed = bytearray()

    def read(seconds: float) -> str:
        if not typed:
            if not select.select([descriptor], [], [], seconds)[0]:
                return ""
            typed.extend(os.read(descriptor, 64))
        return next_key(typed)

    tty.setcbreak(descriptor)
    try:
        yield read
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def next_key(typed: bytearray) -> str:
    """Take the first key out of what was typed, and return what it does. Nothing: no terminal."""
    if not typed:
        return "quit"
    for keys, deed in KEYS.items():
        if typed.startswith(keys):
            del typed[: len(keys)]
            return deed
    # A key that does nothing here. All that follows an escape may belong to it.
    del typed[: len(typed) if typed.startswith(b"\x1b") else 1]
    return "other"


def _no_key(seconds: float) -> str:
    time.sleep(seconds)
    return ""
