"""The system's limits: open files, queues of connections, ports for connections."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Final

from rallypoint.doctor.case import Case
from rallypoint.doctor.findings import Finding, Notes
from rallypoint.net import LISTEN_BACKLOG

CHECK: Final = "limits"
FILES_MIN: Final = 64
"""An agent with a few workers needs that many."""
FILES_WANTED: Final = 4_096
"""A coordinator needs one for each node."""
PORTS_MIN: Final = 100
PORTS_WANTED: Final = 2_000
_FROM_KERNEL: Final = "/proc/sys/net/ipv4/ip_local_port_range"


def check(case: Case, root: Path = Path("/")) -> Finding:
    """Look at the limits of this process and of its network. `root`: where /proc is."""
    notes = Notes(CHECK)
    _check_files(notes)
    if sys.platform == "linux":
        _check_queue(root, notes)
        _check_ports(root, notes)
    return notes.finding("open files, queues and ports are enough")


def _check_files(notes: Notes) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_unlimited = hard == resource.RLIM_INFINITY
    notes.facts |= {"files_soft": soft, "files_hard": None if is_unlimited else hard}
    shown = "any number" if is_unlimited else f"{hard:,}"
    line = f"this process may have {shown} open files ({soft:,} until it asks for more)"
    advice = (
        "raise the hard limit: `ulimit -Hn`, LimitNOFILE= of a service, --ulimit nofile= of a "
        "container"
    )
    if not is_unlimited and hard < FILES_MIN:
        notes.fail(line, advice)
    elif not is_unlimited and hard < FILES_WANTED:
        notes.warn(f"{line}; a coordinator needs one for each node", advice)
    else:
        notes.saw(line)


def _check_queue(root: Path, notes: Notes) -> None:
    found = _numbers(root / "proc/sys/net/core/somaxconn")
    if not found:
        return
    (most,) = found[:1]
    notes.facts["somaxconn"] = most
    line = f"{most:,} connections may wait for a program that listens (somaxconn)"
    if most < LISTEN_BACKLOG:
        notes.warn(
            f"only {line}; a coordinator asks for {LISTEN_BACKLOG:,}",
            f"sysctl net.core.somaxconn={LISTEN_BACKLOG} where a coordinator of thousands of "
            "nodes runs",
        )
    else:
        notes.saw(line)


def _check_ports(root: Path, notes: Notes) -> None:
    found = _numbers(root / _FROM_KERNEL.lstrip("/"))
    if len(found) != 2:
        return
    first, last = found
    used = {port for port in _local_ports(root) if first <= port <= last}
    total = last - first + 1
    left = total - len(used)
    notes.facts |= {"ports": [first, last], "ports_left": left}
    line = f"{left:,} of {total:,} ports for connections are free ({first} to {last})"
    advice = (
        "end programs that hold connections (`ss -s`), or widen "
        f'sysctl net.ipv4.ip_local_port_range, such as "{min(first, 15_000)} 60999"'
    )
    if left < PORTS_MIN:
        notes.fail(line, advice)
    elif left < PORTS_WANTED:
        notes.warn(line, advice)
    else:
        notes.saw(line)


def _local_ports(root: Path) -> set[int]:
    """The local ports of all TCP sockets of this network namespace, also those in TIME_WAIT."""
    ports = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = (root / "proc/net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if len(fields) > 1:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def _numbers(path: Path) -> list[int]:
    try:
        return [int(each) for each in path.read_text().split()]
    except (OSError, ValueError):
        return []
