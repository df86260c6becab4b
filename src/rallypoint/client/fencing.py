"""Files that only the newest round may write: checkpoints, when rounds overlap in time (R13).

A node that cannot hear the others may still work in a round that is over for them. Its worker must
not write over the checkpoint of the next round. Each file has a *fence* beside it, a folder:

    model.pt
    model.pt.fence/
        00000001-<run>-3-7/     the round that owns it: term 3, round 7 of that run
            owner                which run and node that is, for people
            <name>.pt            what it writes at present, until that is renamed to model.pt
        ended-00000001-<run>    a run that owned the file, and does not any more

A round *claims* the file: it makes its folder, looks whether a later one is there, and removes the
folders of earlier ones with all that is in them. A write goes to a file in the round's own folder,
and is then renamed to its name. Both rounds make their folder before they look, so at least one of
them sees the other: the earlier one gives up, or what it has written is removed before its name is
changed, and the rename fails. There is no lock, which a frozen process could hold for ever.

Tokens of one run grow. Those of two runs cannot be compared, nor those of two ledgers: a run in the
memory of its coordinator begins again with term 1. So a run that is new to the file takes it over
from the one before, which cannot write it any more.

The file system must have renames and new folders in one step, as POSIX and NFS do. On NFS the
folders must be looked at afresh when they are opened, as without the option `nocto`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from rallypoint import errors, runtime

FENCE: Final = ".fence"
"""What the name of a file's fence has after the name of the file."""
OWNER: Final = "owner"
ENDED_KEPT: Final = 64
"""How many runs that owned the file are remembered."""
_TRIES: Final = 100
"""How often a claim begins again, because another process changed the fence meanwhile."""
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
_FOLDER: Final = re.compile(r"(\d{8})-([0-9a-f]{16})-(\d{1,19})-(\d{1,19})\Z")
_ENDED: Final = re.compile(r"ended-(\d{8})-([0-9a-f]{16})\Z")


class FencingToken(msgspec.Struct, frozen=True, order=True):
    """(term, round) of a world. It grows with each round of a run (R13), so tokens are compared.

    Give it to a system outside that can refuse writes with a smaller one.
    """

    term: int
    round: int

    def __str__(self) -> str:
        return f"round {self.round} of term {self.term}"


class Writer(msgspec.Struct, frozen=True):
    """Who writes: the round, and where it is from."""

    token: FencingToken
    run_id: str
    ledger_id: str
    node: str

    @property
    def run_key(self) -> str:
        """The run in the name of a folder: its tokens can be compared only with its own."""
        named = f"{self.ledger_id}\0{self.run_id}".encode("utf-8", "surrogateescape")
        return hashlib.sha256(named).hexdigest()[:16]


class _Place(msgspec.Struct, frozen=True, order=True):
    """The folder of a round. Later ones are greater.

    `generation`: which run this is among those that have owned the file.
    """

    generation: int
    run_key: str
    term: int
    round: int

    @property
    def name(self) -> str:
        return f"{self.generation:08d}-{self.run_key}-{self.term}-{self.round}"


