"""What `rallypoint simulate` prints, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rallypoint.cli import simulate
from rallypoint.cli.simulate_options import BY_NAME, OPTIONS, workload_of
from rallypoint.cli.simulate_view import duration, percent
from rallypoint.simulation.fleet.workload import Workload

from .conftest import COMMAND, Cli

Snapshot = Callable[[str, str], None]
SMALL = tuple(
    "simulate --nodes 8 --hours 20 --mtbf-hours 40 --seed 7 --coordinator apart".split()  # noqa: SIM905
)
WRONG = (
    ("--nodes", "many"),
    ("--nodes", "0"),
    ("--nodes", "100000", "--spares", "1"),
    ("--nodes", "8", "--min-nodes", "9"),
    ("--hours", "-1"),
    ("--hours", "0"),
    ("--mtbf-hours", "0"),
    ("--preempt", "130%@3h"),
    ("--preempt", "30%"),
    ("--preempt", "30%@soon"),
    ("--kinds", "host=50%"),
    ("--kinds", "host=50%,meteor=50%"),
    ("--mttr", "-5"),
    ("--start", "x"),
    ("--checkpoint", "0s"),
    ("--save-on-change", "perhaps"),
    ("--peers", "cry"),
    ("--coordinator", "moon"),
    ("--ledger", "paper"),
    ("--ledger", "memory", "--ledger-away", "2m@6h"),
    ("--ledger-away", "2m"),
    ("--rack-mtbf-hours", "9"),
    ("--rack", "1"),
    ("--set", "lost_after"),
    ("--set", "lost_aftr=3"),
    ("--set", "lost_after=1s"),
    ("--set", "lost_after=60s", "--set", "lost-after=61s"),
    ("--set", "orphan=3"),
    ("--set", "nnodes=3"),
    ("--compare", "lost_after=10s"),
    ("--compare", "lost_after=10s,10s"),
    ("--compare", "lost_afte=10s,20s"),
    ("--compare", "kinds=host=100%,process=100%"),
    ("--compare", "nodes=8,x"),
    ("--limit", "soon"),
    ("--trace", "FILE", "--mtbf-hours", "5"),
    ("--trace", "FILE", "--nodes", "1"),
    ("--trace", "nowhere.csv"),
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text("time,node,event\n600,a,down\n1200,a,up\n3000,b,down\n7200,b,up\n")
    return path


def body(cli: Cli, *arguments: str) -> Any:
    done = cli(*arguments, "--json")
    assert (done.code, done.err) == (0, "")
    return json.loads(done.out)


def test_what_it_refuses(cli: Cli, snapshot: Snapshot, trace: Path) -> None:
    said = []
    for arguments in WRONG:
        named = [str(trace) if each == "FILE" else each for each in arguments]
        done = cli("simulate", *named)
        assert (done.code, done.out) == (2, ""), done
        assert "hint: " in done.err
        shown = done.err.replace(str(trace), "FILE")
        said.append(f"$ rallypoint simulate {' '.join(arguments)}\n{shown}")
    snapshot("simulate-errors", "\n".join(said))


def test_what_it_prints(cli: Cli, snapshot: Snapshot) -> None:
    alone = cli(*SMALL)
    compared = cli(*SMALL, "--compare", "spares=0,2")
    snapshot("simulate", f"{alone}\n{compared}")


def test_the_traces_of_the_page_say_the_same(cli: Cli, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/simulate.md").read_text()
    written = re.findall(r"^printf '(.*)' > (\S+)$", page, re.MULTILINE)
    assert len(written) == 2
    told = []
    for text, name in written:
        path = tmp_path / name
        path.write_text(text.replace("\\n", "\n"))
        told.append(body(cli, "simulate", "--trace", str(path), "--nodes", "64", "--hours", "1"))
        assert f"\nrallypoint simulate --trace {name} --nodes 64 --hours 1\n" in page
    assert told[0] == told[1]
    assert told[0]["results"][0]["failures"] == 1


def test_what_a_result_assumes_is_told(cli: Cli, trace: Path) -> None:
    done = cli(*SMALL, "--checkpoint", "never", "--mtbf-hours", "never", "--start", "90s")
    for part in ("8 nodes and 0 spares", "no node fails by itself", "1 min 30 s", "no checkpoints"):
        assert part in done.out, part
    assert "failures are those of the trace" in cli("simulate", "--trace", str(trace)).out


def test_a_run_that_ends_early_says_what_to_set(cli: Cli) -> None:
    done = cli(*SMALL, "--kinds", "worker=100%")
    assert done.code == 0
    assert "the run ended before its time" in done.err
    assert "--set max_restarts=N" in done.err


def test_json_has_the_documented_fields(cli: Cli) -> None:
    found = body(cli, *SMALL)
    page = (Path(__file__).parents[2] / "docs/simulate.md").read_text()
    fields = {*found, *found["results"][0], *found["results"][0]["lost"][0]}
    assert [each for each in sorted(fields) if f"`{each}`" not in page] == []
    assert found["label"].startswith("simulated: the shipped core")
    [result] = found["results"]
    total_s = result["useful_s"] + sum(each["seconds"] for each in result["lost"])
    assert total_s == pytest.approx(result["seconds"]) == 72_000


def test_compared_settings_meet_the_same_failures(cli: Cli) -> None:
    found = body(cli, *SMALL, "--compare", "rank_policy=stable,natural")
    first, second = found["results"]
    assert [each["compared"]["value"] for each in (first, second)] == ["stable", "natural"]
    assert first["failures"] == second["failures"] > 0
    for each in (first, second):
        del each["compared"], each["settings"]
    assert first == second  # The order of ranks does not change what happens.


def test_a_setting_has_its_effect(cli: Cli) -> None:
    found = body(cli, *SMALL, "--kinds", "host=100%", "--compare", "lost_after=10s,30s")
    detect = [
        next(each["seconds"] for each in result["lost"] if each["cause"] == "detect")
        for result in found["results"]
    ]
    assert detect[0] < detect[1] / 2
    assert found["results"][0]["settings"] == {"lost_after_s": 10.0}


def test_a_trace_is_played(cli: Cli, trace: Path) -> None:
    [result] = body(cli, "simulate", "--trace", str(trace), "--min-nodes", "1")["results"]
    assert (result["nodes"], result["failures"], result["seconds"]) == (2, 2, 7_200)
    assert result["breaks"]["node_lost"] == 2


def test_the_limit_ends_it_with_what_is_known(cli: Cli) -> None:
    done = cli(*SMALL, "--limit", "0s", "--json")
    [result] = json.loads(done.out)["results"]
    assert done.code == 0
    assert not result["is_whole"]
    assert result["seconds"] < 72_000
    assert "--limit 0 s has passed" in done.err


def test_ctrl_c_prints_what_is_known(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    kill = os.kill

    class Interrupted(simulate._Watch):
        def of(self, which: str, workload: Workload) -> Callable[[float, int], bool]:
            go_on = super().of(which, workload)

            def look(at_s: float, rounds: int) -> bool:
                kill(os.getpid(), signal.SIGINT)
                return go_on(at_s, rounds)

            return look

    monkeypatch.setattr(simulate, "_Watch", Interrupted)
    done = cli(*SMALL, "--json")
    assert done.code == 128 + signal.SIGINT
    assert not json.loads(done.out)["results"][0]["is_whole"]


@pytest.mark.processes
def test_one_seed_gives_one_result_whatever_the_hash_seed() -> None:
    made = []
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [*COMMAND, *SMALL, "--preempt", "30%@3h", "--coordinator-mtbf-hours", "5", "--json"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE,
            timeout=120,
            check=True,
        )
        made.append(done.stdout)
    assert made[0] == made[1]


@pytest.mark.processes
def test_other_commands_do_not_load_it() -> None:
    code = (
        "import sys; from rallypoint.cli import main; "
        "print([m for m in sys.modules if m.startswith('rallypoint.simulation')])"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60)
    assert done.stdout.strip() == b"[]"


def test_every_option_of_the_job_sets_a_field_of_its_own() -> None:
    fields = [each.field for each in OPTIONS]
    assert sorted(fields) == sorted(Workload.__struct_fields__)
    assert len(BY_NAME) == len(OPTIONS)


def test_bursts_are_once_or_again_and_again() -> None:
    found = workload_of({"preempt": "30%@3h,0.05/90m", "ledger-away": "2m@6h"})
    assert [(b.amount, b.at_s, b.every_s) for b in found.preemptions] == [
        (0.3, 10_800.0, float("inf")),
        (0.05, 5_400.0, 5_400.0),
    ]
    assert found.outages[0].amount == 120.0


def test_times_and_shares_for_people() -> None:
    texts = [duration(each) for each in (0.012, 5.25, 61, 7_261)]
    assert texts == ["12 ms", "5.2 s", "1 min 1 s", "2 h 1 min"]
    assert [percent(each) for each in (0.934, 0.0012, 0.0)] == ["93.4%", "0.12%", "0.0%"]
