"""A simulated disk, under the shipped file ledger: what a power failure leaves, and what NFS does.

A `Volume` has folders and files. What was written is on the disk once the file was synced, and a
name once its folder was. When a host loses power, each change that was not is kept or lost, as the
seed draws. A rename is one change.

A volume is local, for the processes of one machine, or it is shared by NFS. Then names are on the
disk of the server at once, but clients remember names and attributes for some seconds, until they
open a file or folder: two hosts may see different names meanwhile. A request whose answer is lost
is repeated, and then reports that its name is taken, or gone, though it took effect.

Sources: POSIX, fsync(2), nfs(5) on close-to-open consistency and attribute caching; Linux retries a
path once if it meets a stale handle.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from rallypoint.ledger.file.file_system import Space
from rallypoint.simulation.clocks import MachineClock
from rallypoint.simulation.world import Process, World

USER: Final = 1000
_DEVICE: Final = 64
WALL_S: Final = 1.7e9
"""What a server's wall clock shows about when a world begins."""
WRITTEN_BACK: Final = 100
"""So many changes of names wait for a sync at most. Older ones are on the disk without one."""


class Inode(msgspec.Struct, eq=False):
    """A file, or a folder, which has `names`."""

    number: int
    mode: int
    modified_s: float
    names: dict[str, Inode] | None = None
    place: tuple[Inode, str] | None = None
    """A folder's own name on the disk, and the folder with it."""
    kept_names: dict[str, Inode] = msgspec.field(default_factory=dict)
    """The names that are on the disk."""
    pending: list[int] = msgspec.field(default_factory=list)
    """The changes of its names that may not be on the disk yet, by number."""
    data: bytes = b""
    kept: bytes | None = None
    """The content that is on the disk; None if it was never forced there."""
    writer: str = ""
    """The host that has bytes of it which are not on the disk."""
    links: int = 1
    """0: it was removed."""


Part = tuple[Inode, str, Inode | None]
"""A change of one name: its folder, the name, and what it names then."""


class Trouble(msgspec.Struct):
    """What is wrong with a volume, or with the way of one host to it.

    `delay_s`: how long each call takes, between these bounds. `switches`: the part of calls during
    which other processes go on; the others take no time. `fails`: the part of calls that fail with
    EIO, before or after they took effect. `loses_answer`: the part of changes that are repeated, as
    their answer is lost (NFS). `stale`: the part of looks that meet a stale handle (NFS).
    `is_full`, `is_read_only`: what is written fails. `hangs`: calls wait until it is over.
    """

    delay_s: tuple[float, float] = (0.0001, 0.002)
    switches: float = 0.2
    fails: float = 0.0
    loses_answer: float = 0.0
    stale: float = 0.0
    is_full: bool = False
    is_read_only: bool = False
    hangs: bool = False


