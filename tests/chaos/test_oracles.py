"""The oracles of chaos can fail: each is shown what it must not let pass."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rallypoint.core import store as op
from rallypoint.ledger.contract import Swapped
from rallypoint.ledger.file import FileLedger
from rallypoint.ledger.file.file_system import PosixFileSystem
from tests.chaos import oracles, store_calls
from tests.chaos.attic import Attic
from tests.chaos.faults import Harm
from tests.chaos.program import keep_versions
from tests.failover.records import Story


def lost(node: str, at_s: float) -> Story:
    """Another node was told that this one is lost."""
    event = {"event": "ended", "kind": "node_lost", "nodes": [node], "detail": "", "round": 1}
    return Story("teller", [event | {"at_s": at_s}])


def test_a_node_that_nobody_touched_must_not_be_lost() -> None:
    with pytest.raises(AssertionError, match="R8: a1 was lost in round 1"):
        oracles.only_the_harmed_are_lost([lost("a1", 50.0)], [Harm("n1", 49.0, 51.0, "killed")])


def test_a_node_must_not_be_lost_for_an_old_harm_or_for_a_later_one() -> None:
    for at_s in (9.0, 20.0 + oracles.HARMED_FOR_S + 1):
        with pytest.raises(AssertionError, match="R8"):
            oracles.only_the_harmed_are_lost([lost("a1", at_s)], [Harm("a1", 10.0, 20.0, "cut")])
    oracles.only_the_harmed_are_lost([lost("a1", 21.0)], [Harm("a1", 10.0, 20.0, "cut")])


def test_a_round_must_be_in_the_ledger_as_nodes_have_it() -> None:
    formed: dict[str, Any] = {"event": "formed", "round": 1, "term": 1, "digest": "d", "at_s": 1.0}
    with pytest.raises(AssertionError, match="R5: a1 has round 1"):
        oracles.committed_as_told([Story("a1", [formed])], [])


def test_a_process_must_not_keep_descriptors_or_memory() -> None:
    few, many = oracles.Size({1: (10, 1 << 20)}), oracles.Size({1: (99, 1 << 20)})
    assert oracles.grown(few, few) == ""
    assert "89 more descriptors" in oracles.grown(few, many)
    assert "bytes" in oracles.grown(few, oracles.Size({1: (10, 1 << 30)}))


def calls_of(node: str, *made: tuple[float, float | None, op.StoreOp, object]) -> Story:
    """A worker's calls of round 1: when each began and ended, what it was, and its answer."""
    events: list[dict[str, Any]] = [{"event": "working", "round": 1, "size": 2, "at_s": 0.0}]
    for number, (began_s, ended_s, operation, result) in enumerate(made):
        call = {"round": 1, "pid": 7, "call": number}
        asked = {"event": "called", "at_s": began_s, "operation": msgspec.to_builtins(operation)}
        events.append(call | asked)
        if ended_s is not None:
            answer = {"event": "answered", "at_s": ended_s, "result": msgspec.to_builtins(result)}
            events.append(call | answer)
    return Story(node, events)


class TestStoreCalls:
    def test_two_must_not_both_swap_the_same_value(self) -> None:
        a = calls_of("a1", (1.0, 2.0, op.CompareSet("k", b"", b"a"), b"a"))
        lost = calls_of("a2", (1.0, 2.0, op.CompareSet("k", b"", b"b"), b"a"))
        assert store_calls.check([a, lost]) == (2, 0)
        both = calls_of("a2", (1.0, 2.0, op.CompareSet("k", b"", b"b"), b"b"))
        with pytest.raises(AssertionError, match="R10/R11: round 1, key k: no order explains a1"):
            store_calls.check([a, both])

    def test_a_call_must_not_wait_for_less_than_its_keys(self) -> None:
        keys = ("k/a", "k/b")
        for waits, result in (
            (op.Get("k/a"), b"x"),
            (op.Wait(keys), None),
            (op.MultiGet(keys), [b"x", b"x"]),
        ):
            pair = op.MultiSet(keys, (b"x", b"x"))
            waiting = calls_of("a1", (1.0, 5.0, waits, result))
            store_calls.check([waiting, calls_of("a2", (4.0, None, pair, None))])
            with pytest.raises(AssertionError, match="R10/R11"):
                store_calls.check([waiting, calls_of("a2", (6.0, 7.0, pair, None))])

    def test_a_read_without_an_answer_says_nothing(self) -> None:
        assert store_calls.check([calls_of("a1", (1.0, None, op.Get("k"), None))]) == (0, 0)

    def test_nobody_passes_a_barrier_before_all_have_come(self) -> None:
        first = calls_of("a1", (1.0, 3.0, op.Barrier("b", 0), None))
        store_calls.check([first, calls_of("a2", (2.0, None, op.Barrier("b", 1), None))])
        for others in ([], [calls_of("a2", (4.0, 5.0, op.Barrier("b", 1), None))]):
            with pytest.raises(AssertionError, match=r"R10: a1 has passed b .* ranks \[0\] of 2"):
                store_calls.check([first, *others])

    def test_only_what_shows_the_mistake_is_told(self) -> None:
        early = [(0.1 * at, 0.1 * at + 0.05, op.Set("k", b"%d" % at), None) for at in range(9)]
        wrong = (2.0, 2.1, op.Get("k"), b"other")
        late = (3.0, 3.1, op.Set("k", b"late"), None)
        with pytest.raises(AssertionError, match="other") as failed:
            store_calls.check([calls_of("a1", *early, wrong, late)])
        assert "late" not in str(failed.value)


