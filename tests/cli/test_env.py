"""`rallypoint env`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rallypoint.memory import MemoryLimit
from rallypoint.settings import SETTINGS
from rallypoint.settings.table import USUAL
from tests.environments.recorded import pod, slurm_task

from .conftest import Cli


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A default that is not this machine's."""
    found = MemoryLimit(3 * 1024**3, "half of a machine")
    monkeypatch.setattr("rallypoint.cli.env.default_budget", lambda **which: found)


def test_the_defaults_are_shown(cli: Cli, snapshot: Callable[[str, str], None]) -> None:
    snapshot("env-defaults", str(cli("env", "--all")))


def test_settings_for_experts_are_shown_if_they_are_set(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = cli("env")
    count = len(SETTINGS) - len(USUAL)
    assert len(usual.out.splitlines()) == 1 + len(USUAL)
    assert f"{count} more settings, for experts, have their defaults: see --all" in usual.err
    assert "mass_min" not in usual.out
    monkeypatch.setenv("RALLYPOINT_MASS_MIN", "7")
    assert "how many nodes may be missing before it counts as an outage" in cli("env").out


def test_a_variable_that_is_no_setting_is_named_with_the_nearest_one(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RALLYPOINT_LASTCALL", "3")
    monkeypatch.setenv("RALLYPOINT_XYZZY", "3")
    monkeypatch.setenv("RALLYPOINT_TEST_ETCD", "etcd")
    monkeypatch.setenv("RALLYPOINT_MAX_NODES", "3")  # as in a worker
    for options in ([], ["--json"]):
        done = cli("env", *options)
        warned = [line for line in done.err.splitlines() if "is no setting" in line]
        assert [line.partition("warning: ")[2] for line in warned] == [
            "RALLYPOINT_LASTCALL is set, and is no setting: did you mean RALLYPOINT_LAST_CALL?",
            "RALLYPOINT_XYZZY is set, and is no setting",
        ]
        assert done.code == 0


def test_each_usual_setting_exists_and_each_setting_says_what_it_does() -> None:
    assert {each.name for each in SETTINGS} >= USUAL
    assert all(each.help for each in SETTINGS)


def test_each_setting_shows_its_source(
    cli: Cli, snapshot: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RALLYPOINT_ENDPOINT", "http://node0:80")
    monkeypatch.setenv("RALLYPOINT_RUN_ID", "job [red]42")
    monkeypatch.setenv("RALLYPOINT_NNODES", "2:4")
    monkeypatch.setenv("RALLYPOINT_TOKEN", "hunter2")
    monkeypatch.setenv("RALLYPOINT_LAST_CALL", "2m")
    snapshot("env-set", str(cli("env")))


def test_settings_may_be_json(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RALLYPOINT_NNODES", "2:4")
    rows = json.loads(cli("env", "--json").out)
    assert [each["name"] for each in rows] == [each.name for each in SETTINGS]
    (nnodes,) = [each for each in rows if each["name"] == "nnodes"]
    assert nnodes["value"] == "2:4"
    assert nnodes["source"] == "environment RALLYPOINT_NNODES"


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_the_token_is_never_shown(
    cli: Cli, option: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_text("hunter2\n")
    monkeypatch.setenv("RALLYPOINT_TOKEN", "hunter3")
    monkeypatch.setenv("RALLYPOINT_TOKEN_FILE", str(path))
    done = cli("env", *option)
    assert "hunter" not in str(done)
    assert "set" in done.out


def test_an_unreadable_setting_is_shown_with_the_rest(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RALLYPOINT_NNODES", "4:2")
    monkeypatch.setenv("RALLYPOINT_TOKEN_FILE", "/nonexistent")
    done = cli("env", "--all")
    assert done.code == 2
    assert len(done.out.splitlines()) == 1 + len(SETTINGS)
    assert "RALLYPOINT_NNODES must be MIN:MAX with MIN not above MAX" in done.err
    assert "cannot read token file '/nonexistent'" in done.err


def start_as(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in environ.items():
        monkeypatch.setenv(name, text)


def test_what_the_launcher_says_has_its_variables(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    switches = {"SLURM_TOPOLOGY_ADDR": "s0.n2", "SLURM_TOPOLOGY_ADDR_PATTERN": "switch.node"}
    start_as(slurm_task(1) | switches, monkeypatch)
    monkeypatch.setenv("RALLYPOINT_NODE_NAME", "mine")
    rows = {each["name"]: each for each in json.loads(cli("env", "--json").out)}
    shown = {name: (rows[name]["value"], rows[name]["source"]) for name in ("nnodes", "node_name")}
    assert shown == {
        "nnodes": ("4", "launcher Slurm: SLURM_STEP_NUM_TASKS"),
        "node_name": ("mine", "environment RALLYPOINT_NODE_NAME"),
    }
    assert rows["run_id"]["value"] == "slurm-2.0"
    assert rows["label topology"]["value"] == "s0"


def test_what_run_would_warn_of_or_refuse_is_told_here_too(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_as(slurm_task(1, nodes=2, per_node=2), monkeypatch)
    start_as({"PET_MAX_RESTARTS": "3", "PET_RDZV_CONF": "last_call=1"}, monkeypatch)
    done = cli("env", "--json")
    assert done.code == 0
    assert "warning: PET_RDZV_CONF has no effect" in done.err

    monkeypatch.setenv("RALLYPOINT_NPROC_PER_NODE", "2")
    done = cli("env", "--json")
    assert done.code == 2
    assert "several tasks on a node" in done.err
    assert "srun --ntasks-per-node=1" in done.err
    [row] = [each for each in json.loads(done.out) if each["error"]]
    assert (row["name"], row["value"]) == ("nproc_per_node", "2")
    monkeypatch.setenv("RALLYPOINT_NNODES", "1")
    assert cli("env").code == 0


def test_an_interface_that_this_machine_has_not_is_an_error(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RALLYPOINT_INTERFACE", "nope0")
    done = cli("env")
    assert done.code == 2
    assert "interface 'nope0' does not exist on this machine" in done.err
    assert "--interface (RALLYPOINT_INTERFACE)" in done.err
    assert "nope0" in done.out


def test_a_doubt_about_an_outer_agent_is_told_as_run_does(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_as(slurm_task(1) | {"TORCHELASTIC_RUN_ID": "outer"}, monkeypatch)
    done = cli("env")
    assert done.code == 2
    assert "TORCHELASTIC_RUN_ID=outer" in done.err
    assert "unset TORCHELASTIC_RUN_ID" in done.err


def test_what_the_launcher_does_not_say_is_an_error(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_as(pod(1), monkeypatch)
    done = cli("env")
    assert done.code == 2
    assert "does not tell a pod how many pods there are" in done.err
    assert "RALLYPOINT_NNODES" in done.err
    monkeypatch.setenv("RALLYPOINT_LAST_CALL", "soon")
    done = cli("env")
    assert "RALLYPOINT_LAST_CALL must be a duration" in done.err
    assert "correct the variables named" in done.err
