"""Where workers stand, from texts as faulthandler, py-spy and /proc write them."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.core.stacks import (
    COMPARED_MAX,
    GROUPS_KEPT,
    LINES_KEPT,
    PLACE_CHARACTERS_MAX,
    STEP_MAX,
    UNKNOWN,
    WorkerStack,
    grouped,
    lines_of,
    odd_one,
    place_of,
    stack,
    summary,
)

TORCH = "/usr/lib/python3.11/site-packages/torch"
IN_ALL_REDUCE = f"""\
Thread 0x00007f2c8f7fe6c0 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 324 in wait
  File "/usr/lib/python3.11/threading.py", line 1045 in _bootstrap_inner
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap

Current thread 0x00007f2d1b1f5740 (most recent call first):
  File "{TORCH}/distributed/distributed_c10d.py", line 2806 in all_reduce
  File "{TORCH}/distributed/c10d_logger.py", line 81 in wrapper
  File "/home/ann/train.py", line 41 in step
  File "/home/ann/train.py", line 60 in <module>
"""
IN_DATA_LOADING = f"""\
Current thread 0x00007f2d1b1f5740 (most recent call first):
  File "/usr/lib/python3.11/selectors.py", line 415 in select
  File "/usr/lib/python3.11/multiprocessing/connection.py", line 947 in wait
  File "/usr/lib/python3.11/queue.py", line 180 in get
  File "{TORCH}/utils/data/dataloader.py", line 1131 in _try_get_data
  File "{TORCH}/utils/data/dataloader.py", line 630 in __next__
  File "/home/ann/train.py", line 38 in <module>
"""
PY_SPY = """\
Process 4711: python train.py
Python v3.11.2 (/usr/bin/python3.11)

Thread 4711 (idle): "MainThread"
    wait (threading.py:324)
    barrier (torch/distributed/distributed_c10d.py:4551)
    save (train.py:12)
    <module> (train.py:70)
Thread 4720 (active): "pin memory"
    select (selectors.py:415)
    _bootstrap (threading.py:1002)
"""
IN_A_STORE = """\
Current thread 0x00007f2d1b1f5740 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 327 in wait
  File "/usr/lib/python3.11/concurrent/futures/_base.py", line 451 in result
  File "/home/ann/src/rallypoint/client/blocking.py", line 76 in run
  File "/home/ann/src/rallypoint/client/blocking.py", line 282 in barrier
  File "/home/ann/train.py", line 70 in <module>
"""
OWN_CODE = """\
Current thread 0x00007f2d1b1f5740 (most recent call first):
  File "/home/ann/data.py", line 9 in load
  File "/home/ann/train.py", line 7 in <module>
"""
NATIVE = """\
Process 12: python train.py
Python v3.12.1 (/usr/bin/python3.12)

Thread 12 (active): "MainThread"
    pthread_cond_wait (libpthread-2.31.so)
    c10d::ProcessGroupGloo::AsyncWork::wait (libtorch_cpu.so)
    all_reduce (torch/distributed/distributed_c10d.py:2806)
    step (train.py:41)
"""
MAIN_IS_LAST = """\
Thread 0x00007f0000000001 (most recent call first):
  File "/home/ann/helper.py", line 3 in poll
  File "/usr/lib/python3.11/threading.py", line 982 in run
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap

Thread 0x00007f0000000002 (most recent call first):
  File "/home/ann/train.py", line 5 in compute
  File "/home/ann/train.py", line 9 in <module>

