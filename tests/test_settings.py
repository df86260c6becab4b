"""Settings: what is accepted, what is refused and how, and which source wins."""

from __future__ import annotations

import base64
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rallypoint import settings
from rallypoint.core.values import RunSettings
from rallypoint.errors import PlatformError, UsageError
from rallypoint.settings import NodeRange, NodeSettings, parse_endpoint

# -- reading text --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1.5", 1.5),
        ("90", 90),
        ("0", 0),
        (".5s", 0.5),
        ("2m", 120),
        ("500ms", 0.5),
        ("1h", 3600),
        (" 3 s ", 3),
        ("2w", 1_209_600),
    ],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert settings.parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "1y", "1e9", "s", "1,5", "1m30s", "٣"])
def test_a_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        settings.parse_duration_s(text)


def test_numbers_of_nodes_are_read() -> None:
    assert settings.parse_nnodes("4") == NodeRange(4, 4)
    assert settings.parse_nnodes("2:4") == NodeRange(2, 4)
    assert [str(NodeRange(4, 4)), str(NodeRange(2, 4))] == ["4", "2:4"]


@pytest.mark.parametrize("text", ["", "0", "4:2", "0:2", "a", "2:", ":2", "1:2:3", "-1", "1.5"])
def test_numbers_of_nodes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        settings.parse_nnodes(text)


# -- the settings --------------------------------------------------------------------------------


def test_an_argument_wins_over_the_environment_and_that_over_the_default() -> None:
    environ = {"RALLYPOINT_LAST_CALL": "2m"}
    given = settings.resolve("last_call_s", 7.0, environ)
    assert (given.value, given.source) == (7.0, "argument")
    read = settings.resolve("last_call_s", None, environ)
    assert (read.value, read.source) == (120.0, "environment RALLYPOINT_LAST_CALL")
    default = settings.resolve("last_call_s", None, {})
    assert (default.value, default.source) == (RunSettings().last_call_s, "default")


def test_an_empty_variable_counts_as_not_set() -> None:
    assert settings.resolve("nnodes", None, {"RALLYPOINT_NNODES": ""}).source == "default"


def test_a_setting_is_known_by_its_name_with_and_without_unit() -> None:
    assert settings.setting("last-call") is settings.setting("last_call_s")
    with pytest.raises(UsageError, match="no setting 'nonsense'"):
        settings.setting("nonsense")


_BAD = {
    "check": " ",
    "endpoint": "host:0",
    "run_id": " x",
    "nnodes": "4:2",
    "expected_nodes": "many",
    "nproc_per_node": "0",
    "node_name": "a\nb",
    "local_addr": "host:1",
    "interface": "a b",
    "node_index": "-1",
    "port_range": "2:1",
    "token_file": "\0",
    "tls_ca": "\0",
    "tls_cert": "\0",
    "tls_key": "\0",
    "client_ca": "\0",
    "token": "two words",
    "host_coordinator": "maybe",
    "log_dir": "\0",
    "hang": "step=(",
    "audit": "\0",
    "token_memory": "1",
    "max_restarts": "-1",
    "mass_min": "x",
    "etcd_password": "a\nb",
    "candidates": "0",
    "mass_fraction": "1.1",
    "rank_policy": "best",
}


@pytest.mark.parametrize("setting", settings.SETTINGS, ids=lambda each: each.name)
def test_a_variable_that_cannot_be_read_is_named(setting: settings.Setting) -> None:
    bad = _BAD.get(setting.name, "soon")
    with pytest.raises(UsageError) as caught:
        settings.resolve(setting.name, None, {setting.variable: bad})
    assert caught.value.message.startswith(setting.variable)
    assert caught.value.hint


def test_every_field_of_the_run_is_a_setting_with_its_own_default() -> None:
    for field in RunSettings.__struct_fields__:
        if field not in ("min_nodes", "max_nodes"):
            setting = settings.setting(field)
            assert setting.default == getattr(RunSettings(), field)
            assert setting.variable == f"RALLYPOINT_{field.removesuffix('_s').upper()}"


def test_names_and_variables_are_each_used_once() -> None:
    assert len({each.name for each in settings.SETTINGS}) == len(settings.SETTINGS)
    assert len({each.variable for each in settings.SETTINGS}) == len(settings.SETTINGS)


# -- the token -----------------------------------------------------------------------------------


