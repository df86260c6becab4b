"""The file of the audit log: its mode, its rotation, and a disk that does not take it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rallypoint.cli import audit_file
from rallypoint.cli.audit_file import AuditFile
from rallypoint.errors import UsageError
from tests.waiting import wait_until

from .conftest import Cli, Served


def test_lines_are_appended_to_a_file_of_mode_0600(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    for text in (b"one\n", b"two\n"):
        file = AuditFile(str(path))
        file.write(text)
        file.close()
    assert path.read_bytes() == b"one\ntwo\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_after_a_rotation_the_new_file_is_written(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    file = AuditFile(str(path))
    file.write(b"one\n")
    wait_until(lambda: path.read_bytes() == b"one\n", says="the line is not written")
    path.rename(tmp_path / "audit.1")
    file.reopen()
    wait_until(path.exists, says="it waits for the next line")
    file.write(b"two\n")
    file.close()
    assert (tmp_path / "audit.1").read_bytes() == b"one\n"
    assert path.read_bytes() == b"two\n"


def test_a_new_file_that_others_can_read_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit"
    file = AuditFile(str(path))
    path.rename(tmp_path / "audit.1")
    path.write_text("")
    path.chmod(0o644)
    file.reopen()
    file.write(b"one\n")
    file.close()
    assert (tmp_path / "audit.1").read_bytes() == b"one\n"
    assert "create 0600" in caplog.text


@pytest.mark.parametrize("mode", [0o644, 0o660])
def test_a_file_that_others_can_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "audit"
    path.write_text("")
    path.chmod(mode)
    with pytest.raises(UsageError, match="other users") as caught:
        AuditFile(str(path))
    assert f"chmod 600 {path}" in caught.value.hint


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "audit").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="symbolic") as caught:
        AuditFile(str(tmp_path / "audit"))
    assert "not a link" in caught.value.hint
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    path.touch(0o600)
    os.chown(path, 65_534, 65_534)
    with pytest.raises(UsageError, match="belongs to user 65534"):
        AuditFile(str(path))


@pytest.mark.parametrize("has_reader", [False, True])
def test_a_pipe_is_refused_at_once(tmp_path: Path, has_reader: bool) -> None:
    path = tmp_path / "audit"
    os.mkfifo(path, 0o600)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if has_reader else None
    with pytest.raises(UsageError, match="is a pipe") as caught:
        AuditFile(str(path))
    assert "/dev/stdout" in caught.value.hint
    if reader is not None:
        os.close(reader)


def test_a_device_is_refused() -> None:
    with pytest.raises(UsageError, match="is a device"):
        AuditFile("/dev/null")


def test_a_stream_of_the_process_is_written_and_stays_open(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for path, text in (("/dev/stdout", b"one\n"), ("-", b"two\n"), ("/dev/stderr", b"three\n")):
        file = AuditFile(path)
        file.write(text)
        file.reopen()
        file.close()
        os.fstat(1), os.fstat(2)
    assert capfd.readouterr() == ("one\n", "two\nthree\n")


def test_a_file_that_cannot_be_opened_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory"):
        AuditFile(str(tmp_path / "no" / "audit"))


def test_a_disk_that_is_full_loses_records_and_nothing_else(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    file = AuditFile(str(tmp_path / "audit"))
    with Path("/dev/full").open("wb", buffering=0) as full:
        os.dup2(full.fileno(), file._file)
    file.write(b"one\n")
    file.close()
    assert "1 records are lost" in caplog.text


def test_lines_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The pipe has no reader yet, so that the first lines wait."""
    monkeypatch.setattr(audit_file, "WAITING_MAX", 10)
    file = AuditFile(str(tmp_path / "audit"))
    for _ in range(5_000):
        file.write(b"x\n")
    assert file._waiting.qsize() <= 10
    file.close()


@pytest.mark.processes
def test_serve_writes_it_and_opens_it_again_on_sighup(
    serve: Callable[..., Served], cli: Cli, tmp_path: Path
) -> None:
    token, path = tmp_path / "token", tmp_path / "audit"
    assert cli("token", "new", str(token)).code == 0
    served = serve("--token-file", str(token), "--audit", str(path))
    refused = cli("close", "job-1", "--endpoint", served.endpoint, "--token-file", str(token))
    assert refused.code != 0
    wait_until(lambda: path.read_text().count("\n") == 1, says="no record")
    record = json.loads(path.read_text())
    assert (record["action"], record["outcome"], record["run"]) == ("close", "failed", "job-1")
    assert token.read_text().strip() not in path.read_text()
    path.rename(tmp_path / "audit.1")
    served.process.send_signal(signal.SIGHUP)

    def is_written() -> bool:
        cli("close", "job-2", "--endpoint", served.endpoint, "--token-file", str(token))
        return path.exists() and "job-2" in path.read_text()

    wait_until(is_written, says="it was not opened again")


_ON_A_FULL_DISK = """
import resource, sys
from rallypoint.cli.audit_file import AuditFile
file = AuditFile(sys.argv[1])
# As a disk that becomes full, the kernel takes the part of a write that fits.
resource.setrlimit(resource.RLIMIT_FSIZE, (7, 100))
for line in (b"one\\n", b"two\\n", b"three\\n"):
    file.write(line)
while file._dropped < 2:
    pass
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
file.write(b"four\\n")
file.close()
"""


@pytest.mark.processes
def test_a_line_of_which_a_part_was_written_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    command = [sys.executable, "-c", _ON_A_FULL_DISK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert path.read_bytes() == b"one\ntwo\nfour\n"
    assert "records are lost" in done.stderr
