"""The ledger in files: crashes at every step, frozen writers, many processes, and bad folders."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rallypoint.errors import (
    LedgerAccessError,
    LedgerCorruptError,
    LedgerError,
    LedgerForeignError,
    LedgerFormatError,
    LedgerFullError,
    LedgerUnfitError,
    LedgerUnreachableError,
)
from rallypoint.ledger import record_format
from rallypoint.ledger.contract import Conflict, Created, Exists, Gap, Swapped, Unknown, Versioned
from rallypoint.ledger.file import chain as file_chain
from rallypoint.ledger.file import folder as file_folder
from rallypoint.ledger.file import probe as file_probe
from rallypoint.ledger.file.chain import SEGMENT, Advance, Chain
from rallypoint.ledger.file.disk import Disk, names
from rallypoint.ledger.file.ledger import FileLedger

CHILD = Path(__file__).with_name("file_child.py")
SRC = Path(__file__).parents[2] / "src"


@pytest.fixture
def folder(fast_path: Path) -> Path:
    return fast_path / "ledger"


@contextlib.contextmanager
def _child(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, str(CHILD), str(folder), *arguments],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


async def _swap_on(ledger: FileLedger, key: str, times: int, version: int | None = None) -> int:
    for number in range(times):
        outcome = await ledger.swap(key, version, b"%d" % number)
        assert isinstance(outcome, Swapped), outcome
        version = outcome.version
    assert version is not None
    return version


def _versions(folder: Path) -> list[Path]:
    """The files of all registers' versions, oldest first."""
    return sorted(path for path in folder.glob("ledger-*/registers/*/*/*") if path.is_file())


def _left_over(folder: Path) -> list[str]:
    """The content of the folders that are empty between calls."""
    found = [*folder.glob("ledger-*/tmp/*"), *folder.glob("ledger-*/trash/*")]
    return [str(path) for path in found]


# -- a crash at any step (real processes, SIGKILL) ------------------------------------------------


@pytest.mark.processes
@pytest.mark.parametrize("action", ["open", "create", "swap", "cross", "delete", "append", "drop"])
def test_a_crash_at_any_step_leaves_a_whole_ledger(fast_path: Path, action: str) -> None:
    """Do the same on copies of a ledger, each time in a child process that is killed.

    The child dies before step 1, before step 2, and so on, until an attempt gets through.
    """
    with _child(fast_path, "crash", action) as child:
        told, _ = child.communicate(timeout=100)
    reports = [json.loads(line) for line in told.splitlines()]
    assert child.returncode == 0
    assert len(reports) >= 4, "there are steps to crash at"
    assert [report["killed"] for report in reports] == [True] * (len(reports) - 1) + [False]
    asyncio.run(_check_all(fast_path, action, len(reports)))


async def _check_all(tmp_path: Path, action: str, count: int) -> None:
    ids = json.loads((tmp_path / "before.json").read_text())
    for step in range(count):
        folder = tmp_path / f"step-{step}"
        async with FileLedger(folder) as ledger:
            if action != "open":
                assert ledger.ledger_id == ids["ledger_id"]
            await _check(ledger, action, ids, finished=step == count - 1)
            # Whatever was left behind was swept, and nothing stands in the way of what comes next.
            outcome = await ledger.swap("next", None, b"next")
            assert isinstance(outcome, Swapped)
            now = await ledger.read("register")
            outcome = await ledger.swap("register", now.version if now else None, b"after")
            assert isinstance(outcome, Swapped)
            assert outcome.version not in ids["versions"]
            count_now = len(await ledger.records("log"))
            if action != "drop":
                assert await ledger.append("log", count_now, b"after") == Created()
            assert set(await ledger.keys()) == {"next", "register"} | set(ids["keys"])
        assert [path for path in _left_over(folder) if "/tmp/" not in path] == []