def test_the_token_comes_from_a_file_before_the_environment(tmp_path: Path) -> None:
    given, named = tmp_path / "given", tmp_path / "named"
    given.write_text("  one \nnot this\n")
    named.write_text("two")
    environ = {"RALLYPOINT_TOKEN_FILE": str(named), "RALLYPOINT_TOKEN": "three"}
    assert settings.resolve_token(str(given), environ).value == "one"
    assert settings.resolve_token(None, environ).value == "two"
    assert settings.resolve_token(None, {"RALLYPOINT_TOKEN": "three"}).value == "three"
    assert settings.resolve_token(None, {}).value == ""


@pytest.mark.parametrize(
    "token", [b"", b"\n", b"two words", b"\xff\xfe", "tök".encode(), b"x" * 513, b"a\x00b"]
)
def test_a_bad_token_file_is_refused_without_showing_the_token(
    tmp_path: Path, token: bytes
) -> None:
    path = tmp_path / "token"
    path.write_bytes(token)
    with pytest.raises(UsageError) as caught:
        settings.resolve_token(str(path), {})
    assert str(path) in caught.value.message
    for word in ("words", "xxxx", "tök"):
        assert word not in str(caught.value)


def test_a_token_of_the_greatest_length_is_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("x" * 512 + "\n")
    assert settings.resolve_token(str(path), {}).value == "x" * 512


def test_a_missing_token_file_is_refused_with_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        settings.resolve_token(str(tmp_path / "none"), {})


def test_a_token_is_never_shown() -> None:
    resolved = settings.resolve_token(None, {"RALLYPOINT_TOKEN": "hunter2"})
    node = NodeSettings(run_id="a", token="hunter2")
    assert resolved.shown == "set"
    assert "hunter2" not in repr(resolved) + str(resolved) + repr(node) + str(node)


def test_a_file_readable_by_others_causes_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("x")
    path.chmod(0o600)
    assert not settings.is_readable_by_others(str(path))
    path.chmod(0o640)
    assert settings.is_readable_by_others(str(path))
    assert not settings.is_readable_by_others(str(tmp_path / "none"))


def test_tokens_as_they_are_drawn_are_strong_enough() -> None:
    # From a seed: of 50,000 draws with 22 characters, one has no capital or only capitals. It looks
    # as if it were of 36 characters and not of 64, and is refused.
    chance = random.Random(7)
    for _ in range(500):
        short, long = chance.randbytes(16), chance.randbytes(32)
        for drawn in (_base64(short), short.hex(), _base64(long)):
            settings.check_token_strength(drawn)


def _base64(secret: bytes) -> str:
    """As secrets.token_urlsafe writes it."""
    return base64.urlsafe_b64encode(secret).rstrip(b"=").decode()


WEAK = ["a", "hunter2", "x" * 512, "abcdefg" * 20, "0123456789abcdef0123456789abcde", "Ab1" * 100]
WEAK += ["1234567890" * 3, "correct-horse", "VQ2t9qk0X5cM1sB7nJ4eR"]


@pytest.mark.parametrize("token", WEAK)
def test_a_weak_token_is_refused_where_others_reach_the_port(token: str) -> None:
    with pytest.raises(UsageError, match="128 bits") as caught:
        settings.check_token_strength(token)
    assert "token_urlsafe(32)" in caught.value.hint
    assert repr(token) not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "host_coordinator", "is_refused"),
    [
        ("node0:1", "auto", True),
        ("10.0.0.1:1", "yes", True),
        ("etcd://e:1", "auto", True),
        ("file:///shared/x", "auto", True),
        ("node0:1", "no", False),
        ("127.0.0.1:1", "auto", False),
        ("localhost:1", "auto", False),
        ("http://node0:1", "auto", False),
        (None, "auto", False),
    ],
)
def test_a_node_that_may_host_has_a_strong_token_or_none(
    endpoint: str | None, host_coordinator: str, is_refused: bool
) -> None:
    strong = NodeSettings(
        endpoint=parse_endpoint(endpoint),
        run_id="a",
        token="VQ2t9qk0X5cM1sB7nJ4eRw",
        host_coordinator=host_coordinator,
    )
    if endpoint is None or strong.endpoint.is_loopback:
        settings.check_own_token(strong)
    else:
        with pytest.raises(UsageError, match="names no certificate authority"):
            settings.check_own_token(strong)
    settings.check_own_token(msgspec.structs.replace(strong, insecure=True))
    settings.check_own_token(
        msgspec.structs.replace(strong, token=f"rlp1.{'0' * 64}.VQ2t9qk0X5cM1sB7nJ4eRw")
    )
    node = NodeSettings(
        endpoint=parse_endpoint(endpoint),
        run_id="a",
        token="hunter2",
        host_coordinator=host_coordinator,
    )
    if is_refused:
        with pytest.raises(UsageError, match="128 bits"):
            settings.check_own_token(node)
    settings.check_own_token(NodeSettings(endpoint=node.endpoint, run_id="a"))


