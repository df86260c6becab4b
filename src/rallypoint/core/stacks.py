"""Where workers stand: from the texts of their stacks to one line, and to the odd one out.

The texts come from faulthandler, py-spy or /proc, and may be cut anywhere. `place_of` finds in one
where its main thread stands. `summary` says who stands where, and `odd_one` which worker keeps the
others waiting. These are heuristics for people and for the name of the guilty rank: nothing that a
rule protects depends on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Final

import msgspec

from rallypoint.core.printable import shortened, some, spans
from rallypoint.core.values import NAMES_SHOWN_MAX, FrozenStruct

PLACE_CHARACTERS_MAX: Final = 200
STACK_CHARACTERS_MAX: Final = 64 * 1024
"""The longest text of one worker's stacks."""
STEP_MAX: Final = 2**63 - 1
"""The highest step that can be told; a program may have any number."""
GROUPS_SHOWN: Final = 5
GROUPS_KEPT: Final = 8
"""How many groups of equal stacks are kept after a hang."""
COMPARED_MAX: Final = 64
"""Of so many workers at most the whole stacks are compared."""
LINES_KEPT: Final = 20
LINE_CHARACTERS_MAX: Final = 200
"""How many lines of each, and the most characters of a line."""
RANKS_CHARACTERS: Final = 100
RANKS_SHOWN: Final = 4
FRAMES_MAX: Final = 500
"""How many frames of a thread are read: a recursion may have many more."""
UNKNOWN: Final = "an unknown place"
DATA_LOADING: Final = "data loading"

_COLLECTIVES: Final = frozenset(
    {
        *("all_reduce", "allreduce", "all_reduce_coalesced", "all_gather", "allgather"),
        *("all_gather_into_tensor", "all_gather_object", "broadcast", "broadcast_object_list"),
        *("reduce", "reduce_scatter", "reduce_scatter_tensor", "all_to_all", "all_to_all_single"),
        *("gather", "scatter", "gather_object", "scatter_object_list", "barrier"),
        *("monitored_barrier", "send", "recv", "batch_isend_irecv", "init_process_group"),
        *("new_group", "synchronize", "wait_for_everyone", "sync_global_devices", "psum"),
        *("_sync_params_and_buffers", "_verify_param_shape_across_processes"),
    }
)
_OF_COLLECTIVES: Final = (
    "torch/distributed/",
    "torch/nn/parallel/",
    "jax/",
    "deepspeed/",
    "horovod/",
    "mpi4py/",
    "rallypoint/",
)
"""Only in files of these libraries has a function of such a name its meaning."""
_LIBRARY: Final = re.compile(
    r"site-packages/|dist-packages/|/lib/python3[^/]*/|^<|^\(|\.so\b|^torch/|rallypoint/client/|rallypoint/rendezvous/|^threading\.py$"
)
_STANDARD: Final = frozenset(
    {
        *(
            "threading.py",
            "selectors.py",
            "socket.py",
            "subprocess.py",
            "queue.py",
            "contextlib.py",
        ),
        *("asyncio/base_events.py", "asyncio/runners.py", "runpy.py", "ssl.py", "connection.py"),
        *("multiprocessing/connection.py", "multiprocessing/popen_fork.py", "functools.py"),
    }
)
"""py-spy leaves out the folder of the standard library."""

# faulthandler: `  File "/a/b.py", line 12 in all_reduce`.
_FAULTHANDLER: Final = re.compile(
    r'^\s+File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<at>.*)$'
)
# py-spy: `    all_reduce (torch/distributed/distributed_c10d.py:2806)`; native frames have no line.
_PY_SPY: Final = re.compile(r"^ {4,}(?P<at>\S.*?) \((?P<file>[^()]*?)(?::(?P<line>\d+))?\)$")
_THREAD: Final = re.compile(r'^(?:Current thread|Thread) [^"]*(?:"(?P<name>.*)")?')


class WorkerStack(FrozenStruct, frozen=True):
    """Where one worker stands.

    `state`: of its process, in words; "" if it runs or sleeps as usual, and "stopped" or "blocked
    in the kernel" if it is frozen. `place`: where its main thread stands. `is_waiting`: it stands
    where workers wait for others. `text`: its stacks, as far as they could be read. `step`: the
    last one that it has reported. `source`: what has read the text.
    """

    rank: Annotated[int, msgspec.Meta(ge=0)]
    local_rank: Annotated[int, msgspec.Meta(ge=0)] = 0
    state: Annotated[str, msgspec.Meta(max_length=PLACE_CHARACTERS_MAX)] = ""
    place: Annotated[str, msgspec.Meta(max_length=PLACE_CHARACTERS_MAX)] = UNKNOWN
    is_waiting: bool = False
    text: Annotated[str, msgspec.Meta(max_length=STACK_CHARACTERS_MAX)] = ""
    step: int | None = None
    source: Annotated[str, msgspec.Meta(max_length=PLACE_CHARACTERS_MAX)] = ""