class Volume:
    """See above. `remembers_s`: for how long an NFS client trusts what it knows; 0: never."""

    def __init__(self, world: World, *, is_shared: bool = False, remembers_s: float = 0.0) -> None:
        self.world = world
        self.is_shared = is_shared
        self.remembers_s = remembers_s
        self.random = random.Random(f"{world.seed}/disk")
        self.clock = MachineClock(
            rate=self.random.uniform(0.99, 1.01), wall_offset_s=WALL_S + self.random.random() * 1e6
        )
        self.usual = Trouble(switches=self.random.choice((0.02, 0.1, 0.1, 0.4)))
        self.trouble = self.usual
        self.on_kept: Callable[[Inode, str, Inode | None], None] = lambda *part: None
        """Called with each change of a name that is on the disk, in order."""
        self.mounts: dict[str, Mount] = {}
        self.root = Inode(1, stat.S_IFDIR | 0o755, self.now_s(), names={})
        self.open: dict[int, Inode] = {}
        self._serial = itertools.count(2)
        self._changes: dict[int, tuple[Part, ...]] = {}
        """The changes of names that are not on the disk yet, each as a whole, in order."""
        self._waiting: list[Callable[[], None]] = []
        self.make("shared")

    def make(self, name: str) -> None:
        """Make a folder in the root, which is on the disk."""
        made = self.new(stat.S_IFDIR | 0o700)
        self.change((self.root, name, made))
        self.sync_names(self.root)

    def mount(self, host: str) -> Mount:
        """What a host knows of the volume."""
        if host not in self.mounts:
            self.mounts[host] = Mount(self, host)
        return self.mounts[host]

    def file_system(self, process: Process, host: str) -> SimulatedFileSystem:
        """The calls of one process on a host."""
        return SimulatedFileSystem(process, self.mount(host))

    def now_s(self) -> float:
        """The wall clock of the server, or of the machine."""
        return self.clock.shown_s(self.world.now_s) + self.clock.wall_offset_s

    def wait(self) -> None:
        """In a call: wait until `go_on`."""
        self.world.threads.wait(self._waiting)

    def go_on(self) -> None:
        """A trouble has ended: calls that wait look again."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each()

    def lose_power(self, host: str, keeps: float | None = None) -> None:
        """A host loses power. Each change that it did not sync is kept or lost.

        `keeps`: how likely it is kept; None: as the seed draws.
        """
        mount = self.mounts.get(host)
        if mount is not None:
            mount.forget()
        draw = self.random
        keeps = draw.choice((0.0, 0.5, 0.5, 1.0)) if keeps is None else keeps
        if not self.is_shared:
            for change in self._changes.values():
                if draw.random() < keeps:
                    self._keep(change)
            self._changes.clear()
        seen: set[int] = set()
        self._restore(self.root, host, keeps, seen)

    def _restore(self, folder: Inode, host: str, keeps: float, seen: set[int]) -> None:
        """What is on the disk below this folder is what there is."""
        draw = self.random
        if not self.is_shared:
            folder.names = dict(folder.kept_names)
        for _, inode in sorted((folder.names or {}).items()):
            is_first = inode.number not in seen
            seen.add(inode.number)
            inode.links = 1 if is_first else inode.links + 1
            if inode.names is not None:
                self._restore(inode, host, keeps, seen)
            elif inode.kept != inode.data and inode.writer == host:
                if draw.random() >= keeps:
                    inode.data = inode.data[: draw.randrange(len(inode.data) + 1)]
                inode.kept = inode.data

    # -- changes -------------------------------------------------------------------------------

    def new(self, mode: int) -> Inode:
        """A file or folder without a name."""
        names: dict[str, Inode] | None = {} if stat.S_ISDIR(mode) else None
        return Inode(next(self._serial), mode, self.now_s(), names=names, links=0)

    def change(self, *parts: Part) -> None:
        """Change names in one step."""
        for folder, name, inode in parts:
            assert folder.names is not None
            before = folder.names.pop(name, None)
            if before is not None:
                before.links -= 1
            if inode is not None:
                folder.names[name] = inode
                inode.links += 1
            folder.modified_s = self.now_s()
        if self.is_shared:
            self._keep(parts)
            return
        number = next(self._serial)
        self._changes[number] = parts
        for folder, _, _ in parts:
            folder.pending.append(number)
        if len(self._changes) > WRITTEN_BACK:
            self._keep(self._changes.pop(next(iter(self._changes))))

    def sync_names(self, folder: Inode) -> None:
        """The names in a folder are on the disk, and what was changed together with them."""
        self._keep_until(folder, math.inf)

    def _keep_until(self, folder: Inode, last: float) -> None:
        """The changes in a folder up to this one are on the disk, in order."""
        numbers = [number for number in folder.pending if number <= last]
        folder.pending = folder.pending[len(numbers) :]
        for number in numbers:
            change = self._changes.pop(number, None)
            if change is not None:
                for other, _, _ in change:
                    if other is not folder:
                        self._keep_until(other, number)
                self._keep(change)

    def _keep(self, change: tuple[Part, ...]) -> None:
        """A change is on the disk."""
        for folder, name, inode in change:
            if inode is None:
                folder.kept_names.pop(name, None)
            else:
                folder.kept_names[name] = inode
                if inode.names is not None:
                    inode.place = (folder, name)
        for part in change:
            self.on_kept(*part)


class Mount:
    """What one host knows of a volume, and what is wrong with its way there."""

    def __init__(self, volume: Volume, host: str) -> None:
        self.volume = volume
        self.host = host
        self.trouble: Trouble | None = None
        """In place of the volume's own."""
        self._known: dict[Inode, dict[str, tuple[Inode | None, float]]] = {}

    def forget(self) -> None:
        """The host starts again."""
        self._known.clear()

    def opened(self, folder: Inode) -> None:
        """The host has asked the server for the names in this folder."""
        self._known.pop(folder, None)

    def look(
        self, folder: Inode, name: str, *, asks: bool = False, asks_all: bool = False
    ) -> Inode | None:
        """What has this name. `asks`: it is opened. `asks_all`: the host asks for each name.

        To open a file asks by its name. To open a folder asks only whether that folder exists,
        which may have another name by now (Linux, fs/nfs/dir.c, nfs_lookup_verify_inode).
        """
        assert folder.names is not None
        volume = self.volume
        if not volume.remembers_s:
            return folder.names.get(name)
        now_s = volume.world.now_s
        known = self._known.setdefault(folder, {})
        if not asks_all and name in known and known[name][1] > now_s:
            inode = known[name][0]
            if not asks or (inode is not None and inode.names is not None and inode.links):
                return inode
        if not folder.links:
            raise _error(errno.ESTALE)
        found = folder.names.get(name)
        until_s = now_s + volume.remembers_s * (0.1 + 0.9 * volume.random.random())
        known[name] = (found, until_s)
        return found

    def knows(self, folder: Inode, name: str, inode: Inode | None) -> None:
        """The host itself has changed this name."""
        if self.volume.remembers_s:
            self._known.setdefault(folder, {})[name] = (inode, self.volume.world.now_s + 3.0)


