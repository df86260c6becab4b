"""Commands of --check and --notice-command: output, limits, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rallypoint.launch.check_process import KEPT_BYTES, REASON_MAX, run_check, run_notice
from tests.waiting import wait_until

pytestmark = pytest.mark.processes
LIMIT_S = 60.0


class Groups:
    """Keeps what the guard would know."""

    def __init__(self) -> None:
        self.now: set[int] = set()
        self.seen: list[int] = []

    def add(self, pgid: int) -> None:
        self.now.add(pgid)
        self.seen.append(pgid)

    def remove(self, pgid: int) -> None:
        self.now.discard(pgid)


def check(command: str, limit_s: float = LIMIT_S, groups: Groups | None = None) -> str:
    known = groups or Groups()
    found = asyncio.run(run_check(command, limit_s, os.environ, known))
    assert len(known.seen) == 1
    assert not known.now
    return found


def is_gone(pid: int) -> bool:
    """Whether it has ended: a zombie has, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("echo all is well", ""),
        ("echo 8 GPUs; echo GPU 3 fell off >&2; exit 1", "GPU 3 fell off"),
        ("printf 'no newline'; exit 3", "no newline"),
        ("echo why; echo; exit 1", "why"),
        ("exit 7", "it exited with code 7"),
        ("kill -9 $$", "it was killed by signal 9"),
        ("printf 'a\\033[31mb\\n'; exit 1", "a\\x1b[31mb"),
        ("no-such-command-here 2>/dev/null", "it exited with code 127"),
    ],
)
def test_the_last_line_is_the_reason(command: str, reason: str) -> None:
    assert check(command) == reason


def test_a_long_output_is_read_and_its_last_line_is_cut() -> None:
    found = check("yes | head -c 4000000; printf '%01000d' 7; exit 1")
    assert len(found) == REASON_MAX


def test_a_check_that_hangs_is_ended_with_all_that_it_has_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    command = f"sleep 600 & echo $! > {pids}; echo waiting for GPU 3; wait"
    assert check(command, limit_s=1.0) == "it has not ended within 1 s: waiting for GPU 3"
    wait_until(lambda: is_gone(int(pids.read_text())))


def test_what_a_check_leaves_behind_is_ended(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    assert check(f"sleep 600 & echo $! > {pids}") == ""
    wait_until(lambda: is_gone(int(pids.read_text())))


def test_what_has_a_process_group_of_its_own_is_ended_as_well(tmp_path: Path) -> None:
    """`timeout` and shells with job control make one for what they start."""
    pids = tmp_path / "pids"
    command = f"timeout 600 sh -c 'echo $$ > {pids}; sleep 600'; true"
    assert check(command, limit_s=1.0) == "it has not ended within 1 s"
    wait_until(lambda: is_gone(int(pids.read_text())))


def test_a_process_that_left_the_session_does_not_hold_the_check(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    began_s = time.monotonic()
    try:
        assert check(f"setsid sh -c 'echo $$ > {pids}; exec sleep 600' & sleep 0.2") == ""
    finally:
        wait_until(pids.exists)
        os.kill(int(pids.read_text()), 9)
    # It would wait for the end of the output, for ten minutes.
    assert time.monotonic() - began_s < LIMIT_S


def test_a_wait_that_is_cancelled_ends_the_check(tmp_path: Path) -> None:
    pids, groups = tmp_path / "pids", Groups()

    async def main() -> None:
        command = f"echo $$ > {pids}; sleep 600"
        task = asyncio.ensure_future(run_check(command, LIMIT_S, os.environ, groups))
        await asyncio.to_thread(
            wait_until, lambda: pids.exists() and pids.read_text().strip() != ""
        )
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    asyncio.run(main())
    wait_until(lambda: is_gone(int(pids.read_text())))
    assert not groups.now


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextlib.contextmanager
def few_files(free: int) -> Iterator[None]:
    """In this block, this process may open only so many files more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    with contextlib.ExitStack() as closed:
        for _ in range(free):
            held.append(os.open(os.devnull, os.O_RDONLY))
            closed.callback(os.close, held[-1])
        lowest = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("free", range(8))
def test_a_check_for_which_no_file_is_left_has_failed(free: int, tmp_path: Path) -> None:
    """Whichever call is the first that gets none. The next check is like any other."""
    groups, ran = Groups(), tmp_path / "ran"

    async def main() -> tuple[str, str]:
        with few_files(free):
            scarce = await run_check(f"echo > {ran}", LIMIT_S, os.environ, groups)
        return scarce, await run_check("true", LIMIT_S, os.environ, groups)

    before = open_files()
    scarce, later = asyncio.run(main())
    if free < 4:  # its two pipes
        assert scarce == "it cannot be started: [Errno 24] Too many open files"
    assert ran.exists() is (scarce == "")
    assert later == ""
    assert not groups.now
    assert open_files() == before


def notice(command: str, limit_s: float = LIMIT_S) -> tuple[int, str]:
    known = Groups()
    try:
        return asyncio.run(run_notice(("sh", "-c", command), limit_s, os.environ, known))
    finally:
        assert len(known.seen) == 1
        assert not known.now


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("echo gone soon; echo more", (0, "gone soon\nmore\n")),
        ("exit 7", (7, "")),
        ("echo unseen >&2; kill -9 $$", (-9, "")),
    ],
)
def test_a_notice_command_tells_its_code_and_its_output(
    command: str, found: tuple[int, str]
) -> None:
    assert notice(command) == found


def test_a_notice_command_without_an_end_leaves_no_process(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    command = f"sleep 1000 & echo $! $$ >{pids}; wait; exit 1"
    with pytest.raises(TimeoutError, match="no answer within 5 s"):
        notice(command, limit_s=5.0)
    for pid in map(int, pids.read_text().split()):
        wait_until(lambda pid=pid: is_gone(pid))  # type: ignore[misc]


def test_a_notice_command_that_ends_leaves_no_process(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    assert notice(f"sleep 1000 & echo $! >{pids}; echo go") == (0, "go\n")
    wait_until(lambda: is_gone(int(pids.read_text())))


def test_the_output_of_a_notice_command_takes_a_bounded_memory() -> None:
    code, text = notice("echo gone soon; head -c 5000000 /dev/zero")
    assert code == 0
    assert text.startswith("gone soon\n")
    assert len(text) == KEPT_BYTES


def test_a_notice_command_that_is_missing_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        asyncio.run(run_notice(("no-such-command-here",), LIMIT_S, os.environ, Groups()))
