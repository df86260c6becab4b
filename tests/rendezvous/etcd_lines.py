"""etcd in trouble: a line that loses one answer."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass
class LossyLine:
    """Passes everything on, until `lose` is set: then one write's answer is lost.

    `meanwhile` is called once the write is done, before its writer can try again.
    """

    target: tuple[str, int]
    lose: bool = False
    meanwhile: Callable[[], object] = lambda: None
    lost: int = 0
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                each, _ = self.listener.accept()
                threading.Thread(target=self._carry, args=(each,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near, socket.create_connection(self.target) as far, contextlib.suppress(OSError):
            while request := _message(near):
                far.sendall(request)
                answer = _message(far)
                if self.lose and b"request_put" in request:
                    self.lose = False
                    self.lost += 1
                    self.meanwhile()
                    return
                near.sendall(answer)


def _message(from_: socket.socket) -> bytes:
    """One HTTP message with a body of known length; b"" at the end."""
    read = b""
    while b"\r\n\r\n" not in read:
        part = from_.recv(1 << 16)
        if not part:
            return b""
        read += part
    head, _, body = read.partition(b"\r\n\r\n")
    fields = head.lower().split(b"\r\n")
    if b"transfer-encoding: chunked" in fields:
        while not read.endswith(b"0\r\n\r\n"):
            read += from_.recv(1 << 16)
        return read
    length = next(int(each.split(b":")[1]) for each in fields if each.startswith(b"content-length"))
    while len(body) < length:
        part = from_.recv(1 << 16)
        read, body = read + part, body + part
    return read


@contextlib.contextmanager
def lossy_line(endpoint: str) -> Iterator[LossyLine]:
    """A line to "host:port"."""
    host, port = endpoint.split(":")
    line = LossyLine((host, int(port)))
    thread = threading.Thread(target=line.accept, daemon=True)
    thread.start()
    try:
        yield line
    finally:
        line.listener.shutdown(socket.SHUT_RDWR)
        line.listener.close()
        thread.join(10)