async def _check(ledger: FileLedger, action: str, ids: dict[str, Any], finished: bool) -> None:
    """The register has its value from before, or the one that was being written."""
    now = await ledger.read("register")
    value = now.value if now else None
    before = None if action in ("open", "create") else b"before"
    after = {"create": b"new", "swap": b"new", "cross": b"new", "delete": None}.get(action, before)
    assert value == after or (value == before and not finished)
    assert await ledger.keys() == tuple(sorted([*ids["keys"], *(["register"] if now else [])]))
    records = [value for _, value in await ledger.records("log")]
    if action == "append":
        assert records == [b"0", b"1", b"new"] or (records == [b"0", b"1"] and not finished)
    elif action == "drop":
        assert records == [] or (records == [b"0", b"1"] and not finished)


# -- frozen writers -----------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.parametrize("others", [1, SEGMENT, 5 * SEGMENT])
@pytest.mark.parametrize("step", ["create", "link"])
def test_a_writer_that_was_stopped_and_thaws_gets_a_conflict(folder, others, step) -> None:
    async def prepare() -> int:
        async with FileLedger(folder) as ledger:
            return await _swap_on(ledger, "run", 3)

    async def go_on(version: int) -> None:
        async with FileLedger(folder) as ledger:
            await _swap_on(ledger, "run", others, version)

    async def check(told: str) -> None:
        async with FileLedger(folder) as ledger:
            now = await ledger.read("run")
            assert now is not None
            assert now.value == b"%d" % (others - 1)
            assert json.loads(told) == ["Conflict", now.version]
            assert await ledger.swap("run", now.version, b"next") == Swapped(now.version + 1)

    version = asyncio.run(prepare())
    with _child(folder, "freeze", str(version), step) as child:
        _wait_until_stopped(child)
        asyncio.run(go_on(version))
        child.send_signal(signal.SIGCONT)
        told, _ = child.communicate(timeout=30)
    asyncio.run(check(told))


@pytest.mark.processes
def test_a_writer_that_thaws_after_its_register_was_made_anew_gets_a_conflict(folder) -> None:
    async def prepare() -> int:
        async with FileLedger(folder) as ledger:
            return await _swap_on(ledger, "run", 3)

    async def make_anew() -> Versioned:
        async with FileLedger(folder) as ledger:
            await ledger.delete("run")
            await _swap_on(ledger, "run", 3)
            now = await ledger.read("run")
            assert now is not None
            return now

    async def check(now: Versioned, told: str) -> None:
        assert json.loads(told) == ["Conflict", now.version]
        async with FileLedger(folder) as ledger:
            assert await ledger.read("run") == now

    version = asyncio.run(prepare())
    with _child(folder, "freeze", str(version), "link") as child:
        _wait_until_stopped(child)
        now = asyncio.run(make_anew())
        child.send_signal(signal.SIGCONT)
        told, _ = child.communicate(timeout=30)
    asyncio.run(check(now, told))


def test_who_was_frozen_before_making_a_folder_and_who_before_linking_into_it(folder) -> None:
    """The only case in which a link succeeds and must not count: two processes are frozen."""

    async def body() -> None:
        async with FileLedger(folder) as ledger, FileLedger(folder, timeout_s=60) as late:
            version = await _swap_on(ledger, "run", SEGMENT)
            last_of_segment = version
            gate, reached = threading.Event(), threading.Event()

            def freeze(step: str) -> None:
                if step == f"link {last_of_segment + 1:016x}":
                    reached.set()
                    assert gate.wait(30)

            late._disk._step = freeze
            swap = asyncio.ensure_future(late.swap("run", last_of_segment, b"late"))
            await asyncio.to_thread(reached.wait, 30)
            await _swap_on(ledger, "run", 4 * SEGMENT, version)
            now = await ledger.read("run")
            chain = _versions(folder)[0].parent.parent
            gone = chain / f"{last_of_segment + 1:016x}"
            assert not gone.exists()
            gone.mkdir()  # the other frozen process, which would have made it long ago
            gate.set()
            assert await swap == Conflict(now)
            assert await ledger.read("run") == now
            assert now is not None
            await _swap_on(ledger, "run", 2 * SEGMENT, now.version)
            assert not gone.exists()

    asyncio.run(body())