Current thread 0x00007f0000000001 (most recent call first):
  File "/home/ann/helper.py", line 3 in poll
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap
"""
DEEP = (
    "Current thread 0x01 (most recent call first):\n"
    + '  File "/home/ann/deep.py", line 2 in f\n' * 900
)


@pytest.mark.parametrize(
    ("text", "place", "is_waiting"),
    [
        (IN_ALL_REDUCE, "all_reduce (train.py:41)", True),
        (IN_DATA_LOADING, "data loading (train.py:38)", False),
        (PY_SPY, "barrier (train.py:12)", True),
        (IN_A_STORE, "barrier (train.py:70)", True),
        (OWN_CODE, "load (data.py:9)", False),
        (NATIVE, "all_reduce (train.py:41)", True),
        (MAIN_IS_LAST, "compute (train.py:5)", False),
        (DEEP, "f (deep.py:2)", False),
        ("", UNKNOWN, False),
        ("Permission denied", UNKNOWN, False),
    ],
    ids=[
        "all_reduce",
        "loading",
        "py-spy",
        "store",
        "own",
        "native",
        "threads",
        "deep",
        "empty",
        "none",
    ],
)
def test_the_place_of_a_worker(text: str, place: str, is_waiting: bool) -> None:
    found = place_of(text)
    assert (str(found), found.is_waiting) == (place, is_waiting)


def test_the_lines_begin_with_the_main_thread() -> None:
    lines = lines_of(f"{MAIN_IS_LAST}\n/proc: 2 threads\n/proc: it waits in futex")
    assert lines[1] == '  File "/home/ann/train.py", line 5 in compute'
    assert lines[-2:] == ("/proc: 2 threads", "/proc: it waits in futex")
    assert sorted(lines) == sorted(
        line for line in [*MAIN_IS_LAST.splitlines(), *lines[-2:]] if line.strip()
    )


def test_equal_stacks_are_kept_once_and_they_are_bounded() -> None:
    def worker(rank: int, line: int) -> WorkerStack:
        text = OWN_CODE.replace("line 7", f"line {line}").replace("0x00007f2d1b1f5740", hex(rank))
        return stack(rank, 0, text * 40, step=None, source="faulthandler")

    few = {f"n{rank}": [worker(rank, 7 if rank < 6 else 10 + rank)] for rank in range(8)}
    groups = grouped(few)
    assert [each.in_words for each in groups] == [
        "6 of 8 in load (data.py:9) (ranks 0-5)",
        "n6 rank 6 in load (data.py:9)",
        "n7 rank 7 in load (data.py:9)",
    ]
    assert all(len(each.lines) == LINES_KEPT for each in groups)
    many = {f"n{rank}": [worker(rank, rank)] for rank in range(COMPARED_MAX + 1)}
    assert len(grouped(many)) == 1
    different = {f"n{rank}": [WorkerStack(rank, place=f"at {rank}")] for rank in range(1_000)}
    assert len(grouped(different)) == GROUPS_KEPT


@given(
    st.text(max_size=300) | st.sampled_from([IN_ALL_REDUCE, PY_SPY, NATIVE]).map(lambda t: t[7:])
)
def test_any_text_has_a_place(text: str) -> None:
    found = stack(1, 0, text, step=None, source="a test")
    assert 0 < len(found.place) <= PLACE_CHARACTERS_MAX


def waiting(rank: int, step: int | None = None) -> WorkerStack:
    return WorkerStack(rank, place="all_reduce (train.py:41)", is_waiting=True, step=step)


def loading(rank: int) -> WorkerStack:
    return WorkerStack(rank, place="data loading (data.py:9)")


def test_the_summary_says_who_stands_where() -> None:
    nodes = {f"node{i}": tuple(waiting(2 * i + j) for j in (0, 1)) for i in range(4)}
    nodes["node2"] = (waiting(4), loading(5))
    assert summary(nodes) == (
        "7 of 8 in all_reduce (train.py:41), node2 rank 5 in data loading (data.py:9)"
    )
    assert odd_one(nodes) == ("node2", loading(5))


def test_a_frozen_worker_is_named_as_such() -> None:
    frozen = WorkerStack(1, state="stopped by a signal")
    nodes = {"a": (waiting(0),), "b": (frozen,), "c": (loading(2),)}
    assert "b rank 1 stopped by a signal" in summary(nodes)
    assert odd_one(nodes) == ("b", frozen)


def test_with_two_workers_the_one_that_does_not_wait_is_the_odd_one() -> None:
    assert odd_one({"a": (waiting(0),), "b": (loading(1),)}) == ("b", loading(1))


def test_where_all_wait_the_one_that_is_behind_is_the_odd_one() -> None:
    nodes = {"a": (waiting(0, 7),), "b": (waiting(1, 6),), "c": (waiting(2, 7),)}
    assert odd_one(nodes) == ("b", waiting(1, 6))


def test_where_few_stand_is_the_odd_one() -> None:
    lost = WorkerStack(1, place="broadcast (train.py:44)", is_waiting=True)
    nodes = {"a": (waiting(0),), "b": (lost,), "c": (waiting(2),)}
    assert odd_one(nodes) == ("b", lost)


def test_no_worker_stands_apart() -> None:
    assert odd_one({"a": (waiting(0),), "b": (waiting(1),)}) is None
    assert odd_one({"a": (loading(0),), "b": (loading(1),)}) is None
    assert odd_one({}) is None


def test_a_worker_alone_is_the_odd_one_only_if_it_is_alone() -> None:
    assert odd_one({"a": (loading(0),)}) == ("a", loading(0))
    assert odd_one({"a": (loading(0),)}, are_all=False) is None


def test_the_summary_is_bounded() -> None:
    nodes = {f"n{i}": (WorkerStack(i, place=f"f (a.py:{i})"),) for i in range(1_000)}
    text = summary(nodes, [f"silent{i}" for i in range(1_000)])
    assert len(text) < 1_500
    assert "995 elsewhere" in text


@pytest.mark.parametrize("step", [10**30, -(10**30), 7, None])
def test_a_step_of_any_size_can_be_told(step: int | None) -> None:
    """A program may print any number; else its node could not answer at all."""
    told = stack(0, 0, "", step=step, source="")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(told), type=type(told)) == told
    if step is not None:
        assert told.step == max(-STEP_MAX, min(step, STEP_MAX))
