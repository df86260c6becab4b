"""Programs for tests of whole processes: `python programs.py NAME ENDPOINT [NAME-OF-NODE]`.

Each prints what the test reads, a line at a time.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
import threading
import time
from typing import Any

import rallypoint

OPTIONS: dict[str, Any] = {
    "last_call_s": 60.0,  # so that a busy machine does not make a round of one
    "suspect_after_s": 2.0,
    "min_nodes": 1,
    "max_nodes": 2,
}


def say(*words: object) -> None:
    """In one piece: print writes the end of a line on its own, and another thread comes between."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def join(expected: int | None = 2) -> rallypoint.Run:
    name = sys.argv[3] if len(sys.argv) > 3 else None
    endpoint = sys.argv[2] if sys.argv[2] != "none" else None
    return rallypoint.join("job", endpoint, node_name=name, expected_nodes=expected, **OPTIONS)


def peer() -> None:
    """Say what happens to the round, and how quickly it was known."""
    with join() as run:
        world = run.next_world()
        assert world is not None
        say("met", world.size)
        while not world.change:
            time.sleep(0.005)
        say(world.change.kind, *world.change.nodes, world.change.detail)
        sys.stdin.readline()
        if run.closed is None:
            run.close("seen")


def writes_late() -> None:
    """Write a file, and be stopped in the middle, until the round is long over."""
    with join() as run:
        world = run.next_world()
        assert world is not None
        say("met", world.size, world.token)
        try:
            with world.fenced(sys.argv[4]) as file:
                file.write(b"first half")
                say("half")
                sys.stdin.readline()
                file.write(b"second half")
        except rallypoint.FencedError as error:
            say("refused:", error.token, "by", error.owner)


def writes_next() -> None:
    """Write the same file in the round after that."""
    with join() as run:
        for world in run.worlds():
            say("met", world.size, world.token)
            if world.size == 1:
                with world.fenced(sys.argv[4]) as file:
                    file.write(b"by the next round")
                say("written")
                sys.stdin.readline()
                return
            while not world.change:
                time.sleep(0.005)


def forks() -> None:
    """A child that uses the run, and one that does not use it and survives its parent."""
    run = join()
    say("joined")
    world = run.next_world()
    assert world is not None
    world.should_yield(0)
    user = os.fork()
    if not user:
        for use in (
            run.next_world,
            run.leave,
            # Nobody would tell it the step at which to stop.
            lambda: world.should_yield(1),
            lambda: world.store.add("n", 1),
            lambda: run.waiting,
        ):
            began_s = time.monotonic()
            try:
                use()
            except rallypoint.ForkedProcessError as error:
                say("refused", time.monotonic() - began_s < 20, "process that joined" in str(error))
        say("known", world.rank, world.change, run.closed)
        os._exit(0)
    os.waitpid(user, 0)
    child = os.fork()
    if not child:
        say("child", os.getpid())
        time.sleep(600)
    time.sleep(600)


def forks_unseen() -> None:
    """A child that C code forks without Python's fork hooks, and that survives its parent."""
    run = join()
    say("joined")
    assert run.next_world() is not None
    child = ctypes.PyDLL(None).fork()
    if child:
        say("child", child)
    time.sleep(600)


def fork_exits() -> None:
    """Children that end in every way, within the blocks of the parent."""
    with join(1) as run:
        world = run.next_world()
        assert world is not None
        with world:
            for how in ("exit", "return", "error"):
                child = os.fork()
                if child:
                    say(how, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                elif how == "exit":
                    sys.exit(7)
                elif how == "return":
                    break
                else:
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                    raise ValueError("the child's own")
            else:
                say("still", world.change, world.store.add("n", 1))
                run.close("done")


def double(number: int) -> int:
    return 2 * number


def pool() -> None:
    """A data loader: processes made by fork while the run is on."""
    with join(1) as run:
        world = run.next_world()
        assert world is not None
        with world, multiprocessing.get_context("fork").Pool(2) as workers:
            say(*workers.map(double, range(5)))
            say(world.store.add("n", 1), world.change)
            run.close("done")


def child_joins() -> None:
    """A child may be a node of its own."""
    with join(1) as run:
        run.next_world()
        child = os.fork()
        if not child:
            with rallypoint.join("other", None) as own:
                world = own.next_world()
                assert world is not None
                say("child", world.size, world.store.add("n", 1))
            sys.exit(0)
        say("exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        run.close("done")


def say_when_waiting() -> None:
    """Once the main thread is where it will stay: a signal before that meets something else."""
    main = threading.main_thread().ident
    while True:
        frame = sys._current_frames().get(main or 0)
        while frame is not None:
            if frame.f_code.co_name == "result":
                say("waiting")
                return
            frame = frame.f_back
        time.sleep(0.01)


def waits() -> None:
    """Wait for what never comes, until Ctrl-C."""
    run = join()
    world = run.next_world()
    assert world is not None
    threading.Thread(target=say_when_waiting, daemon=True).start()
    try:
        world.store.get("never")
    except KeyboardInterrupt:
        say("interrupted")
    say(world.store.add("n", 1))
    run.leave("interrupted")
    run.aclose()


def ends_alone() -> None:
    """The same without a peer."""
    ends(1)


def ends(expected: int = 2) -> None:
    """End without a word."""
    run = join(expected)
    say("joined")
    assert run.next_world() is not None


def callbacks() -> None:
    """Call Rallypoint from its own thread."""
    with join(1) as run:
        world = run.next_world()
        assert world is not None

        def call_back(change: rallypoint.Change) -> None:
            try:
                run.next_world()
            except rallypoint.UsageError as error:
                say("refused", "callback" in str(error))

        world.on_change(call_back)
        run.close("done")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
