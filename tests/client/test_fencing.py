"""The fence of a file: only the newest round writes it (R13)."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rallypoint import errors
from rallypoint.client import fencing
from rallypoint.client.fencing import Fence, FencingToken, Writer


def fence(path: Path, term: int, number: int, run: str = "job", ledger: str = "L") -> Fence:
    return Fence(path, Writer(FencingToken(term, number), run, ledger, "node-1"))


def write(of: Fence, content: bytes, then: Callable[[], object] = lambda: None) -> None:
    """Write, and do something else before the block ends."""
    with of.writing() as file:
        file.write(content)
        then()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


def parts(path: Path) -> list[str]:
    """What lies about beside the file and the owner's note."""
    folder = path.with_name("model.pt.fence")
    return sorted(each.name for each in folder.rglob("*") if each.is_file() and each.suffix)


def test_tokens_grow_with_terms_and_rounds() -> None:
    assert FencingToken(1, 1) < FencingToken(1, 2) < FencingToken(2, 1) < FencingToken(10, 1)
    assert str(FencingToken(1, 2)) == "round 2 of term 1"


def test_a_round_writes_again_and_again_and_a_later_one_after_it(path: Path) -> None:
    for content, number in ((b"a", 1), (b"b", 1), (b"c", 2)):
        write(fence(path, 1, number), content)
        assert path.read_bytes() == content
    assert parts(path) == []


@pytest.mark.parametrize("late", [(1, 2), (2, 1)], ids=["round", "term"])
def test_an_earlier_round_is_refused_and_learns_who_owns_the_file(
    path: Path, late: tuple[int, int]
) -> None:
    write(fence(path, 2, 2), b"new")
    with pytest.raises(errors.FencedError) as caught:
        write(fence(path, *late), b"old")
    assert path.read_bytes() == b"new"
    error = caught.value
    assert (error.path, error.owner) == (str(path.resolve()), FencingToken(2, 2))
    assert f"round {late[1]} of term {late[0]} of run 'job' must not write" in error.message
    assert "round 2 of term 2 owns it" in error.message


def test_a_claim_alone_keeps_earlier_rounds_out(path: Path) -> None:
    write(fence(path, 1, 1), b"old")
    fence(path, 1, 2).claim()
    with pytest.raises(errors.FencedError):
        write(fence(path, 1, 1), b"late")
    assert path.read_bytes() == b"old"


def test_a_write_that_is_under_way_when_the_file_is_claimed_is_refused(path: Path) -> None:
    write(fence(path, 1, 1), b"old")
    with pytest.raises(errors.FencedError, match="round 2 of term 1 owns it"):
        write(fence(path, 1, 1), b"late", fence(path, 1, 2).claim)
    assert path.read_bytes() == b"old"
    assert parts(path) == []


def test_an_error_in_the_block_leaves_the_file_as_it_was(path: Path) -> None:
    write(fence(path, 1, 1), b"old")
    with pytest.raises(ZeroDivisionError):
        write(fence(path, 1, 1), b"half", lambda: 1 / 0)
    assert path.read_bytes() == b"old"
    assert parts(path) == []


def test_what_a_killed_writer_left_is_removed_by_the_next_round(path: Path) -> None:
    own = fence(path, 1, 1).claim()
    (own / "0123.pt").write_bytes(b"half")
    fence(path, 1, 2).claim()
    assert parts(path) == []


def test_a_library_may_replace_the_file_that_it_was_given(path: Path) -> None:
    with fence(path, 1, 1).writing() as file:
        assert Path(file.name).suffix == ".pt"
        other = Path(f"{file.name}.tmp")
        other.write_bytes(b"by the library")
        other.replace(file.name)
    assert path.read_bytes() == b"by the library"


@pytest.mark.parametrize("other", [("job-43", "L"), ("job", "M")], ids=["run", "ledger"])
def test_a_run_that_is_new_takes_the_file_over_for_good(path: Path, other: tuple[str, str]) -> None:
    write(fence(path, 7, 9), b"old")
    write(fence(path, 1, 1, *other), b"new")
    for late in (fence(path, 7, 9), fence(path, 8, 1)):
        with pytest.raises(
            errors.FencedError, match=f"run '{other[0]}', round 1 of term 1"
        ) as told:
            write(late, b"late")
        assert ".fence" in told.value.hint
    write(fence(path, 1, 2, *other), b"newer")
    assert path.read_bytes() == b"newer"


