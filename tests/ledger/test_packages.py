"""Ledgers of other packages: a real one, in SQLite, that is installed into a folder."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rallypoint
from rallypoint.endpoints import EndpointKind, parse_endpoint, parse_ledger
from rallypoint.errors import EndpointError, UsageError
from rallypoint.ledger.contract import Ledger
from rallypoint.ledger.etcd.ledger import EtcdLedger
from rallypoint.ledger.open import open_ledger
from rallypoint.testing import Connect, LedgerSuite
from tests.ports import free_port

SOURCE = Path(__file__).with_name("sqlite_package") / "rallypoint_sqlite.py"
GROUP = "[rallypoint.ledgers]\n"
SQLITE = GROUP + "sqlite = rallypoint_sqlite:open_ledger\n"
LATE_S = 60


def install(site: Path, entry_points: str = SQLITE, name: str = "rallypoint-sqlite") -> None:
    """As an installer leaves it: the module, and the package's metadata beside it."""
    about = site / f"{name.replace('-', '_')}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(entry_points)
    shutil.copy(SOURCE, site)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path. Its modules are forgotten after the test."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in [n for n in set(sys.modules) - before if n.startswith(("rallypoint_", "broken"))]:
        del sys.modules[name]
    importlib.invalidate_caches()


def refusal(url: str) -> EndpointError:
    with pytest.raises(EndpointError) as caught:
        open_ledger(parse_endpoint(url))
    return caught.value


# -- what an endpoint means ----------------------------------------------------------------------


def test_an_installed_package_adds_a_scheme(site: Path, tmp_path: Path) -> None:
    install(site)
    url = f"SQLite://{tmp_path}/runs"
    endpoint = parse_endpoint(url)
    assert (endpoint.kind, endpoint.text, endpoint.url) == (EndpointKind.LEDGER, url, "")
    assert parse_ledger(url) == endpoint

    async def main() -> str:
        async with open_ledger(endpoint) as ledger:
            return ledger.ledger_id

    assert asyncio.run(main()) == asyncio.run(main())


def test_a_package_is_loaded_only_when_its_ledger_is_opened(site: Path, tmp_path: Path) -> None:
    install(site)
    parse_endpoint(f"sqlite://{tmp_path}/runs")
    assert "rallypoint_sqlite" not in sys.modules


def test_an_unknown_scheme_names_the_nearest_and_what_to_install(site: Path) -> None:
    install(site)
    error = refusal("sqlit:///runs")
    assert "cannot begin with sqlit://" in error.message
    assert "did you mean sqlite://?" in error.hint
    assert "needs that package in this Python" in error.hint
    assert "rallypoint.ledgers" in error.hint
    assert "did you mean etcd://?" in refusal("ectd://node0").hint
    assert "did you mean" not in refusal("zookeeper://node0").hint


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://me:hunter2@host/runs",
        "sqlite://hunter2@host/runs",
        "sqlite://host/runs?Password=hunter2",
        "sqlite://host?token=hunter2",
    ],
)
def test_an_endpoint_with_a_secret_is_refused_and_not_shown(site: Path, url: str) -> None:
    install(site)
    error = refusal(url)
    assert "must not contain a user or password" in error.message
    assert "hunter2" not in str(error)


def test_a_url_that_cannot_be_read_is_a_plain_error(site: Path) -> None:
    install(site)
    assert "cannot be read" in refusal("sqlite://[::1/runs").message


# -- packages with mistakes ----------------------------------------------------------------------


def test_a_package_that_cannot_be_imported_is_named_with_the_reason(site: Path) -> None:
    (site / "broken.py").write_text("import a_module_that_nobody_has\n")
    install(site, GROUP + "shelf = broken:open_ledger\n", "broken-shelf")
    error = refusal("shelf://node0")
    assert "shelf = broken:open_ledger of broken-shelf 1.0" in error.message
    assert "ModuleNotFoundError: No module named 'a_module_that_nobody_has'" in error.message
    assert isinstance(error.__cause__, ImportError)


def test_a_function_that_is_not_there_or_fails_is_named_with_the_reason(site: Path) -> None:
    (site / "broken.py").write_text("def fails(url, call_timeout_s):\n    raise KeyError(url)\n")
    install(site, GROUP + "one = broken:missing\ntwo = broken:fails\n", "broken-shelf")
    assert (
        "AttributeError: module 'broken' has no attribute 'missing'" in refusal("one://x").message
    )
    assert "KeyError: 'two://x'" in refusal("two://x").message


def test_what_is_no_ledger_is_refused(site: Path) -> None:
    (site / "broken.py").write_text("def opens(url, call_timeout_s):\n    return url\n")
    install(site, GROUP + "shelf = broken:opens\n", "broken-shelf")
    assert "is of type str, which is not a rallypoint.ledger" in refusal("shelf://x").message


def test_an_error_of_the_package_that_is_ours_is_raised_as_it_is(site: Path) -> None:
    install(site)
    with pytest.raises(UsageError, match=r"names no file\nhint: write sqlite"):
        open_ledger(parse_endpoint("sqlite:///"))


def test_no_package_replaces_a_scheme_of_our_own(site: Path) -> None:
    install(site, GROUP + "etcd = rallypoint_sqlite:open_ledger\n")
    assert isinstance(open_ledger(parse_endpoint("etcd://127.0.0.1:1")), EtcdLedger)