def _chain(folder: Path) -> tuple[Chain, Callable[[int], Advance]]:
    """A chain with one full segment, and a function that adds the version after another."""
    disk, trash = Disk(), folder / "trash"
    trash.mkdir(parents=True)
    chain = Chain(folder / "chain", trash, disk)
    sealed = record_format.seal(b"value", record_format.new_nonce())
    chain.begin(SEGMENT, sealed)

    def advance(expected: int) -> Advance:
        temporary = folder / f"temporary-{expected}-{os.urandom(4).hex()}"
        disk.write(temporary, sealed)
        return chain.advance(expected, temporary)

    for number in range(SEGMENT, 2 * SEGMENT - 1):
        assert advance(number) is Advance.DONE
    return chain, advance


def _while_listed(
    monkeypatch: pytest.MonkeyPatch, segment: int, then: Callable[[], object], seen: int
) -> None:
    """While this segment is listed, it is moved away and emptied, after `seen` names."""

    def listing(folder: Path) -> list[str]:
        if folder.name == f"{segment:016x}":
            found = sorted(names(folder))[:seen]
            monkeypatch.setattr(file_chain, "names", names)
            then()
            return found
        return names(folder)

    monkeypatch.setattr(file_chain, "names", listing)


def test_a_segment_that_is_emptied_while_a_reader_lists_it(folder, monkeypatch) -> None:
    for seen in range(SEGMENT):
        chain, advance = _chain(folder / str(seen))
        _while_listed(monkeypatch, SEGMENT, functools.partial(advance, 2 * SEGMENT - 1), seen)
        assert chain.number() == 2 * SEGMENT


def test_a_segment_that_is_emptied_while_its_writer_looks_whether_it_counts(
    folder, monkeypatch
) -> None:
    """Other processes have written after its version, so its outcome must not be a conflict."""
    for seen in range(SEGMENT):
        chain, advance = _chain(folder / str(seen))
        last = 2 * SEGMENT - 1
        advance(last)
        (folder / str(seen) / "chain" / f"{SEGMENT:016x}").mkdir()
        gone = folder / str(seen) / "chain" / f"{SEGMENT:016x}"
        _while_listed(monkeypatch, SEGMENT, gone.rmdir, seen)
        assert chain._is_current(last) is None


def _wait_until_stopped(child: subprocess.Popen[str]) -> None:
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), status


# -- many processes -----------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.parametrize("where", ["tmp_path", "fast_path"])
def test_processes_that_write_at_once_lose_nothing(request, where) -> None:
    """Four processes add marks to one register, and create records of one log. No mark is lost,

    none is there twice, and the log holds what each was told that it had created.
    """
    folder = request.getfixturevalue(where) / "ledger"
    writers, rounds = 4, 15
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(_child(folder, "write", str(writer), str(rounds)))
            for writer in range(writers)
        ]
        told = [json.loads(child.communicate(timeout=100)[0]) for child in children]

    async def body() -> None:
        async with FileLedger(folder) as ledger:
            now = await ledger.read("list")
            assert now is not None
            marks = now.value.decode().split()
            assert sorted(marks) == sorted(
                f"{writer}.{number}" for writer in range(writers) for number in range(rounds)
            )
            for writer in range(writers):
                mine = [mark for mark in marks if mark.startswith(f"{writer}.")]
                assert mine == [f"{writer}.{number}" for number in range(rounds)]
            records = [value.decode() for _, value in await ledger.records("log")]
            assert len(records) == writers * rounds
            for writer, indexes in enumerate(told):
                assert [records[index] for index in indexes] == [
                    f"{writer}.{number}" for number in range(rounds)
                ]
        # Old versions are swept as they go: a register keeps a segment, or two.
        for chain in folder.glob("ledger-*/registers/*"):
            assert len([path for path in chain.rglob("*") if path.is_file()]) <= 2 * SEGMENT
        assert _left_over(folder) == []

    asyncio.run(body())


