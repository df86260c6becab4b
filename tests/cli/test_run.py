"""`rallypoint run` as it is typed: which words are the program's, and what is wrong at once."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rallypoint.cli.torchrun_args import TORCHRUN, rewritten
from rallypoint.launch import agent
from rallypoint.launch.console_rule import NO_STREAMS, read_streams
from rallypoint.launch.guard import Guard

from .conftest import COMMAND, Cli, Done, Served


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[agent.AgentConfig]:
    """What the agent was started with, in place of an agent that runs."""
    configs: list[agent.AgentConfig] = []

    def main(config: agent.AgentConfig) -> int:
        configs.append(config)
        return 5

    monkeypatch.setattr(agent, "main", main)
    return configs


def test_the_exit_code_is_the_agents(
    cli: Cli, started: list[agent.AgentConfig], script: str
) -> None:
    assert str(cli("run", script)) == "exit code 5\n"


@pytest.mark.parametrize(
    "words",
    [
        ["--lr", "0.1"],
        ["--nnodes", "2", "--help", "-m", "--bogus=1"],
        ["--", "x"],
        ["--under_score", "a_b"],
    ],
)
@pytest.mark.parametrize("before", [[], ["--"]])
def test_arguments_after_the_program_belong_to_it(
    cli: Cli, started: list[agent.AgentConfig], script: str, before: list[str], words: list[str]
) -> None:
    assert cli("run", "--max-restarts", "1", *before, script, *words).code == 5
    assert started[0].argv == (sys.executable, "-u", script, *words)
    assert started[0].run.max_restarts == 1


def test_options_may_have_underscores_and_equals_signs(
    cli: Cli, started: list[agent.AgentConfig], script: str
) -> None:
    line = "run --nnodes=1:4 --nproc_per_node=2 --max_restarts=3 --rdzv_id=7 --rdzv_backend=c10d"
    done = cli(*line.split(), "--rdzv_endpoint=node0:29500", "--log_dir=/logs_here", script)
    assert (done.code, done.err) == (5, "")
    config = started[0]
    assert (config.run.max_nodes, config.workers, config.run.max_restarts) == (4, 2, 3)
    assert (config.node.run_id, config.node.endpoint.text) == ("7", "node0:29500")
    assert config.log_dir == "/logs_here"


def test_a_module_can_be_run(cli: Cli, started: list[agent.AgentConfig]) -> None:
    assert cli("run", "--standalone", "--no-tee", "-m", "json.tool", "--indent", "2").code == 5
    assert started[0].argv == (sys.executable, "-u", "-m", "json.tool", "--indent", "2")
    # Without --log-dir the output would be nowhere.
    assert started[0].console.tee is True


@pytest.mark.parametrize(
    ("words", "redirects", "tee"),
    [
        ("--tee 3 --redirects 3", "3", "3"),
        ("--tee=3 -r3", "3", "3"),
        ("-t 0:1,1:3 -r 0:1", "0:1", "0:1,1:3"),
        ("--redir 3 --tee=0:1", "3", "0:1"),
        ("--tee", None, None),
    ],
)
def test_streams_are_written_as_for_torchrun(
    cli: Cli,
    started: list[agent.AgentConfig],
    script: str,
    tmp_path: Path,
    words: str,
    redirects: str | None,
    tee: str | None,
) -> None:
    done = cli("run", *words.split(), "--log-dir", str(tmp_path), script, "--tee", "3")
    assert (done.code, done.err) == (5, "")
    assert started[0].argv == (sys.executable, "-u", script, "--tee", "3")
    rule = started[0].console
    assert rule.redirected == (read_streams(redirects) if redirects else NO_STREAMS)
    assert rule.teed == (read_streams(tee) if tee else NO_STREAMS)


def test_redirected_output_has_files_without_a_log_dir(
    cli: Cli, started: list[agent.AgentConfig], script: str
) -> None:
    done = cli("run", "-r", "3", script)
    assert done.code == 5
    log_dir = started[0].log_dir
    assert log_dir is not None
    assert f"the workers' output is in {log_dir}" in done.err
    Path(log_dir).rmdir()


def test_options_may_be_abbreviated(
    cli: Cli, started: list[agent.AgentConfig], script: str
) -> None:
    assert cli("run", "--nproc", "2", "--max_rest=3", "--stand", script, "--nproc").code == 5
    config = started[0]
    assert (config.workers, config.run.max_restarts) == (2, 3)
    assert config.argv[-1] == "--nproc"
    # Two options begin so.
    assert "No such option" in cli("run", "--rdzv", "x", script).err
    told = cli("run", "--connect-timeout", "5", script).err
    assert "hint: it is a setting: --set connect_timeout=VALUE" in told


@pytest.mark.torch
def test_what_begins_one_option_of_torchrun_means_that_one() -> None:
    parser = pytest.importorskip("torch.distributed.run").get_args_parser()
    theirs = {name for name in parser._option_string_actions if name.startswith("--")}
    assert {name for name in theirs if "_" not in name} == TORCHRUN
    # Each of these was given to a program by somebody, and ours may begin in the same way.
    ours = dict.fromkeys(TORCHRUN, False) | {f"{name}-too": False for name in TORCHRUN}
    for name in sorted(TORCHRUN):
        for length in range(3, len(name) + 1):
            begun = name[:length]
            if sum(each.startswith(begun) for each in TORCHRUN) == 1 or begun == name:
                assert rewritten([begun], ours) == [name]


def test_every_option_of_torchrun_is_accepted(
    cli: Cli, started: list[agent.AgentConfig], script: str, tmp_path: Path
) -> None:
    line = (
        "--nnodes=1 --nproc-per-node=2 --rdzv-backend=c10d --rdzv-endpoint=localhost:0 --rdzv-id=j "
        "--rdzv-conf=join_timeout=60 --standalone --max-restarts=0 --monitor-interval=1 "
        "--start-method=spawn --event-log-handler=null --role=trainer --run-path "
        f"--log-dir={tmp_path} -r 3 -t 3 --local-ranks-filter=0 --duplicate-stdout-filters=a "
        "--duplicate-stderr-filters=b --node-rank=0 --master-addr=127.0.0.1 --master-port=29500 "
        "--local-addr=127.0.0.1 --logs-specs=x --signals-to-handle=SIGTERM "
        "--shutdown-timeout=30 --virtual-local-rank"
    )
    for words in (line, line.replace("-", "_").replace("__", "--").replace(" _", " -")):
        done = cli("run", *words.split(), script)
        assert done.code == 5, done.err
        assert all("has no effect: " in each for each in done.err.splitlines()), done.err


def test_a_token_file_that_others_can_read_causes_a_warning(
    cli: Cli, started: list[agent.AgentConfig], script: str, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("hunter2")
    token.chmod(0o644)
    done = cli("run", "--token-file", str(token), script)
    assert done.code == 5
    assert "warning: token file" in done.err


def test_a_bad_option_is_reported_at_once(
    cli: Cli, started: list[agent.AgentConfig], snapshot: Callable[[str, str], None]
) -> None:
    """Each with its last two lines; nothing was joined, nothing was started."""
    lines = [
        "run",
        "run --nnodes 4:2 train.py",
        "run --nproc-per-node 0 train.py",
        "run --endpoint node0:port train.py",
        "run --endpoint https:/node0 train.py",
        "run --nnodes 2 --endpoint node0 train.py",
        "run --nnodes 2 train.py",
        "run /nonexistent/train.py",
        "run --no-python /nonexistent/a.out",
        "run --last-call soon train.py",
        "run --set nonsense=1 train.py",
        "run --token-file /nonexistent/token train.py",
        "run --node-rank 0 train.py",
        "run --bogus train.py",
    ]
    snapshot(
        "run-errors", "\n".join(f"$ rallypoint {each}\n{cli(*each.split())}" for each in lines)
    )
    assert started == []


def test_an_unwritable_log_directory_is_an_error(cli: Cli, script: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = cli("run", "--log-dir", str(tmp_path / "file" / "logs"), script)
    assert done.code == 2
    assert done.err == (
        f"error: cannot write logs to '{tmp_path}/file/logs': Not a directory\n"
        "hint: a part of the path is not a directory: name another --log-dir\n"
    )


# -- with a real agent ---------------------------------------------------------------------------


def _run(*arguments: str, env: dict[str, str] | None = None) -> Done:
    done = subprocess.run(
        [*COMMAND, "run", *arguments],
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.processes
def test_a_program_runs_and_its_exit_code_is_returned(tmp_path: Path) -> None:
    program = tmp_path / "show.py"
    program.write_text(
        "import json, os, sys\n"
        "print(json.dumps([sys.argv[1:], os.environ['RANK'], os.environ['WORLD_SIZE']]))\n"
        "sys.exit(int(sys.argv[2]))\n"
    )
    for code, expected in (("0", 0), ("7", 1)):
        done = _run("--standalone", "--no-prefix", str(program), "--code", code)
        assert done.code == expected
        assert json.loads(done.out) == [["--code", code], "0", "1"]


_MEET = ["--run-id", "job", "--host-coordinator", "no", "--set", "connect_timeout=100ms"]


@pytest.mark.processes
def test_a_refusing_host_is_an_error_that_names_it(script: str, free_port: int) -> None:
    where = f"127.0.0.1:{free_port}"
    done = _run(*_MEET, "--endpoint", where, script)
    assert done.code == 3
    assert where in done.err
    assert done.err.splitlines()[-1].startswith("hint: ")


@pytest.mark.processes
def test_another_program_at_the_endpoint_is_an_error_that_names_it(
    script: str, listener: Callable[[bytes | None], str]
) -> None:
    where = listener(b"SSH-2.0-OpenSSH_9.6\r\n")
    done = _run(*_MEET, "--endpoint", where, script)
    assert done.code == 3
    assert where in done.err
    assert done.err.splitlines()[-1].startswith("hint: ")


@pytest.mark.processes
@pytest.mark.parametrize("env", [{}, {"RALLYPOINT_TOKEN": "hunter3"}])
def test_a_missing_or_wrong_token_is_a_usage_error(
    script: str, serve: Callable[..., Served], env: dict[str, str]
) -> None:
    endpoint = serve(env={"RALLYPOINT_TOKEN": "hunter2"}).endpoint
    done = _run("--run-id", "job", "--endpoint", endpoint, script, env=env)
    assert done.code == 2
    assert "token" in done.err
    assert "hunter" not in done.err
    assert done.err.splitlines()[-1].startswith("hint: ")


@pytest.mark.processes
def test_a_host_that_cannot_be_resolved_is_an_error_that_names_it(
    cli: Cli, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    # The agent runs in this process, which must not leave one behind that is slow to end.
    close = Guard.close
    monkeypatch.setattr(Guard, "close", lambda guard: close(guard, timeout_s=60.0))
    done = cli("run", *_MEET, "--endpoint", "nowhere.example:1", script)
    assert done.code == 3
    assert "nowhere.example" in done.err
    assert "Name or service not known" in done.err
    assert done.err.splitlines()[-1].startswith("hint: ")


# -- the log -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "level", "is_json"),
    [
        ([], "INFO", False),
        (["-v"], "DEBUG", False),
        (["-q", "--log-format", "json"], "WARNING", True),
    ],
)
def test_the_options_of_the_log(
    cli: Cli,
    started: list[agent.AgentConfig],
    script: str,
    words: list[str],
    level: str,
    is_json: bool,
) -> None:
    assert cli("run", *words, script).code == 5
    [config] = started
    assert (logging.getLevelName(config.log.level), config.log.is_json) == (level, is_json)


def test_a_bad_format_is_a_usage_error(
    cli: Cli, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("run", "--log-format", "xml", script).code == 2
    monkeypatch.setenv("RALLYPOINT_LOG_FORMAT", "xml")
    assert "RALLYPOINT_LOG_FORMAT" in cli("run", script).err


@pytest.mark.processes
@pytest.mark.parametrize("code", [0, 7])
def test_the_agent_keeps_its_own_log_beside_the_workers_output(tmp_path: Path, code: int) -> None:
    """Each line of it, and of stderr, is an object with all fields."""
    program = tmp_path / "train.py"
    program.write_text(f"raise SystemExit({code})")
    done = subprocess.run(
        [
            *COMMAND,
            "run",
            "--log-format",
            "json",
            "--log-dir",
            "logs",
            "--run-id",
            "job",
            "train.py",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert bool(done.returncode) == bool(code)
    [file] = (tmp_path / "logs" / "job").glob("agent-*.log")
    assert file.stat().st_mode & 0o777 == 0o600
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    shown = [json.loads(line) for line in done.stderr.splitlines()]
    for lines in (kept, shown):
        [began] = [each for each in lines if "1 node, 1 worker" in each["message"]]
        assert (began["run"], began["term"], began["round"]) == ("job", 1, 1)
        assert f"agent-{began['node']}.log" == file.name
    assert any(each["logger"] == "rallypoint.coordinator" for each in kept)
    if code:
        assert any(each["level"] == "error" and "failed" in each["message"] for each in kept)
