"""Starts and stops a real etcd on this machine, with torch's names.

For tests, examples and runs on one machine. It is a cluster of one member, which listens on
loopback only, for all users of this machine and without a password. The program is that of
TORCHELASTIC_ETCD_BINARY_PATH, else the `etcd` on the PATH, of 3.4 or later.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final, TextIO

from rallypoint import settings
from rallypoint.rendezvous.api import RendezvousConnectionError
from rallypoint.rendezvous.etcd_blocking import EtcdConnection

__all__ = ["EtcdServer", "find_free_port", "stop_etcd"]

_log = logging.getLogger(__name__)
_LOOPBACK: Final = "127.0.0.1"
_ASK_S: Final = 0.5
_STOP_S: Final = 10.0
_CLIENT_READ_TIMEOUT_S: Final = 10
_OLDEST: Final = (3, 4)
_REUSES_PORTS: Final = (3, 5)


def find_free_port() -> socket.socket:
    """A listening socket on a free port of loopback, held until the caller closes it.

    Tries the addresses of "localhost" in the system's order, of both families; 127.0.0.1 and ::1 if
    that name cannot be resolved.

    Raises RuntimeError if none of them can be bound. The note has the answer of each.
    """
    answers: list[str] = []
    for family, address in _loopbacks():
        held: socket.socket | None = None
        try:
            held = socket.socket(family, socket.SOCK_STREAM)
            held.bind(address)
            held.listen(0)
        except OSError as error:
            if held is not None:
                held.close()
            answers.append(f"{address[0]}: {error.strerror or error}")
        else:
            return held
    # This is torch's text, which its tests match whole.
    failure = RuntimeError("Failed to create a socket")
    failure.add_note("; ".join(answers) or "localhost has no address on this machine")
    raise failure


def _loopbacks() -> list[tuple[int, tuple[str, int]]]:
    try:
        found = socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)
    except OSError:
        return [(socket.AF_INET, (_LOOPBACK, 0)), (socket.AF_INET6, ("::1", 0))]
    return [(int(family), (str(sockaddr[0]), 0)) for family, _, _, _, sockaddr in found]


def stop_etcd(subprocess: subprocess.Popen[bytes], data_dir: str | None = None) -> None:
    """End a process, and wait for it. Then delete `data_dir`, if one is given."""
    if subprocess.poll() is None:
        subprocess.terminate()
        subprocess.wait()
    if data_dir:
        shutil.rmtree(data_dir, ignore_errors=True)


class EtcdServer:
    """An etcd of one member. Not for several threads.

    It is stopped at the end of the process that started it, unless that process is killed. Call
    `stop` when you do not need it any more.

    Args:
        data_dir: the folder of its data, which stays for a later start. None: a temporary folder,
            which is removed at the end.
    """

    def __init__(self, data_dir: str | None = None) -> None:
        self._given_dir = data_dir
        self._temporary_dir: str | None = None
        self._host = "localhost"
        self._port = -1
        self._process: subprocess.Popen[bytes] | None = None
        self._started_by = 0

    def get_port(self) -> int:
        """The port for clients; -1 before the first start."""
        return self._port

    def get_host(self) -> str:
        """The host's name for clients on this machine."""
        return self._host

    def get_endpoint(self) -> str:
        """ "host:port", for clients on this machine."""
        return f"{self._host}:{self._port}"

    def get_client(self) -> EtcdConnection:
        """A new connection to it. Raises RuntimeError if it is not running."""
        if self._process is None:
            raise RuntimeError("this etcd is not running: call start() first")
        return EtcdConnection(_LOOPBACK, self._port, read_timeout=_CLIENT_READ_TIMEOUT_S)

    def start(
        self, timeout: int = 60, num_retries: int = 3, stderr: int | TextIO | None = None
    ) -> None:
        """Start it, and wait until it answers reads.

        Args:
            timeout: how many seconds each try may take.
            num_retries: how many tries there are. Each takes another port.
            stderr: where etcd's log goes, as for subprocess.Popen; None for this process's stderr.

        Raises:
            FileNotFoundError: etcd was not found.
            RuntimeError: etcd ended by itself, is older than 3.4, or is running already.
            TimeoutError: etcd did not answer in time.
        """
        if self._process is not None:
            raise RuntimeError(f"this etcd runs already, at {self.get_endpoint()}")
        program = _program()
        release = _release(program)
        folder = self._folder()
        atexit.register(self.stop)
        try:
            for tries_left in reversed(range(max(1, num_retries))):
                try:
                    self._try(program, release, folder, timeout, stderr)
                    return
                except (RuntimeError, TimeoutError) as error:
                    self._kill()
                    if not tries_left:
                        raise
                    _log.warning("etcd did not start; trying again: %s", error)
        finally:
            if self._process is None:
                self.stop()

    def stop(self) -> None:
        """Stop it, and remove its temporary folder.

        Does nothing if it is not running, and in a child made by fork().
        """
        if self._process is not None and self._started_by != os.getpid():
            return
        atexit.unregister(self.stop)
        self._kill()
        folder, self._temporary_dir = self._temporary_dir, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _folder(self) -> Path:
        if self._given_dir is not None:
            Path(self._given_dir).mkdir(parents=True, exist_ok=True)
            return Path(self._given_dir).absolute()
        self._temporary_dir = tempfile.mkdtemp(prefix="rallypoint-etcd-")
        return Path(self._temporary_dir)

    def _try(
        self,
        program: str,
        release: tuple[int, int],
        folder: Path,
        timeout: float,
        stderr: int | TextIO | None,
    ) -> None:
        can_share = release >= _REUSES_PORTS and hasattr(socket, "SO_REUSEPORT")
        with _reserved(can_share) as reservation:
            self._port = reservation.getsockname()[1]
            if not can_share:
                # etcd 3.4 needs a free port. If another process takes it first, etcd ends, and
                # the next try takes another port.
                reservation.close()
            name = f"rallypoint-{secrets.token_hex(4)}"
            command = _command(program, name, folder, self._port, can_share=can_share)
            _log.info("starting etcd: %s", command)
            self._started_by = os.getpid()
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=stderr, cwd=folder
            )
            self._wait_until_ready(self._process, name, timeout)

    def _wait_until_ready(
        self, process: subprocess.Popen[bytes], name: str, timeout: float
    ) -> None:
        """Wait until this etcd answers, and not another one on the same port."""
        deadline = time.monotonic() + timeout
        said = "it never answered"
        while time.monotonic() < deadline:
            if (code := process.poll()) is not None:
                raise RuntimeError(f"etcd ended by itself with exit code {code}; its log says why")
            client = EtcdConnection(_LOOPBACK, self._port, read_timeout=_ASK_S)
            try:
                client.read("ready")
                if name in client.members():
                    return
                said = "another etcd answered at its port"
            except RendezvousConnectionError as error:
                said = str(error)
            finally:
                client.close()
        raise TimeoutError(f"etcd was not ready within {timeout:g} s: {said}")

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stderr is not None:
            process.stderr.close()

    def __repr__(self) -> str:
        state = f"at {self.get_endpoint()}" if self._process is not None else "not running"
        return f"<EtcdServer {state}>"