Stacks = Annotated[tuple[WorkerStack, ...], msgspec.Meta(max_length=4_096)]
"""Those of the workers of one node."""


class Place(FrozenStruct, frozen=True):
    """Where a thread stands. `what`: the same for workers that stand at the same thing."""

    what: str
    where: str = ""
    is_waiting: bool = False

    def __str__(self) -> str:
        text = f"{self.what} ({self.where})" if self.where else self.what
        return shortened(text, PLACE_CHARACTERS_MAX)


class Frame(FrozenStruct, frozen=True):
    """One frame: a function, its file and its line; "" if unknown."""

    at: str
    file: str
    line: str

    @property
    def where(self) -> str:
        name = self.file.rpartition("/")[2]
        return f"{name}:{self.line}" if self.line else name


# -- one worker ------------------------------------------------------------------------------------


def place_of(text: str) -> Place:
    """Where the main thread of a process stands, by the text of its stacks."""
    frames = _main_thread(text)
    if not frames:
        return Place(UNKNOWN)
    user = next((i for i, frame in enumerate(frames) if not _is_library(frame)), None)
    inner = frames if user is None else frames[:user]
    where = frames[0].where if user is None else frames[user].where
    # The outermost one is what the program has called: barrier() calls all_reduce().
    for frame in reversed(inner):
        if frame.at in _COLLECTIVES and any(each in frame.file for each in _OF_COLLECTIVES):
            return Place(frame.at, where, is_waiting=True)
    if any("torch/utils/data/" in frame.file for frame in inner):
        return Place(DATA_LOADING, where)
    if user is None:
        return Place(frames[0].at, where)
    return Place(inner[-1].at if inner else frames[user].at, where)


def stack(
    rank: int, local_rank: int, text: str, *, state: str = "", step: int | None, source: str
) -> WorkerStack:
    """What a node tells of one worker, from the text of its stacks."""
    place = place_of(text)
    return WorkerStack(
        rank,
        local_rank,
        state=state,
        place=str(place),
        is_waiting=place.is_waiting,
        text=text[:STACK_CHARACTERS_MAX],
        step=None if step is None else max(-STEP_MAX, min(step, STEP_MAX)),
        source=source,
    )


def lines_of(text: str) -> tuple[str, ...]:
    """The lines of a stack's text, those of the main thread first."""
    threads = list(_threads(text))
    main = _main_of(threads)
    ordered = sorted(threads, key=lambda each: (each is not main, each.is_of_proc))
    lines = (line.rstrip() for each in ordered for line in each.lines)
    return tuple(line for line in lines if line.strip())


def _main_thread(text: str) -> list[Frame]:
    """The frames of the main thread, the innermost first."""
    main = _main_of(list(_threads(text)))
    return main.frames if main is not None else []


class _Thread(msgspec.Struct, eq=False):
    """One thread: its name, if the text has it, its frames, and its lines.

    `is_of_proc`: it is no thread, but what /proc says of the process.
    """

    name: str
    frames: list[Frame]
    lines: list[str]
    is_of_proc: bool = False


def _main_of(threads: list[_Thread]) -> _Thread | None:
    found: _Thread | None = None
    for each in threads:
        if each.name == "MainThread":
            return each
        # faulthandler writes no names: all threads but the main one begin in the module threading.
        is_other = bool(each.frames) and each.frames[-1].at in ("_bootstrap", "_bootstrap_inner")
        if each.frames and (not is_other or found is None):
            found = each
    return found


def _threads(text: str) -> Iterator[_Thread]:
    present = _Thread("", [], [])
    for line in text.splitlines():
        begin = _THREAD.match(line)
        is_of_proc = line.startswith("/proc:")
        if begin is not None or is_of_proc is not present.is_of_proc:
            yield present
            name = begin["name"] or "" if begin is not None else ""
            present = _Thread(name, [], [], is_of_proc)
        present.lines.append(line)
        match = _FAULTHANDLER.match(line) or _PY_SPY.match(line)
        if match is not None and len(present.frames) < FRAMES_MAX:
            number = match["line"] or ""
            frame = Frame(match["at"], match["file"], number if number.isdigit() else "")
            present.frames.append(frame)
    yield present


def _is_library(frame: Frame) -> bool:
    is_native = not frame.file.endswith((".py", ".pyx")) and not frame.line
    return is_native or bool(_LIBRARY.search(frame.file)) or frame.file in _STANDARD


# -- all workers -----------------------------------------------------------------------------------


def summary(nodes: Mapping[str, Iterable[WorkerStack]], silent: Iterable[str] = ()) -> str:
    """Who stands where, in one line: "7 of 8 in all_reduce, n3 rank 5 in load".

    `silent`: the nodes that have not answered.
    """
    groups: dict[str, list[tuple[str, WorkerStack]]] = {}
    for node, each in _ranks(nodes):
        groups.setdefault(_stands(each), []).append((node, each))
    total = sum(map(len, groups.values()))
    largest_first = sorted(groups.items(), key=lambda item: -len(item[1]))
    parts = [_group(stands, who, total) for stands, who in largest_first[:GROUPS_SHOWN]]
    others = sum(len(who) for _, who in largest_first[GROUPS_SHOWN:])
    if others:
        parts.append(f"{others} elsewhere")
    unheard = list(silent)
    if unheard:
        parts.append(f"no answer from {some(tuple(unheard[:8]), len(unheard))}")
    return ", ".join(parts) or "no worker's stack is known"


