"""The first process of a host: runs what is sent to its socket, as sshd would, and reaps orphans.

It is PID 1 of its host, so the kernel ends every process of the host with it. It ends when its
stdin does, which is when the process that holds the host ends, however it ends.

A request is one packet: JSON with argv, env and cwd, and three descriptors: stdin, stdout and
stderr. Each later packet is the number of a signal for the command's process group. The answer is
the exit code, as a shell has it. A command whose connection ends is killed.

What must not be here: imports outside the standard library. It starts without site-packages.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys

PACKET_BYTES_MAX = 128 * 1024


class Init:
    """The commands that run here, and the connections that wait for their ends."""

    def __init__(self, path: str) -> None:
        self._of: dict[int, socket.socket] = {}
        self._events = selectors.DefaultSelector()
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server.bind(path)
        self._server.listen(64)
        deaths, on_death = socket.socketpair()
        for each in (deaths, on_death):
            each.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(on_death.fileno())
        self._deaths, self._on_death = deaths, on_death
        self._events.register(self._server, selectors.EVENT_READ)
        self._events.register(deaths, selectors.EVENT_READ)
        self._events.register(0, selectors.EVENT_READ)

    def run(self) -> None:
        """Until stdin ends."""
        while True:
            for key, _ in self._events.select():
                if key.fileobj == 0:
                    return
                if key.fileobj is self._server:
                    self._events.register(self._server.accept()[0], selectors.EVENT_READ)
                elif key.fileobj is self._deaths:
                    self._deaths.recv(4096)
                    self._reap()
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._packet(key.fileobj)

    def _packet(self, connection: socket.socket) -> None:
        try:
            packet, descriptors, _, _ = socket.recv_fds(connection, PACKET_BYTES_MAX, 3)
        except ConnectionError:
            packet, descriptors = b"", []
        pid = next((pid for pid, each in self._of.items() if each is connection), None)
        if descriptors:
            self._of[_start(json.loads(packet), descriptors)] = connection
            for each in descriptors:
                os.close(each)
        elif packet and pid is not None:
            _signal(pid, int(packet))
        elif not packet:
            if pid is not None:
                _signal(pid, signal.SIGKILL)
            self._forget(connection)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if (connection := self._of.pop(ended[0], None)) is not None:
                    code = os.waitstatus_to_exitcode(ended[1])
                    with contextlib.suppress(ConnectionError):
                        connection.send(str(code if code >= 0 else 128 - code).encode())

    def _forget(self, connection: socket.socket) -> None:
        self._events.unregister(connection)
        connection.close()


def _start(request: dict[str, object], descriptors: list[int]) -> int:
    """The pid of a child that leads a session of its own."""
    argv, env, cwd = request["argv"], request["env"], request["cwd"]
    assert isinstance(argv, list)
    assert isinstance(env, dict)
    assert isinstance(cwd, str)
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        os.closerange(3, 256)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.chdir(cwd)
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error}\n".encode())
    os._exit(127)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


if __name__ == "__main__":
    Init(sys.argv[1]).run()