def _program() -> str:
    """The path of etcd's program. Raises FileNotFoundError."""
    named = settings.etcd_binary()
    if named and Path(named).is_file():
        return str(Path(named).absolute())
    if named:
        _log.warning(
            "TORCHELASTIC_ETCD_BINARY_PATH is %s, which is not a file; searching the PATH", named
        )
    found = shutil.which("etcd")
    if found is None:
        raise FileNotFoundError(
            errno.ENOENT,
            "there is no etcd on the PATH; install etcd 3.4 or later, or set "
            "TORCHELASTIC_ETCD_BINARY_PATH to its program",
            named or "etcd",
        )
    return str(Path(found).absolute())


def _release(program: str) -> tuple[int, int]:
    """The program's release, by `--version`. Raises RuntimeError if it cannot be used."""
    try:
        told = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=30, check=False
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeError(f"{program} cannot be run: {error}") from error
    found = re.search(r"etcd Version: (\d+)\.(\d+)", told)
    if found is None:
        raise RuntimeError(f"{program} printed {told[:80]!r} instead of etcd's version")
    release = int(found[1]), int(found[2])
    if release < _OLDEST:
        raise RuntimeError(f"{program} is etcd {found[1]}.{found[2]}; 3.4 or later is needed")
    return release


def _reserved(can_share: bool) -> socket.socket:
    """A socket with a free port.

    If etcd can share a port, no other process gets it meanwhile, because the socket does not
    listen, and stays bound until etcd is.
    """
    reservation = socket.socket()
    if can_share:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reservation.bind((_LOOPBACK, 0))
    return reservation


def _command(program: str, name: str, folder: Path, port: int, *, can_share: bool) -> list[str]:
    # A socket file in its folder instead of a second port, because it has no peers.
    peer = "unix://peer:0"
    options = {
        "name": name,
        "data-dir": str(folder / "data"),
        "listen-client-urls": f"http://{_LOOPBACK}:{port}",
        "advertise-client-urls": f"http://{_LOOPBACK}:{port}",
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"{name}={peer}",
    }
    shared = {"socket-reuse-port": "true"} if can_share else {}
    return [program, *(f"--{option}={value}" for option, value in {**options, **shared}.items())]
