"""A line between two switches that is slow and loses frames: a program of its own.

    python relay.py SEED NEAR FAR

It makes two network devices (TAP) with these names, and carries Ethernet frames from one to the
other. Each line on stdin sets the line: "DELAY_S LOSS". The order of frames is kept, as on a real
line. The program ends with its stdin.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import os
import random
import selectors
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
FRAME_BYTES_MAX = 70_000


def tap(name: str) -> int:
    """A device with this name; what the kernel sends to it can be read from the descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    return descriptor


def carry(chance: random.Random, near: int, far: int) -> None:
    """Until stdin ends."""
    ready = selectors.DefaultSelector()
    for descriptor in (0, near, far):
        ready.register(descriptor, selectors.EVENT_READ)
    other = {near: far, far: near}
    under_way: list[tuple[float, int, int, bytes]] = []
    delay_s, loss, order, last_s = 0.0, 0.0, itertools.count(), {near: 0.0, far: 0.0}
    while True:
        wait_s = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        for key, _ in ready.select(wait_s):
            if key.fd == 0:
                told = os.read(0, 4096).decode().split("\n")
                if told == [""]:
                    return
                delay_s, loss = map(float, told[-2].split())
                continue
            with contextlib.suppress(BlockingIOError):
                while frame := os.read(key.fd, FRAME_BYTES_MAX):
                    if chance.random() >= loss:
                        due_s = time.monotonic() + delay_s * chance.uniform(0.5, 1.5)
                        last_s[key.fd] = max(due_s, last_s[key.fd])
                        item = (last_s[key.fd], next(order), other[key.fd], frame)
                        heapq.heappush(under_way, item)
        now_s = time.monotonic()
        while under_way and under_way[0][0] <= now_s:
            _, _, out, frame = heapq.heappop(under_way)
            with contextlib.suppress(OSError):  # a device that is down, or full, loses it
                os.write(out, frame)


if __name__ == "__main__":
    devices = [tap(name) for name in sys.argv[2:]]
    print("ready", flush=True)
    carry(random.Random(sys.argv[1]), *devices)