# -- what is damaged ------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "other"])
def test_a_damaged_version_is_refused_and_named(folder, damage) -> None:
    async def body() -> None:
        async with FileLedger(folder) as ledger:
            version = await _swap_on(ledger, "run", 3)
            newest = _versions(folder)[-1]
            whole = newest.read_bytes()
            flipped = whole[:-1] + bytes((whole[-1] ^ 1,))
            newest.write_bytes(
                {"cut": whole[:-1], "empty": b"", "flip": flipped, "other": b"x" * 99}[damage]
            )
            with pytest.raises(LedgerCorruptError, match=newest.name) as told:
                await ledger.read("run")
            assert "backup" in told.value.hint
            outcome = await ledger.swap("run", None, b"over it")
            assert isinstance(outcome, Unknown)
            assert isinstance(outcome.error, LedgerCorruptError)
            # Refused, and not emptied: the bytes are as they were, and come to life when mended.
            newest.write_bytes(whole)
            assert await ledger.read("run") == Versioned(b"2", version)

    asyncio.run(body())


def test_what_was_half_written_when_a_process_died_is_not_read(folder) -> None:
    async def body() -> None:
        async with FileLedger(folder) as ledger:
            version = await _swap_on(ledger, "run", 2)
            (next(folder.glob("ledger-*/tmp")) / "0123").write_bytes(b"RLP")
        async with FileLedger(folder) as ledger:
            assert await ledger.read("run") == Versioned(b"1", version)

    asyncio.run(body())


def test_a_record_that_is_missing_or_damaged_is_named(folder) -> None:
    async def body() -> None:
        async with FileLedger(folder) as ledger:
            for index in range(3):
                assert await ledger.append("log", index, b"%d" % index) == Created()
            files = sorted(folder.glob("ledger-*/logs/*/*"))
            whole = files[1].read_bytes()
            files[1].write_bytes(whole[:-1])
            with pytest.raises(LedgerCorruptError, match=files[1].name):
                await ledger.records("log")
            files[1].unlink()
            with pytest.raises(LedgerCorruptError, match="record 1"):
                await ledger.records("log")
            files[1].write_bytes(whole)
            assert len(await ledger.records("log")) == 3

    asyncio.run(body())


@pytest.mark.parametrize(("format", "by"), [(1, "an older"), (record_format.FORMAT + 1, "a newer")])
def test_another_format_is_refused(folder, format: int, by: str) -> None:
    async def body() -> None:
        other = record_format.seal(b"value", record_format.new_nonce(), format=format)
        async with FileLedger(folder) as ledger:
            await _swap_on(ledger, "run", 1)
            _versions(folder)[-1].write_bytes(other)
            with pytest.raises(LedgerFormatError, match=f"format {format} by {by}") as told:
                await ledger.read("run")
            assert "ledger of its own" in told.value.hint
        (folder / file_folder.MARKER).write_bytes(other)
        with pytest.raises(LedgerFormatError):
            await FileLedger(folder).open()

    asyncio.run(body())


def test_a_ledger_that_lost_its_marker_or_a_part_is_not_begun_anew(folder) -> None:
    async def body() -> None:
        async with FileLedger(folder) as ledger:
            await _swap_on(ledger, "run", 1)
        marker = (folder / file_folder.MARKER).read_bytes()
        (folder / file_folder.MARKER).unlink()
        with pytest.raises(LedgerCorruptError, match="marker"):
            await FileLedger(folder).open()
        (folder / file_folder.MARKER).write_bytes(marker[:-1])
        with pytest.raises(LedgerCorruptError):
            await FileLedger(folder).open()
        (folder / file_folder.MARKER).write_bytes(marker)
        place = next(folder.glob("ledger-*"))
        (place / "index").rename(place / "elsewhere")
        with pytest.raises(LedgerCorruptError, match="index"):
            await FileLedger(folder).open()
        (place / "elsewhere").rename(place / "index")
        async with FileLedger(folder) as ledger:
            assert await ledger.keys() == ("run",)

    asyncio.run(body())


def test_a_ledger_that_was_replaced_takes_no_write_from_before(folder) -> None:
    async def body() -> None:
        async with FileLedger(folder) as old:
            version = await _swap_on(old, "run", 1)
            folder.rename(folder.with_name("elsewhere"))
            with pytest.raises(LedgerUnreachableError):
                await old.read("run")
            async with FileLedger(folder) as new:
                assert new.ledger_id != old.ledger_id
                outcome = await old.swap("run", version, b"late")
                assert isinstance(outcome, Unknown)
                assert isinstance(outcome.error, LedgerForeignError)
                assert await new.keys() == ()

    asyncio.run(body())