def test_only_so_many_former_runs_are_remembered(path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(fencing, "ENDED_KEPT", 3)
    for number in range(8):
        fence(path, 1, 1, f"job-{number}").claim()
    folder = path.with_name("model.pt.fence")
    assert len([each for each in folder.iterdir() if each.name.startswith("ended")]) <= 4
    with pytest.raises(errors.FencedError):
        fence(path, 1, 2, "job-6").claim()


def test_two_names_of_one_file_have_one_fence(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to(path)
    write(fence(link, 1, 2), b"new")
    assert (path.read_bytes(), link.is_symlink()) == (b"new", True)
    with pytest.raises(errors.FencedError):
        write(fence(path, 1, 1), b"old")


def test_a_folder_that_is_missing_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(fence(tmp_path / "none" / "model.pt", 1, 1), b"x")


def test_a_rename_whose_answer_was_lost_counts(path: Path, monkeypatch: Any) -> None:
    """NFS repeats the request, and the repeat finds no part any more."""
    replace = Path.replace

    def twice(part: Path, target: Path) -> Path:
        replace(part, target)
        return replace(part, target)

    monkeypatch.setattr(Path, "replace", twice)
    write(fence(path, 1, 1), b"there")
    assert path.read_bytes() == b"there"


# -- every order of the steps of two rounds --------------------------------------------------------


class Stopped(BaseException):
    """A process that was stopped before a step, and goes on later."""


STEPS = ("mkdir", "iterdir", "touch", "rmdir", "unlink", "write_text", "open", "replace", "stat")


def between(monkeypatch: pytest.MonkeyPatch, at: int, do: Callable[[], None]) -> list[str]:
    """Before step `at` of the file system, `do` something. Returns the steps so far."""
    taken: list[str] = []
    for name in STEPS:
        original = getattr(Path, name)

        def step(
            self: Path, *args: Any, _name: str = name, _do: Any = original, **more: Any
        ) -> Any:
            if len(taken) == at:
                taken.append("other")
                do()
            taken.append(_name)
            return _do(self, *args, **more)

        monkeypatch.setattr(Path, name, step)
    return taken


@pytest.mark.parametrize("had_written", [True, False], ids=["second write", "first write"])
@pytest.mark.parametrize("other", [("job", "L"), ("job-2", "L")], ids=["round", "run"])
def test_an_earlier_write_never_replaces_what_a_later_round_has_read(
    tmp_path: Path, other: tuple[str, str], had_written: bool
) -> None:
    """The later round claims and reads the file between any two steps of an earlier one's write."""
    at = outcomes = 0
    while True:
        path = tmp_path / f"model-{at}"
        if had_written:
            write(fence(path, 1, 1), b"before")
        elif at == 0:
            path.write_bytes(b"")
        seen: list[bytes | None] = []

        def claims(path: Path = path, seen: list[bytes | None] = seen) -> None:
            fence(path, 1, 2, *other).claim()
            seen.append(path.read_bytes() if path.exists() else None)

        with pytest.MonkeyPatch.context() as patch:
            taken = between(patch, at, claims)
            try:
                write(fence(path, 1, 1), b"late")
                was_written = True
            except errors.FencedError:
                was_written = False
        if not seen:
            assert len(taken) <= at
            break
        now = path.read_bytes() if path.exists() else None
        owner = max(
            each.name for each in Path(f"{path.resolve()}.fence").iterdir() if each.is_dir()
        )
        if owner.endswith("-1-2"):
            assert now == seen[0], taken
            assert was_written == (now == b"late"), taken
        outcomes |= 1 << was_written
        at += 1
    assert at > 6
    assert outcomes == 3


def test_a_later_round_wins_between_any_two_steps_of_the_earlier_ones_claim(tmp_path: Path) -> None:
    """And the other way round: the earlier one claims between any two steps of the later one's."""
    at = 0
    while True:
        path = tmp_path / f"model-{at}"
        has_claimed: list[bool] = []

        def claims(path: Path = path, has_claimed: list[bool] = has_claimed) -> None:
            try:
                write(fence(path, 1, 1), b"old")
                has_claimed.append(True)
            except errors.FencedError:
                has_claimed.append(False)

        with pytest.MonkeyPatch.context() as patch:
            taken = between(patch, at, claims)
            write(fence(path, 1, 2), b"new")
        assert path.read_bytes() == b"new", taken
        if not has_claimed:
            break
        with pytest.raises(errors.FencedError):
            write(fence(path, 1, 1), b"late")
        at += 1
    assert at > 6


def test_a_stale_handle_of_nfs_is_a_folder_that_is_gone(path: Path, monkeypatch: Any) -> None:
    write(fence(path, 1, 1), b"old")

    def later() -> None:
        fence(path, 1, 2).claim()

        def stale(descriptor: int) -> None:
            monkeypatch.undo()
            raise OSError(errno.ESTALE, "Stale file handle")

        monkeypatch.setattr(os, "fsync", stale)

    with pytest.raises(errors.FencedError):
        write(fence(path, 1, 1), b"late", later)
    assert path.read_bytes() == b"old"


def test_a_folder_that_a_library_left_is_removed_too(path: Path) -> None:
    own = fence(path, 1, 1).claim()
    (own / "0123.pt.tmp" / "shard").mkdir(parents=True)
    (own / "0123.pt.tmp" / "shard" / "0.bin").write_bytes(b"half")
    write(fence(path, 1, 2), b"new")
    assert path.read_bytes() == b"new"
    assert len(list(path.with_name("model.pt.fence").iterdir())) == 1


def test_a_lost_answer_is_not_taken_from_another_rounds_file(path: Path, monkeypatch: Any) -> None:
    """The system may give the number of a removed file to the next one."""
    monkeypatch.setattr(os.path, "samestat", lambda one, other: True)
    replace = Path.replace

    def late(part: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", replace)
        write(fence(path, 1, 2), b"longer, of another round")
        return replace(part, target)

    monkeypatch.setattr(Path, "replace", late)
    with pytest.raises(errors.FencedError):
        write(fence(path, 1, 1), b"old")


def test_two_ranks_of_a_run_and_another_run_begin_at_once(tmp_path: Path) -> None:
    """A rank is fenced by the other run, or it writes: it never sees its own run as the other."""
    at = 0
    while True:
        path = tmp_path / f"model-{at}"

        def others(path: Path = path) -> None:
            fence(path, 1, 1, run="other").claim()
            with contextlib.suppress(errors.FencedError):
                fence(path, 1, 1).claim()

        with pytest.MonkeyPatch.context() as patch:
            taken = between(patch, at, others)
            refused = ""
            try:
                write(fence(path, 1, 1), b"first")
            except errors.FencedError as error:
                refused = str(error)
        assert "run 'other'" in refused or path.read_bytes() == b"first", (taken, refused)
        if "other" not in taken:
            break
        at += 1
    assert at > 6