class TestAttic:
    async def write(self, place: Path, attic: Attic, versions: int) -> None:
        ledger = FileLedger(place)
        await ledger.open()
        version = None
        for number in range(versions):
            swapped = await ledger.swap("runs/job", version, b"%d" % number)
            assert isinstance(swapped, Swapped)
            version = swapped.version
            if number % 4 == 3:
                attic.look()
        await ledger.append("stores/job/1.1.0.1", 0, b"first")
        await ledger.append("stores/job/1.1.0.1", 1, b"second")
        attic.look()
        await ledger.drop_log("stores/job/1.1.0.1")
        await ledger.delete("runs/job", version)
        await ledger.aclose()

    def test_it_has_what_is_not_in_the_ledger_any_more(self, tmp_path: Path) -> None:
        (tmp_path / "kept").mkdir()
        attic = Attic(tmp_path / "ledger", tmp_path / "kept")
        asyncio.run(self.write(tmp_path / "ledger", attic, 40))
        written = attic.written()
        assert not attic.unseen
        heads = [each for each in written if each[0] == "r/runs/job"]
        assert heads == [("r/runs/job", b"%d" % number) for number in range(40)]
        assert [each for each in written if each not in heads] == [
            ("l/stores%2Fjob%2F1.1.0.1/0", b"first"),
            ("l/stores%2Fjob%2F1.1.0.1/1", b"second"),
        ]

    def test_it_says_if_it_has_missed_a_version(self, tmp_path: Path) -> None:
        (tmp_path / "kept").mkdir()
        attic = Attic(tmp_path / "ledger", tmp_path / "kept")
        asyncio.run(self.write(tmp_path / "ledger", attic, 3))
        del attic._kept[next(path for path, each in attic._kept.items() if each.number & 1)]
        attic.written()
        assert len(attic.unseen) == 1
        assert attic.unseen[0].startswith("r/runs/job")

    def test_a_second_name_makes_up_for_a_version_that_was_missed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "kept").mkdir()
        monkeypatch.setattr(PosixFileSystem, "link", PosixFileSystem.link)  # to have it back
        keep_versions(tmp_path / "kept")
        attic = Attic(tmp_path / "ledger", tmp_path / "kept")
        asyncio.run(self.write(tmp_path / "ledger", attic, 40))
        for path in [path for path, each in attic._kept.items() if each.number & 1]:
            del attic._kept[path]
        attic.start()
        attic.stop()
        written = [value for key, value in attic.written() if key == "r/runs/job"]
        assert written == [b"%d" % number for number in range(40)] + [None]
        assert not attic.unseen

    def test_a_version_that_is_being_written_is_read_later(self, tmp_path: Path) -> None:
        (tmp_path / "kept").mkdir()
        attic = Attic(tmp_path / "ledger", tmp_path / "kept")
        asyncio.run(self.write(tmp_path / "ledger", attic, 1))
        path = next(Path(each) for each in attic._kept if "registers" in each)
        whole = attic._kept.pop(str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        attic.look()
        assert str(path) not in attic._kept
        path.write_bytes(whole.value)
        attic.look()
        assert attic._kept[str(path)].value == whole.value
