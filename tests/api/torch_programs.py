"""Programs that use a World's store as torch's: `python torch_programs.py NAME ENDPOINT NODE ...`.

Under `rallypoint run` they are called with NAME alone. Each prints what the test reads.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from datetime import timedelta
from typing import Any

import rallypoint

assert "torch" not in sys.modules

OPTIONS: dict[str, Any] = {"last_call_s": 120.0, "scale_up_delay_s": 0.0}


def say(*words: object) -> None:
    """In one piece: print writes the end of a line on its own, and another thread comes between."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def join(**more: Any) -> rallypoint.Run:
    if len(sys.argv) == 2:
        return rallypoint.join()
    endpoint, node = sys.argv[2:4]
    return rallypoint.join("job", endpoint, node_name=node, **{**OPTIONS, **more})


def world_of(run: rallypoint.Run) -> rallypoint.World:
    world = run.next_world()
    assert world is not None
    return world


def reduced(world: rallypoint.World) -> float:
    """The sum of all ranks plus one, by gloo over the world's store. Nothing else is kept of it."""
    import torch
    import torch.distributed as dist

    dist.init_process_group(
        "gloo",
        store=world.store,
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(seconds=120),
    )
    numbers = torch.tensor([world.rank + 1.0])
    dist.all_reduce(numbers)
    # A group that is made later uses the store again, from torch's side.
    group = dist.new_group(list(range(world.size)))
    dist.all_reduce(numbers, group=group)
    dist.barrier()
    dist.destroy_process_group()
    return float(numbers.item())


def regroups() -> None:
    """Reduce in the first world, end it for all, and reduce in the next one."""
    with join(min_nodes=2, max_nodes=2) as run:
        first = world_of(run)
        say("one", first.rank, first.size, reduced(first))
        first.barrier("one is over", 120)
        second = world_of(run)
        say("two", second.rank, second.size, second.number > first.number, reduced(second))
        second.barrier("two is over", 120)
        if second.rank == 0:
            run.close("seen")


def reduces() -> None:
    """Reduce once. One worker of the first round fails then."""
    with join(min_nodes=2, max_nodes=2) as run:
        world = world_of(run)
        say("round", world.number, "sum", reduced(world))
        if world.number == 1 and world.rank == 1:
            raise ValueError("bad batch")


def waits() -> None:
    """Wait for a peer that never comes to the process group: in C++, and the round ends."""
    import torch.distributed as dist

    with join(min_nodes=2, max_nodes=2) as run:
        world = world_of(run)
        if world.rank == 1:
            say("met")
            sys.stdin.readline()
            run.leave("it had enough")
            sys.stdin.readline()
            return
        errors: list[BaseException] = []

        def wait_in_a_thread() -> None:
            try:
                dist.PrefixStore("a/b", world.store).get("what nobody writes")
            except BaseException as error:  # noqa: BLE001 - told below
                errors.append(error)

        thread = threading.Thread(target=wait_in_a_thread)
        thread.start()
        say("met")
        with world:
            try:
                dist.init_process_group("gloo", store=world.store, rank=0, world_size=2)
            except Exception as broken:
                say(isinstance(broken, rallypoint.RoundBrokenError), str(broken).splitlines()[0])
                raise
        say("explained", world.change is not None)
        thread.join()
        (error,) = errors
        say(
            isinstance(error, rallypoint.RoundBrokenError),
            isinstance(error, dist.DistStoreError),
            str(error).splitlines()[0],
        )


def kinds() -> None:
    """What the store is, before and after torch is imported."""
    with join(min_nodes=1, max_nodes=1) as run:
        world = world_of(run)
        plain = world.store
        plain.set_timeout(7)
        say("plain", type(plain) is rallypoint.Store, world.store is plain, "torch" in sys.modules)
        plain.set("before", "value")
        import torch.distributed as dist

        store = world.store
        say(
            "both",
            isinstance(store, rallypoint.Store),
            isinstance(store, dist.Store),
            world.store is store,
            store.timeout,
        )
        say(store.get("before"), plain.get("before"))
        say(store.add("n", 2), store.compare_set("c", "", "x"), store.check(["c"]))
        store.append("a", b"1")
        store.append("a", "2")
        store.multi_set(["p", "q"], [b"1", "2"])
        say(store.multi_get(["a", "p", "q"]), store.num_keys(), store.delete_key("p"))
        store.wait(["a"])
        store.set_timeout(0.1)
        try:
            store.wait(["nothing"])
        except rallypoint.StoreTimeoutError as error:
            say(isinstance(error, dist.DistStoreError), error.missing)
        try:
            store.wait(["nothing"], 0.2)
        except TimeoutError as error:
            say("0.2 s" in str(error) or "nothing" in str(error))
        for wrong in (5, None, 1.5):
            try:
                store.set("k", wrong)  # type: ignore[arg-type]
            except rallypoint.UsageError as error:
                say(type(error).__name__)
        try:
            store.multi_set(["p"], [])
        except rallypoint.UsageError as error:
            say(error.message)
        prefixed = dist.PrefixStore("p", store)
        prefixed.set_timeout(timedelta(seconds=9))
        say(store.timeout, prefixed.underlying_store is store)
        # torch's C++ alone holds the store now.
        del store, world
        gc.collect()
        prefixed.set("k", b"v")
        say(prefixed.clone().get("k"), plain.get("p/k"))


if __name__ == "__main__":
    globals()[sys.argv[1]]()