class Fence:
    """The fence of one file, for one writer. Its calls block, and any thread may make them."""

    def __init__(self, path: str | os.PathLike[str], writer: Writer) -> None:
        # Links are followed first: two names of one file must have one fence.
        self.path = Path(os.path.realpath(path))
        self.folder = self.path.with_name(self.path.name + FENCE)
        self._writer = writer

    def claim(self) -> Path:
        """Own the file: no earlier round can write it from now on. Returns the round's folder.

        Raises FencedError if a later round owns it, and OSError.
        """
        for _ in range(_TRIES):
            try:
                return self._claim()
            except OSError as error:
                # Another claim has removed a folder meanwhile: look again who owns the file.
                if error.errno not in _GONE or not self.path.parent.is_dir():
                    raise
        raise TimeoutError(errno.ETIMEDOUT, "the fence of the file changes all the time", self._at)

    @contextlib.contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """Write the file as a whole: it is on the disk, with its name, when the block has ended.

        An error in the block leaves the file as it was. Raises FencedError, and OSError.
        """
        own = self.claim()
        part = own / f"{runtime.token_hex(8)}{self.path.suffix}"
        try:
            try:
                file = part.open("xb")
            except OSError as error:
                raise self._refused(error) from error
            with file:
                yield file
            self._finish(part)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    # -- the claim ---------------------------------------------------------------------------------

    def _claim(self) -> Path:
        is_new = _make(self.folder)
        mine = self._place(_names(self.folder))
        own = self.folder / mine.name
        if _make(own):
            self._sign(own)
        # R13: after the own folder was made. Of two rounds that claim at once, one sees the other.
        names = _names(self.folder)
        if self._place(names) != mine:
            # Another rank of this run began at the same time, when another run was here, too.
            return self._claim()
        earlier = [each for each in _places(names) if each < mine]
        for each in {each.run_key: each for each in earlier}.values():
            # R13: before its folder is removed, so that this run does not take the file over again.
            if each.run_key != mine.run_key:
                _touch(self.folder / f"ended-{each.generation:08d}-{each.run_key}")
        _sync(self.folder)
        if is_new:
            _sync(self.folder.parent)
        for each in earlier:
            # R13: what an earlier round is writing is removed: its rename fails.
            _remove(self.folder / each.name)
        self._forget_old(names)
        return own

    def _place(self, names: list[str]) -> _Place:
        """The folder of this round. Raises FencedError if the file belongs to a later one."""
        places, ended = _places(names), _ended(names)
        token, key = self._writer.token, self._writer.run_key
        last = max(places, default=None)
        # R13: a run that has lost the file to another one does not get it back.
        if any(run_key == key for _, run_key in ended):
            raise self._fenced(last)
        # R13: the greatest of a run counts, if ranks of it began before and after another run.
        generations = {each.run_key: each.generation for each in sorted(places)}
        highest = max([*generations.values(), *(generation for generation, _ in ended)], default=0)
        generation = generations.get(key, highest + 1)
        mine = _Place(generation, key, token.term, token.round)
        # R13: a later round owns the file.
        if last is not None and last > mine:
            raise self._fenced(last)
        return mine

    def _sign(self, own: Path) -> None:
        """Say in the folder whose it is. For people; no decision depends on it."""
        writer = self._writer
        said = {"run": writer.run_id, "node": writer.node, "ledger": writer.ledger_id}
        (own / OWNER).write_text(json.dumps(said), encoding="utf-8")

    def _forget_old(self, names: list[str]) -> None:
        for generation, run_key in sorted(_ended(names))[:-ENDED_KEPT]:
            with contextlib.suppress(OSError):
                (self.folder / f"ended-{generation:08d}-{run_key}").unlink()

    # -- the write ---------------------------------------------------------------------------------

    def _finish(self, part: Path) -> None:
        """Force the part to the disk, and give it its name in one step."""
        try:
            # By its name: a library may have replaced the file that it was given.
            _sync(part)
            written = part.stat()
        except OSError as error:
            raise self._refused(error) from error
        try:
            # R13: fails if a later round has claimed the file, as the part is not there any more.
            part.replace(self.path)
        except OSError as error:
            # NFS repeats a request whose answer was lost, and then reports that the part is gone.
            if not self._has(written):
                raise self._refused(error) from error
        _sync(self.path.parent)

    def _has(self, written: os.stat_result) -> bool:
        try:
            found = self.path.stat()
        except OSError:
            return False
        # The system may have given the number of the removed part to a later round's.
        is_equal = (found.st_size, found.st_mtime_ns) == (written.st_size, written.st_mtime_ns)
        return is_equal and os.path.samestat(found, written)

    def _refused(self, error: OSError) -> Exception:
        """The error of a write whose folder or part is gone: a later round has removed it."""
        if error.errno not in _GONE:
            return error
        try:
            self.claim()
        except errors.FencedError as fenced:
            return fenced
        except OSError as other:
            return other
        return error

    @property
    def _at(self) -> str:
        return str(self.path)

    def _fenced(self, last: _Place | None) -> errors.FencedError:
        writer = self._writer
        token = writer.token
        owner = None if last is None else FencingToken(last.term, last.round)
        said = self._signed(last)
        run = said.get("run")
        if last is not None and last.run_key == writer.run_key:
            who = str(owner)
            hint = "this worker's round is over, and a later one has begun: end this worker"
        else:
            who = f"{f'run {run!r}' if run else 'another run'}" + (f", {owner}," if owner else "")
            hint = (
                f"a later run writes the file now; if none is alive, remove {str(self.folder)!r} "
                "and start this run again"
            )
        return errors.FencedError(
            f"{token} of run {writer.run_id!r} must not write {self._at!r}: {who} owns it",
            hint=hint,
            path=self._at,
            token=token,
            owner=owner,
        )

    def _signed(self, place: _Place | None) -> dict[str, str]:
        if place is None:
            return {}
        try:
            said = json.loads((self.folder / place.name / OWNER).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) else {}


def _names(folder: Path) -> list[str]:
    """The names in a folder. To open it makes an NFS client ask the server for changes."""
    return [each.name for each in folder.iterdir()]


def _places(names: list[str]) -> list[_Place]:
    found = [match.groups() for match in map(_FOLDER.match, names) if match is not None]
    return [_Place(int(each[0]), each[1], int(each[2]), int(each[3])) for each in found]


def _ended(names: list[str]) -> list[tuple[int, str]]:
    found = filter(None, map(_ENDED.match, names))
    return [(int(match[1]), match[2]) for match in found]


def _make(folder: Path) -> bool:
    """Make a folder. Returns whether it was not there."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _touch(path: Path) -> None:
    path.touch()
    _sync(path)


def _sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Remove the folder of an earlier round, which may write into it meanwhile. Raises OSError."""
    for _ in range(_TRIES):
        try:
            for each in [folder / name for name in _names(folder)]:
                if each.is_dir() and not each.is_symlink():
                    # A library that was given the path of a part has made it beside that. What is
                    # left of it is found below: the folder is not empty.
                    shutil.rmtree(each, ignore_errors=True)
                else:
                    each.unlink(missing_ok=True)
            folder.rmdir()
        except OSError as error:
            if error.errno in _GONE:
                return
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
    raise TimeoutError(errno.ETIMEDOUT, "an earlier round goes on writing", str(folder))
