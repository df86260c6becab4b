"""The native API: worlds come and go, blocks end quietly when they may, and the store is shared."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest

import rallypoint
from rallypoint import ChangeKind, Outcome
from tests.api.adapters import abandon, joined, together

pytestmark = pytest.mark.sockets

# A long last call, and as many nodes expected as there are: a busy machine must not make a round
# of fewer.
FAST = {"last_call_s": 60.0, "scale_up_delay_s": 0.1, "suspect_after_s": 2.0}
TWO = FAST | {"min_nodes": 2, "max_nodes": 2}
ELASTIC = FAST | {"min_nodes": 1, "max_nodes": 3}


def first_worlds(runs: Any) -> list[Any]:
    return sorted(together(*(run.next_world for run in runs)), key=lambda world: world.rank)


def by_rank(runs: Any, worlds: list[Any]) -> list[Any]:
    """The runs in the order of their worlds."""
    return sorted(runs, key=lambda run: next(w.rank for w in worlds if w.node == run.node))


# -- coming ----------------------------------------------------------------------------------------


def test_one_node_alone_has_a_world(api):
    with api.join(None, None) as run:
        for world in run.worlds():
            with world:
                assert (world.rank, world.size, world.nodes, world.local_rank) == (0, 1, 1, 0)
                assert (world.node, world.node_rank, world.local_size) == (run.node, 0, 1)
                assert (world.number, world.term, world.restart_count) == (1, 1, 0)
                assert "rank 0 of 1" in repr(world)
                run.close("done")
        assert (run.closed.outcome, run.closed.reason) == (Outcome.SUCCEEDED, "done")


def test_two_meet_and_share_a_store(api, coordinator):
    def program() -> tuple[int, int]:
        with api.join("job", coordinator, **TWO) as run:
            for world in run.worlds():
                with world:
                    total = world.store.add("n", world.rank + 1)
                    world.barrier("all")
                    if world.rank == 0:
                        run.close("trained")
                    return world.rank, total
        raise AssertionError("no world")

    results = together(program, program)
    assert sorted(rank for rank, _ in results) == [0, 1]
    assert max(total for _, total in results) == 3


def test_members_have_what_they_said_of_themselves(api, coordinator):
    def run(name: str) -> Any:
        return api.join(
            "job",
            coordinator,
            node_name=name,
            local_addr=f"{name}.example",
            labels={"zone": name},
            **TWO,
        )

    with run("node9") as first, run("node10") as second:
        worlds = first_worlds([first, second])
        for world in worlds:
            assert [m.name for m in world.members] == ["node9", "node10"]
            assert [m.addresses for m in world.members] == [("node9.example",), ("node10.example",)]
            assert [m.labels for m in world.members] == [{"zone": "node9"}, {"zone": "node10"}]
            assert [m.workers for m in world.members] == [1, 1]
            assert world.members[0].host
            assert world.bootstrap.host == "node9.example"


def test_a_timeout_says_what_the_run_waits_for(api, coordinator, monkeypatch):
    monkeypatch.setattr("rallypoint.client.node.WHY_TIMEOUT_S", 20.0)  # for the answer why
    with api.join("job", coordinator, join_timeout_s=0.3, **TWO) as run:
        assert (run.run_id, run.closed) == ("job", None)
        assert (run.waiting.ready, run.waiting.minimum) == (0, 2)
        with pytest.raises(rallypoint.JoinTimeoutError, match="1 of 2 nodes ready"):
            run.next_world()


# -- going -----------------------------------------------------------------------------------------


def test_the_others_regroup_when_a_node_leaves(api, coordinator):
    with joined(api, 3, coordinator, **ELASTIC, expected_nodes=3) as runs:
        worlds = first_worlds(runs)
        assert [world.size for world in worlds] == [3, 3, 3]
        stay, go = by_rank(runs, worlds)[:2], by_rank(runs, worlds)[2]
        go.leave("enough")
        again = first_worlds(stay)
        assert [(world.number, world.rank, world.size) for world in again] == [(2, 0, 2), (2, 1, 2)]
        assert [world.change.kind for world in worlds] == [ChangeKind.NODE_LEFT] * 3
        assert worlds[0].change.detail == "enough"
        assert list(go.worlds()) == []


def test_the_others_regroup_when_a_node_is_lost(api, coordinator):
    with joined(api, 3, coordinator, **ELASTIC, expected_nodes=3) as runs:
        worlds = first_worlds(runs)
        stay, gone = by_rank(runs, worlds)[:2], by_rank(runs, worlds)[2]
        heard = threading.Event()
        worlds[0].on_change(lambda change: heard.set())
        abandon(gone)
        assert heard.wait(20)
        assert (worlds[0].change.kind, worlds[0].change.nodes) == (
            ChangeKind.NODE_LOST,
            (gone.node,),
        )
        assert [world.size for world in first_worlds(stay)] == [2, 2]


def test_a_newcomer_is_admitted(api, coordinator):
    with joined(api, 1, coordinator, **ELASTIC, expected_nodes=1) as (first,):
        world = first.next_world()
        assert world.size == 1
        heard = threading.Event()
        world.on_change(lambda change: heard.set())
        with api.join("job", coordinator, **ELASTIC, expected_nodes=1) as second:
            worlds = together(second.next_world, lambda: (heard.wait(20), first.next_world())[1])
            assert sorted(w.rank for w in worlds) == [0, 1]
        assert world.change.kind is ChangeKind.NODES_JOINED


def test_a_close_ends_everybodys_worlds(api, coordinator):
    with joined(api, 2, coordinator, **TWO) as runs:
        worlds = first_worlds(runs)
        close = runs[0].close("trained")
        assert (close.outcome, close.reason, close.by) == (
            Outcome.SUCCEEDED,
            "trained",
            runs[0].node,
        )
        assert [list(run.worlds()) for run in runs] == [[], []]
        assert runs[1].closed == close
        assert runs[1].close("too late") == close
        assert {world.change.kind for world in worlds} == {ChangeKind.CLOSED}
    with pytest.raises(rallypoint.RunClosedError, match="trained") as caught:
        api.join("job", coordinator, **TWO)
    assert caught.value.close == close


def test_a_close_with_a_failure_is_seen_by_all(api, coordinator):
    with joined(api, 1, coordinator, **ELASTIC, expected_nodes=1) as (run,):
        run.next_world()
        assert run.close("diverged", failed=True).outcome is Outcome.FAILED


# -- errors in a block -----------------------------------------------------------------------------


def test_the_programs_own_error_passes_and_the_peers_blocks_end_quietly(api, coordinator):
    def program(fails: bool) -> str:
        with api.join("job", coordinator, **TWO) as run:
            world = run.next_world()
            with world:
                if fails:
                    raise ValueError("a bug")
                world.barrier("never", timeout=50)
            return world.change.kind.value
        raise AssertionError

    def failing() -> str:
        with pytest.raises(ValueError, match="a bug"):
            program(True)
        return "raised"

    assert together(failing, lambda: program(False)) == ["raised", "worker_failed"]


def test_an_error_that_a_loss_explains_ends_the_block(api, coordinator):
    patient = ELASTIC | {"suspect_after_s": 20.0}  # so long an explanation is waited for
    with joined(api, 2, coordinator, **patient, expected_nodes=2) as runs:
        worlds = first_worlds(runs)
        stay, gone = by_rank(runs, worlds)
        abandon(gone)
        with worlds[0]:
            raise ConnectionResetError("Connection reset by peer")
        assert worlds[0].change.kind is ChangeKind.NODE_LOST
        assert worlds[0].change.confirmed
        assert stay.next_world().restart_count == 0


def test_an_error_that_nothing_explains_passes(api, coordinator):
    with joined(api, 1, coordinator, **ELASTIC, expected_nodes=1) as (run,):
        world = run.next_world()
        with pytest.raises(ConnectionResetError), world:
            raise ConnectionResetError("some other service")
        assert run.next_world().restart_count == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exit_that_is_no_error_passes(api, coordinator, kind):
    with joined(api, 2, coordinator, **TWO) as runs:
        worlds = first_worlds(runs)
        runs[1].close("over")
        assert list(runs[0].worlds()) == []
        with pytest.raises(kind), worlds[0]:
            raise kind


def test_a_misuse_is_the_callers_error_and_breaks_nothing(api, coordinator):
    with joined(api, 2, coordinator, **TWO) as runs:
        worlds = first_worlds(runs)
        for misuse in (
            lambda: worlds[0].store.set("k", 5),
            lambda: worlds[0].store.get(5),
            lambda: worlds[0].store.add("k", 2**70),
            lambda: worlds[0].store.multi_set(["a"], []),
            lambda: worlds[0].barrier("b", timeout="soon"),
        ):
            with pytest.raises(rallypoint.UsageError), worlds[0]:
                misuse()
        assert worlds[0].change is None


def test_a_program_that_ends_by_an_error_has_failed(api, coordinator):
    with joined(api, 2, coordinator, **ELASTIC, expected_nodes=2) as runs:
        worlds = first_worlds(runs)
        stay, go = by_rank(runs, worlds)
        with pytest.raises(KeyError), go:
            raise KeyError("lost")
        assert stay.next_world().size == 1
        change = worlds[0].change
        assert change.kind is ChangeKind.WORKER_FAILED
        assert change.nodes == (go.node,)
        assert change.failure.message == "KeyError: 'lost'"


# -- the store and barriers ------------------------------------------------------------------------


def test_the_store_over_the_wire(api, coordinator):
    with joined(api, 2, coordinator, **TWO) as runs:
        one, two = (world.store for world in first_worlds(runs))
        one.set("text", "grün")
        one.set("bytes", bytearray(b"\0\xff"))
        assert (two.get("text"), two.get("bytes")) == ("grün".encode(), b"\0\xff")
        assert (one.add("n", 5), two.add("n", -2)) == (5, 3)
        assert two.compare_set("c", "", "mine") == b"mine"
        assert one.compare_set("c", "", "other") == b"mine"
        one.append("log", "a")
        two.append("log", "b")
        assert one.get("log") == b"ab"
        one.multi_set(["x", "y"], [b"1", "2"])
        assert two.multi_get(["y", "x"]) == [b"2", b"1"]
        assert (two.check(["x", "y"]), two.check(["x", "z"])) == (True, False)
        assert (one.delete_key("x"), one.delete_key("x")) == (True, False)
        assert two.num_keys() == 6
        assert together(lambda: two.get("later"), lambda: one.set("later", b"now"))[0] == b"now"
        with pytest.raises(rallypoint.StoreTimeoutError, match="zz") as caught:
            two.wait(["text", "zz"], timeout=timedelta(milliseconds=50))
        assert (caught.value.missing, caught.value.missing_count) == (("zz",), 1)
        two.set_timeout(timedelta(seconds=0.05))
        assert two.timeout == timedelta(seconds=0.05)
        with pytest.raises(TimeoutError, match="zz"):
            two.get("zz")
        with pytest.raises(rallypoint.StoreError, match="not a 64-bit") as failed:
            one.add("text", 1)
        assert failed.value.code == "not_an_integer"


def test_the_store_ends_with_its_round(api, coordinator):
    with joined(api, 2, coordinator, **TWO) as runs:
        worlds = first_worlds(runs)
        worlds[0].store.set("k", b"old")

        def waiting() -> str:
            with pytest.raises(rallypoint.RoundBrokenError) as caught:
                worlds[1].store.get("never")
            return caught.value.change.kind.value

        def regroup() -> str:
            later = first_worlds([by_rank(runs, worlds)[0]])
            return str(later[0].number)

        def follow() -> str:
            kind = waiting()
            by_rank(runs, worlds)[1].next_world()
            return kind

        assert together(follow, regroup) == ["ready_again", "2"]
        with pytest.raises(rallypoint.RoundBrokenError):
            worlds[0].store.get("k")


def test_a_barrier_that_times_out_names_who_is_missing(api, coordinator):
    with joined(api, 2, coordinator, **TWO) as runs:
        worlds = first_worlds(runs)
        with pytest.raises(rallypoint.StoreTimeoutError) as caught:
            worlds[0].barrier("epoch", timeout=0.1)
        assert caught.value.missing == (worlds[1].node,)
        assert worlds[1].node in str(caught.value)


@pytest.mark.parametrize(
    ("steps", "newest"),
    [
        ((7, 7), rallypoint.Newest(7, (0, 1))),
        ((7, 6), rallypoint.Newest(7, (0,))),
        ((None, 0), rallypoint.Newest(0, (1,))),
        ((-1, None), rallypoint.Newest(None, ())),
    ],
)
def test_all_learn_who_has_the_newest_state(api, coordinator, steps, newest):
    with joined(api, 2, coordinator, **TWO) as runs:
        by_rank = sorted(first_worlds(runs), key=lambda world: world.rank)
        for _ in range(2):  # Each use has keys of its own.
            calls = (
                (lambda world=world, step=step: world.newest(step))
                for world, step in zip(by_rank, steps, strict=True)
            )
            assert together(*calls) == [newest, newest]


def test_the_newest_state_names_who_has_not_called(api, coordinator):
    with joined(api, 2, coordinator, **TWO) as runs:
        worlds = first_worlds(runs)
        with pytest.raises(rallypoint.StoreTimeoutError) as caught:
            worlds[0].newest(3, timeout=0.1)
        assert caught.value.missing == (worlds[1].node,)
        for wrong in (1.5, "3", True, -2):
            with pytest.raises(rallypoint.UsageError, match="a step is a whole number"):
                worlds[0].newest(wrong)


def test_many_threads_call_at_once(api, coordinator):
    with joined(api, 2, coordinator, **TWO) as runs:
        stores = [world.store for world in first_worlds(runs)]

        def adding(store: Any) -> list[int]:
            return [store.add("n", 1) for _ in range(20)]

        seen = together(*(lambda s=store: adding(s) for store in stores for _ in range(8)))
        assert sorted(each for numbers in seen for each in numbers) == list(range(1, 321))


# -- callbacks -------------------------------------------------------------------------------------


def test_a_callback_that_fails_disturbs_nothing(api, coordinator, caplog):
    with joined(api, 2, coordinator, **ELASTIC, expected_nodes=2) as runs:
        worlds = first_worlds(runs)
        called: list[Any] = []
        heard = threading.Event()

        def fail(change: Any) -> None:
            raise ValueError("in a callback")

        worlds[0].on_change(fail)
        worlds[0].on_change(called.append)
        worlds[0].on_change(lambda change: heard.set())
        stay, go = by_rank(runs, worlds)
        go.leave()
        assert heard.wait(20)
        assert [change.kind for change in called] == [ChangeKind.NODE_LEFT]
        assert stay.next_world().size == 1
        late = threading.Event()
        worlds[0].on_change(lambda change: late.set())
        assert late.wait(20)
    assert "in a callback" in caplog.text
