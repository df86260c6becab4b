"""The file ledger of a job: the shipped one, over a simulated disk, and what goes wrong with that.

What is written to the ledger is told from the names and files on the disk, and not from what the
ledger says. A change counts once it is on the disk: before that, a power failure may undo it, and
nobody has had it acknowledged or read.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from rallypoint.checkers.violations import short
from rallypoint.core.election import UnreadableError
from rallypoint.core.election.records import decode_floor, decode_lease, decode_run
from rallypoint.ledger import record_format
from rallypoint.ledger.contract import Ledger
from rallypoint.ledger.file.index import Index
from rallypoint.ledger.file.ledger import FileLedger
from rallypoint.ledger.file.registers import TOMBSTONE
from rallypoint.ledger.keys import is_record_name
from rallypoint.simulation.disk import Inode, Mount, Trouble, Volume
from rallypoint.simulation.scene import Undo
from rallypoint.simulation.world import Process, World

FOLDER: Final = Path("/shared/ledger")
_DEPTH: Final = 2
"""The folders of a ledger are so deep: /shared/ledger/ledger-.../index."""


class FilesInWorld:
    """See `scene.SimulatedLedger`. `is_shared`: on a file server; else on the only machine."""

    endpoint = f"file://{FOLDER}"

    def __init__(self, world: World, *, is_shared: bool) -> None:
        self.is_on_one_machine = not is_shared
        self.volume = Volume(world, is_shared=is_shared)
        if is_shared:
            self.volume.remembers_s = self.volume.random.choice((0.0, 3.0, 60.0))
        self.volume.on_kept = self._kept
        self.on_written: Callable[[str, bytes | None], None] = lambda name, value: None
        self.on_logged: Callable[[str, int, bytes | None], None] = lambda log, index, value: None
        self._registers: dict[str, tuple[str, bytes | None]] = {}
        """By folder: the register, and its value."""
        self._newest: dict[str, str] = {}
        """By folder of a register: the name of the newest version that was told."""
        self._logs: dict[str, tuple[str, int]] = {}
        """By folder: the log, and how many records it has."""

    def ledger(self, process: Process) -> Ledger:
        """See SimulatedLedger."""
        host = process.loop.runtime.host_name
        return FileLedger(FOLDER, system=self.volume.file_system(process, host))

    def trouble(self, process: Process, draw: random.Random) -> Undo:
        """See SimulatedLedger: with the whole disk, or with one host's way to it."""
        volume = self.volume
        mount = volume.mount(process.loop.runtime.host_name)
        usual = volume.usual.switches
        trouble = draw.choice(
            (
                Trouble(delay_s=(0.0, 3.0), switches=draw.choice((0.05, 0.3))),
                Trouble(fails=draw.choice((0.01, 0.1)), switches=usual),
                Trouble(loses_answer=0.3, switches=usual),
                Trouble(stale=0.1, switches=usual),
                Trouble(is_full=True, switches=usual),
                Trouble(is_read_only=True, switches=usual),
                Trouble(hangs=True, switches=usual),
            )
        )
        return self._meets(trouble, mount, is_way=volume.is_shared and draw.random() < 0.5)

    def disk(self, process: Process, draw: random.Random) -> Undo:
        """The disk reports errors, or repeats changes whose answers were lost."""
        volume = self.volume
        usual = volume.usual.switches
        troubles = [
            Trouble(fails=draw.choice((0.1, 0.3)), switches=usual),
            Trouble(is_full=True, switches=usual),
            Trouble(is_read_only=True, switches=usual),
        ]
        if volume.is_shared:
            troubles += [
                Trouble(loses_answer=draw.choice((0.3, 1.0)), switches=usual),
                Trouble(stale=draw.choice((0.1, 0.5)), switches=usual),
            ]
        mount = volume.mount(process.loop.runtime.host_name)
        is_way = volume.is_shared and draw.random() < 0.3
        return self._meets(draw.choice(troubles), mount, is_way=is_way)

    def _meets(self, trouble: Trouble, mount: Mount, *, is_way: bool) -> Undo:
        volume = self.volume
        if is_way:
            mount.trouble = trouble
        else:
            volume.trouble = trouble

        def mend() -> None:
            if is_way and mount.trouble is trouble:
                mount.trouble = None
            elif volume.trouble is trouble:
                volume.trouble = volume.usual
            volume.go_on()

        return mend

    def limit(self, process: Process, draw: random.Random) -> Undo:
        """See SimulatedLedger: the disk is full."""
        volume = self.volume
        trouble = volume.trouble = Trouble(is_full=True, switches=volume.usual.switches)

        def mend() -> None:
            if volume.trouble is trouble:
                volume.trouble = volume.usual
            volume.go_on()

        return mend

    def cut(self, process: Process) -> Undo:
        """See SimulatedLedger: its host waits for the disk."""
        volume = self.volume
        mount = volume.mount(process.loop.runtime.host_name)
        trouble = mount.trouble = Trouble(hangs=True, switches=volume.usual.switches)

        def mend() -> None:
            if mount.trouble is trouble:
                mount.trouble = None
            volume.go_on()

        return mend

    def outage(self, process: Process, draw: random.Random) -> Undo:
        """See SimulatedLedger: the disk answers nobody."""
        volume = self.volume
        trouble = volume.trouble = Trouble(hangs=True, switches=volume.usual.switches)

        def mend() -> None:
            if volume.trouble is trouble:
                volume.trouble = volume.usual
            volume.go_on()

        return mend

    def late(self, process: Process, draw: random.Random) -> Undo:
        """See SimulatedLedger: a disk has an order of its own, so it is only slow."""
        volume = self.volume
        slow = volume.trouble = Trouble(delay_s=(0.0, 3.0), switches=volume.usual.switches)

        def mend() -> None:
            if volume.trouble is slow:
                volume.trouble = volume.usual
            volume.go_on()

        return mend

    def small(self, process: Process, draw: random.Random) -> Undo:
        """See SimulatedLedger: no value is too large for a disk, but it may be full."""
        return self.limit(process, draw)

    def lost_power(self, host: str) -> None:
        """See SimulatedLedger."""
        self.volume.lose_power(host)

    def requests(self) -> int:
        """See SimulatedLedger: a disk's steps are not requests."""
        return 0

    def shown(self) -> list[str]:
        """See SimulatedLedger."""
        shown = [
            f"{name}: {register_shown(value)}"
            for name, value in self._registers.values()
            if value is not None
        ]
        return shown + [f"{log}: {count} records" for log, count in self._logs.values()]

    # -- what is written -------------------------------------------------------------------------

    def _kept(self, folder: Inode, name: str, inode: Inode | None) -> None:
        """A change of a name is on the disk."""
        at = self._place(folder)
        if at is None:
            return
        match at:
            case ["registers", own, _segment] if inode is not None and own in self._registers:
                assert folder.place is not None
                self._written(own, folder.place[0], name)
            case ["registers"] if inode is None and name in self._registers:
                key, value = self._registers.pop(name)
                if value is not None:
                    self.on_written(key, None)
            case ["logs", own] if inode is not None and own in self._logs and is_record_name(name):
                self._record(own, int(name, 16), _value(inode))
            case ["logs"] if inode is None and name in self._logs:
                log, count = self._logs.pop(name)
                for index in range(count):
                    self.on_logged(log, index, None)
            case ["index", _part, _segment] if inode is not None:
                self._indexed(folder, msgspec.msgpack.decode(_value(inode), type=Index))
        if inode is not None and inode.names is not None:
            # What is in a folder is on the disk only once the folder's own name is.
            for each in sorted(inode.kept_names):
                self._kept(inode, each, inode.kept_names[each])

    def _place(self, folder: Inode) -> list[str] | None:
        """The folders above a name, inside the ledger."""
        names: list[str] = []
        at: Inode | None = folder
        while at is not None and at.place is not None:
            at, name = at.place
            names.append(name)
        names.reverse()
        if len(names) <= _DEPTH or names[0] != "shared" or not names[2].startswith("ledger-"):
            return None
        return names[3:]

    def _indexed(self, segment: Inode, index: Index) -> None:
        """A part of the index has a new version: the names in it may be new."""
        place: Inode = segment
        for _ in range(3):
            assert place.place is not None
            place = place.place[0]
        registers, logs = place.kept_names.get("registers"), place.kept_names.get("logs")
        if registers is None or logs is None:
            return  # The ledger is broken. Whoever uses it reports that.
        for key, own in index.registers.items():
            folder = registers.kept_names.get(own)
            if own not in self._registers and folder is not None:
                self._registers[own] = (key, None)
                for name in sorted(_versions(folder)):
                    self._written(own, folder, name)
        for log, own in index.logs.items():
            folder = logs.kept_names.get(own)
            if own not in self._logs and folder is not None:
                self._logs[own] = (log, 0)
                for record, inode in sorted(folder.kept_names.items(), key=lambda each: each[0]):
                    self._record(own, int(record, 16), _value(inode))

    def _written(self, own: str, chain: Inode, name: str) -> None:
        """A version is on the disk, and with it all before it: it was written after them."""
        key, _ = self._registers[own]
        before = self._newest.get(own, "")
        for version, inode in sorted(_versions(chain).items(), key=lambda each: each[0]):
            if before < version <= name:
                value = _value(inode)
                told = None if value == TOMBSTONE else value
                self._newest[own], self._registers[own] = version, (key, told)
                self.on_written(key, told)

    def _record(self, own: str, index: int, value: bytes) -> None:
        log, count = self._logs[own]
        if index == count:
            self._logs[own] = (log, count + 1)
            self.on_logged(log, index, value)


def _versions(chain: Inode) -> dict[str, Inode]:
    """The versions of a register, by name, whether they are on the disk or not."""
    return {
        name: version
        for segment in (chain.names or {}).values()
        for name, version in (segment.names or {}).items()
    }


def _value(inode: Inode) -> bytes:
    return record_format.unseal(inode.data, "").value


def register_shown(value: bytes) -> str:
    """A register's value for people."""
    for decode in (decode_lease, decode_run, decode_floor):
        try:
            return short(decode(value))
        except UnreadableError:
            continue
    return f"{len(value)} bytes"