# -- folders that will not do ---------------------------------------------------------------------


def _refused(folder: Path, kind: type[LedgerError], match: str, **options: Any) -> None:
    with pytest.raises(kind, match=match) as told:
        asyncio.run(FileLedger(folder, **options).open())
    assert told.value.hint


def test_a_folder_that_holds_something_else(folder) -> None:
    folder.mkdir()
    (folder / "data.csv").write_text("theirs")
    _refused(folder, LedgerForeignError, "data.csv")
    assert [path.name for path in folder.iterdir()] == ["data.csv"]


def test_a_file_in_the_markers_place(folder) -> None:
    folder.mkdir()
    (folder / file_folder.MARKER).write_text("theirs")
    _refused(folder, LedgerForeignError, file_folder.MARKER)


def test_a_file_instead_of_a_folder(folder) -> None:
    folder.write_text("theirs")
    _refused(folder, LedgerForeignError, "is not a folder")


def test_a_folder_whose_parent_is_missing_is_not_made(folder) -> None:
    _refused(folder / "deeper", LedgerUnreachableError, "no folder")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, LedgerFullError),
        (errno.EDQUOT, LedgerFullError),
        (errno.EROFS, LedgerAccessError),
        (errno.EACCES, LedgerAccessError),
        (errno.EIO, LedgerUnreachableError),
    ],
)
def test_a_disk_that_refuses_a_write_loses_nothing(folder, number, kind) -> None:
    """After a crash at every step of a swap, the register is as before, or as after the swap."""
    failing: list[Callable[[], bool]] = [lambda: False]

    def step(_name: str) -> None:
        if failing[0]():
            raise OSError(number, os.strerror(number))

    async def body() -> None:
        async with FileLedger(folder, on_step=step) as ledger:
            version = await _swap_on(ledger, "run", 1)
            for at in range(4):
                countdown = [at]

                def now(countdown: list[int] = countdown) -> bool:
                    countdown[0] -= 1
                    return countdown[0] < 0

                failing[0] = now
                outcome = await ledger.swap("run", version, b"new")
                failing[0] = lambda: False
                assert isinstance(outcome, Unknown)
                assert isinstance(outcome.error, kind)
                assert outcome.error.hint
                assert await ledger.read("run") == Versioned(b"0", version)
            assert await ledger.swap("run", version, b"new") == Swapped(version + 1)

    asyncio.run(body())


@pytest.mark.parametrize(
    ("call", "replacement", "told"),
    [
        ("link", OSError(errno.EPERM, "Operation not permitted"), "no hard links"),
        ("link", OSError(errno.EOPNOTSUPP, "Not supported"), "no hard links"),
        ("fsync", OSError(errno.EINVAL, "Invalid argument"), "fsync"),
    ],
)
def test_a_disk_without_the_guarantees_is_unfit(
    folder, monkeypatch, call, replacement, told
) -> None:
    def refuse(*_arguments: Any) -> None:
        raise replacement

    monkeypatch.setattr(os, call, refuse)
    _refused(folder, LedgerUnfitError, told)