# -- a node, a run, a worker ---------------------------------------------------------------------


def test_a_nodes_settings_come_from_arguments_environment_and_defaults() -> None:
    environ = {
        "RALLYPOINT_ENDPOINT": "node0:1",
        "RALLYPOINT_RUN_ID": "theirs",
        "RALLYPOINT_TOKEN": "t",
        "RALLYPOINT_LINGER": "1m",
    }
    node = settings.node_settings(environ=environ, run_id="mine", labels={"rack": "7"})
    assert node.endpoint == parse_endpoint("node0:1")
    assert (node.run_id, node.token, node.linger_s) == ("mine", "t", 60.0)
    assert (node.join_timeout_s, node.labels) == (600.0, {"rack": "7"})


def test_a_run_without_an_endpoint_gets_an_id_of_its_own() -> None:
    ids = {settings.node_settings(environ={}).run_id for _ in range(3)}
    assert len(ids) == 3


def test_a_run_with_an_endpoint_needs_an_id() -> None:
    with pytest.raises(UsageError, match="needs a run id") as caught:
        settings.node_settings(environ={}, endpoint="node0:1")
    assert "--run-id" in caught.value.hint


@pytest.mark.parametrize(
    "bad",
    [
        {"run_id": ""},
        {"run_id": "x" * 257},
        {"run_id": "."},
        {"run_id": ".."},
        {"node_name": "a\n"},
        {"local_addr": "a b"},
        {"interface": "eth0:1"},
        {"interface": "10.0.0.0/33"},
        {"node_index": -1},
        {"node_index": "first"},
        {"port_range": "0:1"},
        {"port_range": "1:65536"},
        {"port_range": "a:b"},
        {"token": "a b"},
        {"host_coordinator": "perhaps"},
        {"join_timeout_s": 0},
        {"join_timeout_s": float("nan")},
        {"coordinator_silence_s": -1.0},
        {"linger_s": float("inf")},
        {"lease_ttl_s": 0.1},
        {"lease_ttl_s": 1_000.0},
        {"candidates": 0},
        {"orphan_s": 0},
        {"labels": {"": "x"}},
        {"labels": {"x": "y" * 300}},
        {"labels": {str(each): "" for each in range(65)}},
        {"labels": {"a": 1}},
        {"labels": {1: "a"}},
        {"labels": {"a": "x\ny"}},
        {"labels": {f"{each:02}": "ü" * 200 for each in range(20)}},
    ],
)
def test_a_nodes_settings_are_checked(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        settings.node_settings(environ={}, **bad)  # type: ignore[arg-type]


def test_an_unknown_argument_is_an_error_of_the_program() -> None:
    with pytest.raises(TypeError, match="no such setting: nonsense"):
        settings.node_settings(environ={}, nonsense=1)
    with pytest.raises(TypeError, match="no such setting: linger_s"):
        settings.run_settings(environ={}, linger_s=1.0)


def test_a_runs_settings_come_from_arguments_environment_and_defaults() -> None:
    environ = {"RALLYPOINT_NNODES": "2:4", "RALLYPOINT_MAX_RESTARTS": "any"}
    run = settings.run_settings(environ=environ, last_call_s="2m", rank_policy="natural")
    assert (run.min_nodes, run.max_nodes, run.max_restarts) == (2, 4, None)
    assert (run.last_call_s, run.rank_policy) == (120.0, "natural")
    assert settings.run_settings(environ={}) == RunSettings()


@pytest.mark.parametrize(
    ("environ", "explicit", "expected"),
    [
        ({}, {"min_nodes": 2}, (2, 2)),
        ({}, {"max_nodes": 3}, (1, 3)),
        ({}, {"min_nodes": 2, "max_nodes": 3}, (2, 3)),
        ({}, {"nnodes": "2:3"}, (2, 3)),
        ({}, {"nnodes": NodeRange(2, 3)}, (2, 3)),
        ({"RALLYPOINT_NNODES": "2:8"}, {"min_nodes": 3}, (3, 8)),
        ({"RALLYPOINT_NNODES": "2:8"}, {"max_nodes": 4}, (2, 4)),
    ],
)
def test_the_number_of_nodes_follows_from_the_settings(
    environ: dict[str, str], explicit: dict[str, Any], expected: tuple[int, int]
) -> None:
    run = settings.run_settings(environ=environ, **explicit)
    assert (run.min_nodes, run.max_nodes) == expected


@pytest.mark.parametrize(
    ("explicit", "told"),
    [
        ({"min_nodes": 3, "max_nodes": 2}, r"max_nodes \(2\) must not be below min_nodes \(3\)"),
        ({"min_nodes": 0}, "min_nodes must be at least 1, not 0"),
        ({"max_nodes": 0}, "max_nodes"),
        ({"expected_nodes": 9}, "expected_nodes"),
        ({"lost_after_s": 1.0}, "lost_after_s"),
    ],
)
def test_impossible_settings_of_a_run_are_the_callers_error(
    explicit: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        settings.run_settings(environ={}, **explicit)


WORKER = {
    "RALLYPOINT_AGENT": "/run/agent.sock",
    "RALLYPOINT_AGENT_SECRET": "hunter2",
    "RALLYPOINT_RUN_ID": "job",
    "RALLYPOINT_NODE": "node0",
    "RALLYPOINT_ROUND": "3",
    "RALLYPOINT_TERM": "1",
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "2",
    "GROUP_WORLD_SIZE": "4",
}


def test_a_worker_finds_its_agent() -> None:
    channel = settings.worker_channel(WORKER)
    assert channel == settings.WorkerChannel(
        agent="/run/agent.sock",
        secret="hunter2",
        run_id="job",
        node="node0",
        round=3,
        term=1,
        rank=5,
        local_rank=1,
        world_size=8,
        local_world_size=2,
        node_rank=2,
        nodes=4,
    )
    assert "hunter2" not in repr(channel)


def test_a_worker_with_a_virtual_local_rank_has_its_own_for_its_agent() -> None:
    virtual = WORKER | {"LOCAL_RANK": "0", "RALLYPOINT_LOCAL_RANK": "1"}
    assert settings.worker_channel(virtual) == settings.worker_channel(WORKER)


def test_a_process_that_is_no_worker_has_no_agent() -> None:
    assert settings.worker_channel({}) is None
    without = {name: text for name, text in WORKER.items() if name != "RALLYPOINT_AGENT"}
    assert settings.worker_channel(without) is None


def test_the_agent_of_another_launch_is_no_agent_of_this_process() -> None:
    job = {"RALLYPOINT_LAUNCH": "slurm/1", "SLURM_JOB_ID": "2"}
    assert settings.worker_channel(WORKER | job) is None
    assert settings.worker_channel(WORKER | job | {"SLURM_JOB_ID": "1"}) is not None


@pytest.mark.parametrize("name", [name for name in WORKER if name != "RALLYPOINT_AGENT"])
def test_a_worker_names_the_missing_variable(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is not set"):
        settings.worker_channel({**WORKER, name: ""})


@pytest.mark.parametrize(
    ("name", "text"),
    [("RANK", "first"), ("RANK", "-1"), ("RANK", "8"), ("LOCAL_RANK", "2"), ("WORLD_SIZE", "1.0")],
)
def test_a_worker_names_the_bad_variable(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=name):
        settings.worker_channel({**WORKER, name: text})


# -- the machine ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("", ()),
        ("0, 2", ("0", "2")),
        ("0,-1,2", ("0",)),
        ("-1", ()),
        ("GPU-8932f937-d72c", ("GPU-8932f937-d72c",)),
        ("NoDevFiles", ()),
    ],
)
def test_visible_gpus(text: str | None, expected: tuple[str, ...] | None) -> None:
    environ = {} if text is None else {"CUDA_VISIBLE_DEVICES": text}
    assert settings.visible_gpus(environ) == expected


def test_other_platforms_are_refused_by_name() -> None:
    settings.check_platform("linux")
    settings.check_platform("darwin")
    with pytest.raises(PlatformError, match="win32"):
        settings.check_platform("win32")


@pytest.mark.processes
def test_settings_are_quick_to_import() -> None:
    program = (
        "import sys, rallypoint.settings\n"
        "heavy = {'asyncio', 'aiohttp', 'websockets', 'typer', 'rich', 'ssl', 'socket'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(Path(__file__).parents[1] / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize("path", ["x" * 5_000, "/dev/null/x", "\0"])
def test_a_token_file_that_cannot_be_a_path_is_an_error_of_ours(path: str) -> None:
    for read in (settings.resolve_token, settings.resolve_tokens):
        with pytest.raises(UsageError):
            read(path)
