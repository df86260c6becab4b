"""`python -m rallypoint.simulation`: one seed, a state, a smaller plan, and runs that go on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from rallypoint.core.store.store import RoundStore
from rallypoint.simulation import seeds
from rallypoint.simulation.__main__ import main
from rallypoint.simulation.plan import Plan
from rallypoint.simulation.seeds import Progress

COUNTS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from rallypoint.simulation import __main__ as command, seeds
seeds.SLICE = 1
add = seeds.Progress.add
def told(progress, done):
    add(progress, done)
    print("a slice", flush=True)
seeds.Progress.add = told
if __name__ == "__main__":
    sys.exit(command.main(sys.argv[1:]))
"""
PLAN = '{"nodes":2,"min_nodes":2,"faults":[{"at_s":20.0,"kind":"cut","chance":1}]}'
"""Its fault keeps the world going for 20 s."""


def test_one_seed_is_told_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3", "--plan", PLAN, "--last", "0"]) == 0
    printed = capsys.readouterr().out
    heads = next(line for line in printed.splitlines() if "step    time s" in line)
    formed = next(line for line in printed.splitlines() if "is rank 0 in (1, 1)" in line)
    assert heads.split() == ["step", "time", "s", "world", "place", "0", "place", "1"]
    assert formed.index("is rank 0") in (heads.index("place 0"), heads.index("place 1"))
    assert "no problem" in printed
    marks = {line.partition("  ")[0] for line in printed.splitlines()}
    assert marks >= {"step", "time s", "place N", "FAULT x", "END OF x", "PEACE", "BROKEN x"}
    assert "FAULT cut          Something on the way resets one of its connections." in printed
    assert shlex.split(printed.splitlines()[-1])[-3:] == ["3", "--plan", PLAN]


def test_the_state_at_a_step_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3", "--plan", PLAN, "--at", "500"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("step 500, ")
    for what in ("node: ", "coordinator of node-", "lease ", "session ", "timers", "RunRegister"):
        assert what in printed, what


def test_a_failing_plan_is_made_smaller(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    apply = RoundStore.apply

    def broken(store: RoundStore, node: str, request_id: int, *rest: object) -> object:
        assert request_id < 3, "a planted bug"
        return apply(store, node, request_id, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(RoundStore, "apply", broken)
    assert main(["--seed", "3", "--plan", PLAN.replace("{", '{"ends":true,', 1), "--shrink"]) == 1
    printed = capsys.readouterr().out
    assert "PROBLEM unread: " in printed
    command = shlex.split(printed.splitlines()[-1])
    plan = msgspec.json.decode(command[-1], type=Plan)
    assert plan.faults == ()
    assert plan.nodes == 1
    assert main(command[3:]) == 1
    assert "a planted bug" in capsys.readouterr().out


def test_a_run_over_seeds_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "seeds.json"
    assert main(["--seeds", "0:3", "--jobs", "1", "--state", str(path)]) == 0
    assert capsys.readouterr().out.startswith("3 of 3 seeds played, from 0 on: 0 with problems; ")
    first = msgspec.json.decode(path.read_bytes(), type=Progress)
    assert main(["--seeds", "0:5", "--jobs", "1", "--state", str(path)]) == 0
    second = msgspec.json.decode(path.read_bytes(), type=Progress)
    assert (first.next, second.next) == (3, 5)
    assert second.steps > first.steps > 0
    assert second.played == {second.code: 5}
    assert main(["--seeds", "1:5", "--jobs", "1", "--state", str(path)]) == 2
    assert "hint: " in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
@pytest.mark.parametrize(("found", "code"), [(["R7: broken"], 1), ([], 130)])
def test_an_interrupted_run_tells_what_it_has_found(
    number: signal.Signals,
    found: list[str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(seeds, "SLICE", 1)
    # Where these tests run in the background, SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    of_term = signal.getsignal(signal.SIGTERM)

    def play(seed: int) -> tuple[list[str], int]:
        if seed == 2:
            signal.raise_signal(number)
        return (found if seed == 1 else [], 10)

    monkeypatch.setattr(seeds, "play", play)
    try:
        assert main(["--seeds", "0:9", "--jobs", "1"]) == code
    finally:
        signal.signal(signal.SIGINT, before)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"2 of 9 seeds played, from 0 on: {len(found)} with problems; ")
    assert signal.getsignal(signal.SIGTERM) is of_term


@pytest.mark.processes
def test_a_run_on_several_processes_is_interrupted() -> None:
    """By Ctrl-C, which all processes of a terminal get."""
    process = subprocess.Popen(
        [sys.executable, "-c", COUNTS, "--seeds", "0:100000", "--jobs", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "a slice\n"
        os.killpg(process.pid, signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, errors) == (130, "")
    assert " of 100,000 seeds played, from 0 on: 0 with problems; " in out


@pytest.mark.processes
def test_other_processes_never_see_ctrl_c() -> None:
    """Not even while they start: a KeyboardInterrupt would end one in the middle of an import."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with seeds.processes(1) as pool:
            assert pool.apply(signal.getsignal, (signal.SIGINT,)) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_over_seeds_stops_after_its_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(seeds, "SLICE", 1)
    monkeypatch.setattr(seeds, "play", lambda seed: ([], 10))
    assert main(["--seeds", "0:9", "--jobs", "1", "--seconds", "0"]) == 0
    assert capsys.readouterr().out.startswith("1 of 9 seeds played, ")


def test_digests_tell_histories_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "2:4", "--jobs", "1", "--digests"]) == 0
    (two, three) = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert main(["--seeds", "3:4", "--jobs", "1", "--digests"]) == 0
    assert capsys.readouterr().out.split() == three
    assert two[0] == "2"
    assert two[1] != three[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--seeds", "2", "--at", "5"], "--at goes with --seed"),
        (["--seeds", "2", "--shrink"], "--shrink goes with --seed"),
        (["--seed", "2", "--digests"], "--digests goes with --seeds"),
        (["--seeds", "2", "--digests", "--state", "x"], "leave out --state"),
        (["--seeds", "2", "--digests", "--seconds", "1"], "leave out --state, --seconds"),
        (["--seed", "2", "--seconds", "1"], "--seconds goes with --seeds"),
        (["--seed", "2", "--at", "5", "--shrink"], "leave one out"),
        (["--seeds", "2", "--jobs", "0"], "--jobs is at least 1"),
        (["--seeds", "2", "--state", "/no/such/folder/x"], "no folder '/no/such/folder'"),
        (["--seed", "2", "--at", "-1"], "not negative"),
        (["--seed", "2", "--plan", '{"nodes":2,"min_nodes":3}'], "min_nodes 1 to 2"),
        (["--seed", "2", "--plan", '{"nodes":2,"min_nodes":1,"ledger":"x"}'], "ledger is 'x'"),
        (["--seed", "2", "--plan", '{"nodes":2,"min_nodes":1,"hosts":"no"}'], "replicas is at"),
        (["--seed", "2", "--plan", PLAN.replace('"kind":"', '"kind":"x')], "there is no fault 'x"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_the_end_of_a_history_and_a_seed_without_a_problem_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--seed", "3", "--plan", PLAN, "--at", "99999999"]) == 0
    assert "steps; this is its end" in capsys.readouterr().out
    assert main(["--seed", "3", "--plan", PLAN, "--shrink"]) == 0
    assert "seed 3 has no problem" in capsys.readouterr().out