def test_a_disk_whose_links_are_copies_is_unfit(folder, monkeypatch) -> None:
    def copy(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(os, "link", copy)
    _refused(folder, LedgerUnfitError, "two names")


def test_a_share_whose_client_does_not_ask_for_news_is_unfit(folder, monkeypatch) -> None:
    monkeypatch.setattr(file_probe, "_mount_options", lambda _root: ["rw", "nocto"])
    _refused(folder, LedgerUnfitError, "nocto")


@pytest.mark.processes
@pytest.mark.parametrize(
    ("mount", "kind"),
    [("size=256k", "LedgerFullError"), ("ro", "LedgerAccessError"), ("size=4m", "full later")],
)
def test_a_real_disk_that_is_full_or_read_only(tmp_path, mount, kind) -> None:
    """In its own mount namespace, where the system allows one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o "$1" none "$2" || exit 77; exec "$3" "$4" "$2/ledger" real "$5"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh"]
    command += [mount, str(disk), sys.executable, str(CHILD), kind]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": str(SRC)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == kind


def test_a_disk_that_hangs_makes_an_outcome_unknown_and_blocks_nobody(folder) -> None:
    async def body() -> None:
        gate, reached = threading.Event(), threading.Event()
        hanging = [False]

        def hang(_step: str) -> None:
            if hanging[0]:
                reached.set()
                gate.wait(30)

        async with FileLedger(folder, on_step=hang) as ledger:
            version = (await ledger.swap("run", None, b"0")).version  # type: ignore[union-attr]
            hanging[0] = True
            ledger._timeout_s = 0.2
            outcome = await ledger.swap("run", version, b"1")
            assert isinstance(outcome, Unknown)
            assert isinstance(outcome.error, LedgerUnreachableError)
            assert await asyncio.to_thread(reached.wait, 30)
            ledger._timeout_s = 30
            hanging[0] = False
            # It was unknown: once the disk answers again, the write is done after all.
            gate.set()
            changed = await ledger.changed("run", version, 30)
            assert changed is not None
            assert changed.current == Versioned(b"1", version + 1)

    asyncio.run(body())


# -- NFS: the answer to a link was lost -----------------------------------------------------------


def test_a_link_that_was_done_and_then_answered_with_taken_counts(folder, monkeypatch) -> None:
    real = os.link

    def lost(source: Path, target: Path) -> None:
        real(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    async def body() -> None:
        async with FileLedger(folder) as ledger:
            version = await _swap_on(ledger, "run", 1)
            monkeypatch.setattr(os, "link", lost)
            assert await ledger.swap("run", version, b"1") == Swapped(version + 1)
            assert await ledger.append("log", 0, b"0") == Created()
            assert await ledger.append("log", 1, b"1") == Created()
            monkeypatch.setattr(os, "link", real)
            assert await ledger.append("log", 1, b"2") == Exists(b"1")
            assert await ledger.append("log", 3, b"3") == Gap()

    asyncio.run(body())


# -- who else is on the machine ------------------------------------------------------------------


def test_what_is_made_is_for_this_user_alone(folder) -> None:
    """A lease may have a token, and with the umask of most machines all users can read files."""

    async def main() -> None:
        async with FileLedger(str(folder)) as ledger:
            await _swap_on(ledger, "key", 3)
            assert isinstance(await ledger.append("log", 0, b"x"), Created)

    before = os.umask(0o022)
    try:
        asyncio.run(main())
    finally:
        os.umask(before)
    for path in (folder, *folder.rglob("*")):
        wanted = 0o700 if path.is_dir() else 0o600
        assert path.stat().st_mode & 0o777 == wanted, path


@pytest.mark.parametrize(
    ("mode", "may"),
    [(0o755, True), (0o700, True), (0o1777, True), (0o777, False), (0o757, False), (0o775, False)],
)
def test_a_folder_that_others_may_write_into_is_refused(
    folder, monkeypatch: pytest.MonkeyPatch, mode: int, may: bool
) -> None:
    monkeypatch.setattr(file_folder, "_is_own_group", lambda group: False)
    folder.mkdir()
    folder.chmod(mode)
    if may:
        asyncio.run(_opened(folder))
        return
    with pytest.raises(LedgerAccessError, match=f"mode {mode:o}") as caught:
        asyncio.run(_opened(folder))
    assert "chmod go-w" in caught.value.hint


def test_a_group_of_this_user_alone_is_no_other(folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_folder, "_is_own_group", lambda group: True)
    folder.mkdir()
    folder.chmod(0o775)
    asyncio.run(_opened(folder))


def test_a_ledger_that_was_opened_to_others_is_refused(folder) -> None:
    asyncio.run(_opened(folder))
    (place,) = folder.glob("ledger-*")
    place.chmod(0o777)
    with pytest.raises(LedgerAccessError, match="other users may write"):
        asyncio.run(_opened(folder))


def test_a_folder_of_another_user_is_refused(folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(mode=0o755)
    owner = folder.stat().st_uid
    if owner == 0:
        os.chown(folder, 12_345, 12_345)
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    with pytest.raises(LedgerAccessError, match="belongs to another user"):
        file_folder.open_folder(folder, Disk())


async def _opened(folder: Path) -> None:
    async with FileLedger(str(folder)):
        pass
