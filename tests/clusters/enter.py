"""Run a command on a host, as ssh does: `python enter.py SOCKET COMMAND...`.

Exits with the command's code; 255 if the host is gone. Signals go to the command. With --shell
before the socket, it takes the place of ssh: the rest is one line for a shell, and a host that has
lost its power says nothing, so this goes on until a signal ends it.

What must not be here: imports outside the standard library. It starts without site-packages.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

UNREACHABLE = 255


def main(arguments: list[str]) -> int:
    """The exit code."""
    is_line = arguments[0] == "--shell"
    path, *argv = arguments[is_line:]
    if is_line:
        argv = ["/bin/sh", "-c", " ".join(argv)]
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(path)
        request = {"argv": argv, "env": dict(os.environ), "cwd": str(Path.cwd())}
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda number, _: connection.send(str(int(number)).encode()))
        answer = connection.recv(16)
    except OSError as error:
        print(f"{path}: {error}", file=sys.stderr)
        return UNREACHABLE
    if answer:
        return int(answer)
    if is_line:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: sys.exit(UNREACHABLE))
        while os.getppid() != 1:
            signal.sigtimedwait((), 1.0)  # its starter may end without a signal
    return UNREACHABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