def _error(number: int, path: Path | None = None) -> OSError:
    return OSError(number, os.strerror(number), str(path) if path is not None else None)


class SimulatedFileSystem:
    """The calls of one process: see ledger.file.file_system.FileSystem."""

    def __init__(self, process: Process, mount: Mount) -> None:
        self._threads = process.world.threads
        self._mount = mount
        self._volume = mount.volume
        self._open: dict[int, Inode] = {}
        self._descriptors = itertools.count(3)

    # -- the steps of a call -------------------------------------------------------------------

    @property
    def _trouble(self) -> Trouble:
        return self._mount.trouble or self._volume.trouble

    def _begin(self, *, changes: bool = False) -> None:
        """The request travels. Raises OSError if it fails before it takes effect."""
        draw = self._volume.random
        self._rest()
        while self._trouble.hangs:
            self._volume.wait()
        trouble = self._trouble
        if trouble.fails and draw.random() < trouble.fails / 2:
            raise _error(errno.EIO)
        is_look = not changes and self._volume.is_shared
        if is_look and trouble.stale and draw.random() < trouble.stale:
            raise _error(errno.ESTALE)
        if changes and trouble.is_read_only:
            raise _error(errno.EROFS)

    def _end(self) -> None:
        """The answer travels. Raises OSError if it does not arrive."""
        trouble = self._trouble
        self._rest()
        if trouble.fails and self._volume.random.random() < trouble.fails / 2:
            raise _error(errno.EIO)

    def _rest(self) -> None:
        trouble, draw = self._trouble, self._volume.random
        takes_s = draw.uniform(*trouble.delay_s) if draw.random() < trouble.switches else 0.0
        self._threads.step(takes_s)

    def _is_repeated(self) -> bool:
        """Whether the answer to a change is lost, so that the client sends it again."""
        trouble, volume = self._trouble, self._volume
        return volume.is_shared and volume.random.random() < trouble.loses_answer

    def _needs_room(self) -> None:
        if self._trouble.is_full and self._volume.random.random() < 0.7:
            raise _error(errno.ENOSPC)

    # -- paths ---------------------------------------------------------------------------------

    def _find(self, path: Path, *, asks: bool = False) -> Inode:
        """The file or folder of this path. `asks`: the call opens it. Raises OSError."""
        try:
            return self._walk(path, asks=asks, asks_all=False)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return self._walk(path, asks=True, asks_all=True)

    def _walk(self, path: Path, *, asks: bool, asks_all: bool) -> Inode:
        inode, parts = self._volume.root, path.parts[1:]
        for index, part in enumerate(parts):
            if inode.names is None:
                raise _error(errno.ENOTDIR, path)
            is_last = index == len(parts) - 1
            found = self._mount.look(inode, part, asks=asks and is_last, asks_all=asks_all)
            if found is None:
                raise _error(errno.ENOENT, path)
            inode = found
        if asks and not inode.links and inode is not self._volume.root:
            raise _error(errno.ESTALE, path)
        return inode

    def _folder(self, path: Path) -> Inode:
        """The folder for a name: the server must have it still."""
        folder = self._find(path.parent)
        if not folder.links and folder is not self._volume.root:
            folder = self._walk(path.parent, asks=True, asks_all=True)
        if folder.names is None:
            raise _error(errno.ENOTDIR, path)
        return folder

    def _changed(self, *parts: Part) -> None:
        self._volume.change(*parts)
        for folder, name, inode in parts:
            self._mount.knows(folder, name, inode)

    def _new(self, path: Path, mode: int) -> Inode:
        """Make a file or folder. Raises FileExistsError."""
        self._needs_room()
        folder = self._folder(path)
        assert folder.names is not None
        taken = self._mount.look(folder, path.name) or folder.names.get(path.name)
        if taken is not None:
            raise _error(errno.EEXIST, path)
        made = self._volume.new(mode)
        self._changed((folder, path.name, made))
        return made

    # -- files ---------------------------------------------------------------------------------

    def create(self, path: Path, mode: int) -> int:
        """See FileSystem. An NFS client can repeat it, as it is known by a verifier."""
        self._begin(changes=True)
        made = self._new(path, stat.S_IFREG | mode)
        self._end()
        descriptor = next(self._descriptors)
        self._open[descriptor] = made
        return descriptor

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        """See FileSystem. The system may take some bytes only; NFS notes a full disk later."""
        self._begin(changes=True)
        inode, count = self._open[descriptor], len(data)
        if not self._volume.is_shared:
            self._needs_room()
        if count > 1 and self._volume.random.random() < 0.01:
            count = self._volume.random.randrange(1, count)
        inode.data += bytes(data[:count])
        inode.writer = self._mount.host
        inode.modified_s = self._volume.now_s()
        return count

    def open_folder(self, path: Path) -> int:
        """See FileSystem."""
        self._begin()
        folder = self._find(path, asks=True)
        self._mount.opened(folder)
        descriptor = next(self._descriptors)
        self._open[descriptor] = folder
        return descriptor

    def sync(self, descriptor: int) -> None:
        """See FileSystem."""
        inode = self._open[descriptor]
        self._begin()
        if inode.names is not None:
            self._volume.sync_names(inode)
        else:
            if self._volume.is_shared:
                self._needs_room()
            inode.kept = inode.data
        self._end()

    def close(self, descriptor: int) -> None:
        """See FileSystem."""
        self._threads.step()
        self._open.pop(descriptor, None)

    def read(self, path: Path) -> bytes:
        """See FileSystem."""
        self._begin()
        inode = self._find(path, asks=True)
        if inode.names is not None:
            raise _error(errno.EISDIR, path)
        return inode.data

    # -- names ---------------------------------------------------------------------------------

    def link(self, path: Path, name: Path) -> None:
        """See FileSystem."""
        self._begin(changes=True)
        inode, folder = self._find(path), self._folder(name)
        assert folder.names is not None
        if not inode.links:
            raise _error(errno.ESTALE, path)
        if self._mount.look(folder, name.name) or name.name in folder.names:
            raise _error(errno.EEXIST, name)
        self._needs_room()
        self._changed((folder, name.name, inode))
        self._end()
        if self._is_repeated():
            raise _error(errno.EEXIST, name)

    def rename(self, path: Path, name: Path) -> None:
        """See FileSystem."""
        self._begin(changes=True)
        source, target = self._folder(path), self._folder(name)
        assert source.names is not None
        assert target.names is not None
        inode, taken = source.names.get(path.name), target.names.get(name.name)
        if inode is None:
            self._mount.knows(source, path.name, None)
            raise _error(errno.ENOENT, path)
        if taken is not None and taken.names != {}:
            raise _error(errno.ENOTEMPTY if taken.names else errno.EEXIST, name)
        if taken is not None and inode.names is None:
            raise _error(errno.EISDIR, name)
        self._changed((source, path.name, None), (target, name.name, inode))
        self._end()
        if self._is_repeated():
            raise _error(errno.ENOENT, path)

    def unlink(self, path: Path) -> None:
        """See FileSystem."""
        self._remove(path, is_folder=False)

    def make_folder(self, path: Path, mode: int) -> None:
        """See FileSystem."""
        self._begin(changes=True)
        self._new(path, stat.S_IFDIR | mode)
        self._end()
        if self._is_repeated():
            raise _error(errno.EEXIST, path)

    def remove_folder(self, path: Path) -> None:
        """See FileSystem."""
        self._remove(path, is_folder=True)

    def _remove(self, path: Path, *, is_folder: bool) -> None:
        self._begin(changes=True)
        folder = self._folder(path)
        assert folder.names is not None
        inode = folder.names.get(path.name)
        if inode is None:
            self._mount.knows(folder, path.name, None)
            raise _error(errno.ENOENT, path)
        if is_folder != (inode.names is not None):
            raise _error(errno.ENOTDIR if is_folder else errno.EISDIR, path)
        if inode.names:
            raise _error(errno.ENOTEMPTY, path)
        self._changed((folder, path.name, None))
        self._end()
        if self._is_repeated():
            raise _error(errno.ENOENT, path)

    # -- looks ---------------------------------------------------------------------------------

    def names(self, path: Path) -> list[str]:
        """See FileSystem. In an order that the seed draws."""
        return [name for name, _ in self.entries(path)]

    def entries(self, path: Path) -> list[tuple[str, bool]]:
        """See FileSystem. In an order that the seed draws.

        A folder that changes while it is listed may show some of the changes: names that were there
        all the time are listed, and others may be.
        """
        self._begin()
        folder = self._find(path, asks=True)
        self._mount.opened(folder)
        if folder.names is None:
            raise _error(errno.ENOTDIR, path)
        before = dict(folder.names)
        self._rest()
        draw = self._volume.random
        found = []
        for name, inode in {**before, **folder.names}.items():
            stays = name in before and folder.names.get(name) is inode
            if stays or draw.random() < 0.5:
                found.append((name, inode.names is not None))
        draw.shuffle(found)
        return found

    def status(self, path: Path) -> os.stat_result:
        """See FileSystem."""
        self._begin()
        inode = self._find(path)
        size, modified_s = len(inode.data), inode.modified_s
        numbers = (inode.mode, inode.number, _DEVICE, inode.links, USER, USER, size)
        whole_s = int(modified_s)
        return os.stat_result((*numbers, whole_s, whole_s, whole_s), {"st_mtime": modified_s})

    def space(self, path: Path) -> Space:
        """See FileSystem."""
        self._begin()
        trouble = self._trouble
        return Space(0 if trouble.is_full else 1 << 40, trouble.is_read_only)

    def mount_options(self, path: Path) -> list[str]:
        """See FileSystem."""
        return ["rw"]

    def user(self) -> int:
        """See FileSystem."""
        return USER

    def is_own_group(self, group: int) -> bool:
        """See FileSystem."""
        return True