def test_two_packages_with_one_scheme_are_refused(site: Path) -> None:
    install(site)
    install(site, GROUP + "sqlite = other:open_ledger\n", "other")
    error = refusal("sqlite:///x/y")
    assert "several packages register ledgers for sqlite://" in error.message
    assert "sqlite = other:open_ledger of other 1.0" in error.message
    assert "uninstall all but one" in error.hint


# -- the arguments of join -----------------------------------------------------------------------


@pytest.mark.sockets
@pytest.mark.parametrize("where", ["endpoint", "ledger"])
def test_join_meets_over_a_ledger_of_a_package(site: Path, tmp_path: Path, where: str) -> None:
    install(site)
    url = f"sqlite://{tmp_path}/runs"

    async def main() -> None:
        place: dict[str, str] = {where: url}
        run = await rallypoint.aio.join("job", **place, min_nodes=1)  # type: ignore[arg-type]
        async with run:
            world = await run.next_world()
            assert world is not None
            assert world.size == 1
            await run.close("met")

    asyncio.run(main())


def test_join_refuses_two_places_and_what_is_no_ledger() -> None:
    with pytest.raises(UsageError, match="both an endpoint and a ledger"):
        rallypoint.join("job", "node0:1", ledger="file:/x", min_nodes=1)
    with pytest.raises(EndpointError, match="is not a ledger"):
        rallypoint.join("job", ledger="node0:1", min_nodes=1)
    with pytest.raises(UsageError, match="ledger must be text"):
        rallypoint.join("job", ledger=7, min_nodes=1)  # type: ignore[arg-type]


# -- commands ------------------------------------------------------------------------------------


class Commands:
    """Runs the command line with the package's folder on its path."""

    def __init__(self, site: Path) -> None:
        paths = [str(site), *sys.path]
        self.environ = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"}
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "rallypoint", *words]
        process = subprocess.Popen(
            command, env=self.environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.started.append(process)
        return process

    def run(self, *words: str) -> tuple[int, str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=LATE_S)
        return process.returncode, out + err

    def clean_up(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.communicate()


@pytest.fixture
def commands(site: Path) -> Iterator[Commands]:
    found = Commands(site)
    yield found
    found.clean_up()


@pytest.mark.processes
def test_serve_run_and_the_other_commands_take_its_endpoint(
    site: Path, tmp_path: Path, commands: Commands
) -> None:
    install(site)
    url, port = f"sqlite://{tmp_path}/runs", str(free_port())
    serve = commands.start("serve", "--ledger", url, "--port", port)
    assert serve.stderr is not None
    line = next(each for each in serve.stderr if "runs are kept in" in each)
    assert url in line
    program = tmp_path / "worker.py"
    program.write_text(
        "import rallypoint\nwith rallypoint.join() as run:\n    print(run.next_world().size)\n"
    )
    node = ("run", "--nnodes", "2", "--endpoint", url, "--run-id", "job", "--nproc-per-node", "1")
    nodes = [commands.start(*node, str(program)) for _ in range(2)]
    ended = [each.communicate(timeout=LATE_S) for each in nodes]
    assert [each.returncode for each in nodes] == [0, 0], ended
    assert all("2" in out for out, _ in ended)
    status, shown = commands.run("status", "job", "--endpoint", url, "--json")
    assert (status, json.loads(shown)["run_id"]) == (0, "job")
    for words in (("events", "job"), ("close", "job"), ("coordinators",)):
        status, shown = commands.run(*words, "--endpoint", url)
        assert status == 0, shown
    status, shown = commands.run("doctor", url, "--json")
    checks = {each["check"]: each for each in json.loads(shown)["checks"]}
    assert checks["ledger"]["verdict"] == "ok", shown


@pytest.mark.processes
def test_a_command_says_what_is_wrong_with_a_package(site: Path, commands: Commands) -> None:
    (site / "broken.py").write_text("import a_module_that_nobody_has\n")
    install(site, GROUP + "shelf = broken:open_ledger\nfile = broken:x\n", "broken-shelf")
    (site / "worker.py").touch()
    worker = str(site / "worker.py")
    for words in (
        ("status", "--endpoint", "shelf://x"),
        ("serve", "--ledger", "shelf://x", "--port", str(free_port())),
        ("close", "job", "--endpoint", "shelf://x"),
        ("run", "--nnodes", "1", "--endpoint", "shelf://x", "--run-id", "j", worker),
    ):
        status, shown = commands.run(*words)
        assert "No module named 'a_module_that_nobody_has'" in shown
        assert "Traceback" not in shown
        assert status == 2, shown
    _, shown = commands.run("doctor", "shelf://x")
    assert "No module named 'a_module_that_nobody_has'" in shown
    assert "a ledger that is not used: file = broken:x of broken-shelf 1.0" in shown


# -- the suite for authors -----------------------------------------------------------------------


class TestSqliteLedger(LedgerSuite):
    """The package of these tests keeps the contract."""

    writers = 4
    rounds = 4

    @pytest.fixture
    def connect(self, site: Path, fast_path: Path) -> Connect:
        install(site)

        def another() -> Ledger:
            return open_ledger(parse_endpoint(f"sqlite://{fast_path}/runs"))

        return another


@pytest.mark.processes
def test_the_suite_of_the_guide_runs(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "ledgers.md").read_text("utf-8")
    program = next(
        each for each in re.findall(r"```python\n(.*?)```", text, re.S) if "Suite" in each
    )
    (tmp_path / "test_my_ledger.py").write_text(program)
    shutil.copy(SOURCE, tmp_path / "my_package.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_ledger.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