class StackGroup(FrozenStruct, frozen=True):
    """Workers whose main threads stand at the same lines. `in_words`: who they are, and where.

    `nodes`: some of their nodes, `count`: how many nodes these are. `lines`: the stacks of one of
    them, the innermost frame of its main thread first; empty if its node shares no text.
    """

    in_words: str
    nodes: tuple[str, ...]
    count: int
    lines: tuple[str, ...]


def grouped(nodes: Mapping[str, Iterable[WorkerStack]]) -> tuple[StackGroup, ...]:
    """The stacks of all workers, each of the equal ones once: the GROUPS_KEPT largest groups.

    Of more than COMPARED_MAX workers, those are taken for equal that stand at the same place: to
    read thousands of texts would take seconds.
    """
    workers = list(_ranks(nodes))
    total = len(workers)
    groups: dict[tuple[object, ...], list[tuple[str, WorkerStack]]] = {}
    for node, each in workers:
        read = _main_thread(each.text) if total <= COMPARED_MAX else []
        frames = tuple((frame.at, frame.file, frame.line) for frame in read)
        groups.setdefault((_stands(each), frames), []).append((node, each))
    largest_first = sorted(groups.values(), key=lambda who: -len(who))
    return tuple(_group_of(who, total) for who in largest_first[:GROUPS_KEPT])


def _group_of(who: list[tuple[str, WorkerStack]], total: int) -> StackGroup:
    node, first = min(who, key=lambda item: item[1].rank)
    names = tuple(dict.fromkeys(name for name, _ in who))
    if len(who) == 1:
        text = f"{node} rank {first.rank} {_stands(first)}"
    else:
        ranks = spans(sorted(each.rank for _, each in who))
        text = (
            f"{len(who)} of {total} {_stands(first)} (ranks {shortened(ranks, RANKS_CHARACTERS)})"
        )
    lines = (shortened(line, LINE_CHARACTERS_MAX) for line in lines_of(first.text)[:LINES_KEPT])
    return StackGroup(text, names[:NAMES_SHOWN_MAX], len(names), tuple(lines))


def odd_one(
    nodes: Mapping[str, Iterable[WorkerStack]], *, are_all: bool = True
) -> tuple[str, WorkerStack] | None:
    """The node and the worker that the others wait for; None if no worker stands apart.

    That is a worker that is frozen; else one that does not wait for others while others do; else
    one that stands where few stand; else one whose step is behind that of most. Of several, it is
    the one of the lowest rank. `are_all`: whether these are all workers, so that one alone is it.
    """
    ranks = sorted(_ranks(nodes), key=lambda item: item[1].rank)
    for few in (
        [item for item in ranks if item[1].state],
        [item for item in ranks if not item[1].is_waiting and item[1].place != UNKNOWN],
        _rarest(ranks),
        _behind(ranks),
    ):
        if few and len(few) < len(ranks):
            return few[0]
    return ranks[0] if len(ranks) == 1 and are_all else None


def _rarest(ranks: list[tuple[str, WorkerStack]]) -> list[tuple[str, WorkerStack]]:
    """Those in the smallest group, if most stand in one other."""
    groups: dict[str, list[tuple[str, WorkerStack]]] = {}
    for item in ranks:
        groups.setdefault(_stands(item[1]), []).append(item)
    sizes = sorted(map(len, groups.values()))
    if len(sizes) < 2 or 2 * sizes[-1] <= len(ranks):
        return []
    return min(groups.values(), key=len)


def _behind(ranks: list[tuple[str, WorkerStack]]) -> list[tuple[str, WorkerStack]]:
    steps = [item[1].step for item in ranks if item[1].step is not None]
    if len(steps) < len(ranks) or not steps:
        return []
    lowest = min(steps)
    return [item for item in ranks if item[1].step == lowest]


def _ranks(nodes: Mapping[str, Iterable[WorkerStack]]) -> Iterator[tuple[str, WorkerStack]]:
    for node, stacks in nodes.items():
        for each in stacks:
            yield node, each


def _stands(each: WorkerStack) -> str:
    if each.state:
        return f"{each.state}, in {each.place}" if each.place != UNKNOWN else each.state
    return f"in {each.place}"


def _group(stands: str, who: list[tuple[str, WorkerStack]], total: int) -> str:
    if len(who) == 1 and total > 1:
        node, each = who[0]
        return f"{node} rank {each.rank} {stands}"
    ranks = sorted(each.rank for _, each in who)
    text = f"{len(who)} of {total} {stands}"
    if len(who) <= RANKS_SHOWN and 2 * len(who) < total:
        text += f" (ranks {', '.join(map(str, ranks))})"
    return text
