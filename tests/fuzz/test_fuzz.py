"""The fuzzer for a few seconds, and that it would find a fault.

An input that it has found becomes a test of its own, beside what it broke: see docs/fuzzing.md.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from rallypoint.coordinator import response_headers
from rallypoint.coordinator import session as sessions
from rallypoint.coordinator.coordinator import Coordinator
from rallypoint.ledger import keys
from rallypoint.wire import messages as wire
from tests.fuzz import __main__ as fuzz
from tests.fuzz import corpus, live
from tests.fuzz.memory import MemoryTransport
from tests.fuzz.watching import FuzzFailure, Watch, must
from tests.kinds import LONG

SEED = 1


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_no_input_does_harm(target: str) -> None:
    for number in range(3):
        assert fuzz.one_episode(target, SEED, number) > 0


@pytest.mark.parametrize(
    "path", corpus.entries(), ids=lambda path: path.relative_to(corpus.FOLDER).as_posix()
)
def test_the_corpus_does_no_harm(path: Path) -> None:
    corpus.replay(path)


@pytest.mark.verify
@pytest.mark.timeout(0)
@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_no_input_does_harm_in_many_episodes(target: str) -> None:
    for number in range(3, 23 if not LONG else 1_003):
        assert fuzz.one_episode(target, SEED, number) > 0


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="its descriptors are counted in /proc")
def test_no_input_does_harm_at_a_real_process() -> None:
    assert live.run(SEED, 400) >= 400


def test_an_episode_is_the_same_from_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def sent() -> list[bytes]:
        found: list[bytes] = []
        real = MemoryTransport.bring

        def bring(self: MemoryTransport, data: bytes) -> None:
            found.append(data)
            real(self, data)

        with monkeypatch.context() as patched:
            patched.setattr(MemoryTransport, "bring", bring)
            fuzz.one_episode("people", SEED, 3)
        return found

    first = sent()
    assert first == sent()
    assert len(first) > 50


def test_the_fuzzer_continues_where_it_stopped(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    first = fuzz.Fuzzing(["stored", "texts"], SEED, state)
    assert first.go(5_000) == 0
    second = fuzz.Fuzzing(["stored", "texts"], SEED, state)
    assert second.inputs == first.inputs >= 5_000
    assert second.go(first.inputs) == 0
    with pytest.raises(FuzzFailure, match="seed 1"):
        fuzz.Fuzzing(["stored"], SEED + 1, state)


# -- faults that are planted: each must be seen ------------------------------------------------


def found_in(target: str, episodes: int = 3) -> str:
    def all_of_them() -> None:
        for number in range(episodes):
            fuzz.one_episode(target, SEED, number)

    with pytest.raises(FuzzFailure) as failure:
        all_of_them()
    return str(failure.value)


def test_an_exception_of_a_handler_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise KeyError("planted")

    handlers: dict[Any, Any] = sessions._HANDLERS
    monkeypatch.setitem(handlers, wire.StoreCancel, broken)
    text = found_in("nodes")
    assert "planted" in text
    assert f"again: python -m tests.fuzz --target nodes --seed {SEED} --episode" in text


def test_a_session_that_stays_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "rallypoint.coordinator.coordinator.Coordinator.disconnected", lambda self, session: None
    )
    assert "sessions are left" in found_in("nodes")


def test_a_run_that_disturbs_another_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def departing(run: object, session: sessions.Session, *rest: object) -> None:
        assert isinstance(session._host, Coordinator)
        for each in list(session._host.sessions.values()):
            each.close("planted")

    handlers: dict[Any, Any] = sessions._HANDLERS
    monkeypatch.setitem(handlers, wire.Departing, departing)
    assert "honest" in found_in("nodes")


def test_an_undeclared_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_is_number", str.isdigit)
    assert "ValueError" in found_in("stored")


def test_a_ledger_that_asks_without_an_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rallypoint.ledger.etcd.client.range_problem", lambda *arguments: "")
    with pytest.raises(FuzzFailure, match="without an end"):
        corpus.replay(corpus.FOLDER / "etcd" / "keys_the_same_page.json")


def test_a_damaged_file_that_is_no_declared_error_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "rallypoint.ledger.record_format._corrupt", lambda *arguments: KeyError("planted")
    )
    assert "planted" in found_in("folder", episodes=10)


def test_a_release_in_an_answer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(response_headers.HEADERS, "Server", "Python/3.11 aiohttp/3.14")
    assert "no name of ours" in found_in("people")


def test_a_failed_task_that_nobody_awaits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*arguments: object) -> None:
        raise KeyError("planted")

    monkeypatch.setattr("rallypoint.launch.channel.WorkerLink._members", broken)
    assert "planted" in found_in("sides")


def test_a_watch_finds_log_lines_and_lost_tasks() -> None:
    import logging

    async def main(watch: Watch) -> None:
        asyncio.get_running_loop().set_exception_handler(watch.on_loop)
        asyncio.get_running_loop().call_soon(lambda: must(False, "in a callback"))
        await asyncio.sleep(0)

    with Watch() as watch:
        logging.getLogger("rallypoint.anything").error("planted")
        with pytest.raises(FuzzFailure, match="planted"):
            watch.check()
        asyncio.run(main(watch))
        with pytest.raises(FuzzFailure, match="in a callback"):
            watch.check()
        watch.check()
